"""Decoupled distillation: the encoder alone learns the teacher's embedding; decoder and prompts are the teacher's."""

from medvfm_jax.distill.record import ENCODER, Recipe, Stage


def _stages() -> tuple[Stage, ...]:
    return (Stage({"embedding": 1.0}, trained=ENCODER),)


RECIPE = Recipe(
    description="the image encoder learns the teacher's embedding, the rest stays the teacher's; no labels are looked "
    "at (MobileSAM, Zhang et al. 2023)",
    source="https://arxiv.org/abs/2306.14289",
    stages=_stages,
    differences="Padding is left out of the error, as in EdgeSAM; AdamW in place of SGD.",
)
