"""Masked reconstruction: the teacher's embedding from a quarter of the student's tokens, then the labels."""

from medvfm_jax.distill.record import ENCODER, Recipe, Stage


def _stages(*, first: float = 0.5, hidden: float = 0.75, embedding: float = 0.0) -> tuple[Stage, ...]:
    """first: share of the steps that reconstruction has.  hidden: share of the tokens that the student never sees.

    embedding: weight of the whole embedding in the second stage.
    """
    return (
        Stage({"reconstruction": 1.0}, first, trained=ENCODER, hidden=hidden),
        Stage({"labels": 1.0, "embedding": embedding}, 1 - first),
    )


RECIPE = Recipe(
    description="a plain ViT sees a quarter of its tokens and a decoder with cross-attention rebuilds the teacher's "
    "embedding from them; then the labels (EfficientSAM's SAMI, Xiong et al. 2024)",
    source="https://arxiv.org/abs/2312.00863",
    stages=_stages,
    differences="Interpretation: the decoder has two blocks with fixed positions. Padding is left out of the error. "
    "The neck and all else is trained in the second stage alone.",
)
