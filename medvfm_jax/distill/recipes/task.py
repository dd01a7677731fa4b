"""Task-specific distillation: a teacher that was adapted to the task, its masks and embedding beside the labels."""

from medvfm_jax.distill.record import Recipe, Stage


def _stages(
    *,
    masks: float = 1.0,
    embedding: float = 1.0,
    channels: float = 0.0,
    attention: float = 0.0,
    labels: float = 1.0,
) -> tuple[Stage, ...]:
    """Weights of the terms; 0 leaves one out."""
    weights = {"masks": masks, "embedding": embedding, "channels": channels, "attention": attention}
    return (Stage(weights | {"labels": labels}),)


RECIPE = Recipe(
    description="masks (of classes: their probabilities at temperature 4) and embedding of a teacher that was adapted "
    "to the task, beside the labels (Hinton et al. 2015; Liang et al. 2025)",
    source="https://arxiv.org/abs/2503.06976",
    stages=_stages,
    differences="Interpretation: only the abstract of Liang et al. was read; no images are generated.",
)
