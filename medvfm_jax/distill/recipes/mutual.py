"""Mutual distillation: two students teach each other beside the labels."""

from medvfm_jax.distill.record import Recipe, Stage


def _stages(*, peer: float = 1.0, labels: float = 1.0, embedding: float = 0.0) -> tuple[Stage, ...]:
    """Weights of the terms; 0 leaves one out.  embedding: of the teacher's, for both students."""
    return (Stage({"peer": peer, "labels": labels, "embedding": embedding}, other="partner"),)


RECIPE = Recipe(
    description="two students with other starts, or of other kinds (--partner), learn each other's masks beside the "
    "labels (deep mutual learning, Zhang et al. 2018)",
    source="https://arxiv.org/abs/1706.00384",
    stages=_stages,
    differences="Both take their steps at once from the same answers, where the paper takes turns. The partner is left "
    "behind.",
)
