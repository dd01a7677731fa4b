"""Two stages: the embedding first, then the whole student on the labels."""

from medvfm_jax.distill.record import ENCODER, Recipe, Stage


def _stages(*, first: float = 0.5) -> tuple[Stage, ...]:
    """first: share of the steps that the first stage has; 0 leaves it out."""
    return Stage({"embedding": 1.0}, first, trained=ENCODER), Stage({"labels": 1.0}, 1 - first)


RECIPE = Recipe(
    description="two stages: the encoder learns the teacher's embedding, then the whole student learns from labels "
    "(EfficientViT-SAM, Zhang et al. 2024; LiteMedSAM was made so too)",
    source="https://arxiv.org/abs/2402.05008",
    stages=_stages,
    differences="The loss on labels is that of the run's objective; with objective=sam it is the published one.",
)
