"""Medical distillation: probabilities, importance of places and affinity of regions beside the labels."""

from medvfm_jax.distill.record import Recipe, Stage


def _stages(
    *, masks: float = 0.1, importance: float = 0.9, regions: float = 0.9, labels: float = 1.0
) -> tuple[Stage, ...]:
    """Weights of the terms; 0 leaves one out."""
    return (Stage({"masks": masks, "importance": importance, "regions": regions, "labels": labels}),)


RECIPE = Recipe(
    description="probabilities, maps of importance and similarities of regions beside the labels (EMKD, Qin et al. "
    "2021)",
    source="https://arxiv.org/abs/2108.09987",
    stages=_stages,
    differences="The maps are those of the embedding alone, where it compares two layers. With prompts each mask is "
    "an object and its background.",
)
