"""Prompts in the loop: embedding first, then masks for clicks where student and teacher disagree."""

from medvfm_jax.distill.record import ENCODER, ENCODER_AND_DECODER, Recipe, Stage


def _stages(*, first: float = 0.5, rounds: int = 2) -> tuple[Stage, ...]:
    """first: share of the steps that the embedding has; 0 leaves it out.  rounds: 1 asks about every prompt once."""
    return (
        Stage({"embedding": 1.0}, first, trained=ENCODER),
        Stage({"binary_masks": 1.0}, 1 - first, trained=ENCODER_AND_DECODER, rounds=rounds),
    )


RECIPE = Recipe(
    description="the embedding first, then the teacher's masks, asked again with a click where the two disagree "
    "(EdgeSAM, Zhou et al. 2023)",
    source="https://arxiv.org/abs/2312.06660",
    stages=_stages,
    differences="Written from the paper: the release is not for commercial use. One mask per prompt, where it compares "
    "the best of four; the Dice of a mask cut at 0 is the semimetric.",
)
