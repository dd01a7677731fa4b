"""Dynamic layer-wise distillation: blocks from the shallow to the deep, then the decoder."""

from medvfm_jax.distill.record import ENCODER, ENCODER_AND_DECODER, Recipe, Stage


def _stages(
    *,
    first: float = 0.8,
    layers: float = 1.0,
    embedding: float = 1.0,
    masks: float = 1.0,
    moving: bool = True,
) -> tuple[Stage, ...]:
    """first: share of the steps that the encoder has; 1 never aligns the decoder.  moving: False: all weigh alike."""
    return (
        Stage({"layers": layers, "embedding": embedding}, first, trained=ENCODER, moving=moving),
        Stage({"masks": masks}, 1 - first, trained=ENCODER_AND_DECODER),
    )


RECIPE = Recipe(
    description="blocks at four depths learn the teacher's, the weight moving from the first to the last, beside the "
    "embedding; then the masks (SAM-Lightening, Song et al. 2024)",
    source="https://arxiv.org/abs/2403.09195",
    stages=_stages,
    differences="Interpretation: the abstract was read. The weight moves linearly from one block to the next; blocks "
    "of other widths are compared through projections that train along.",
)
