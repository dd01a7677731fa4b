"""Full-stage distillation: embedding, masks and rated IoU of the teacher, and the labels; hard prompts weigh more."""

from medvfm_jax.distill.record import ENCODER_AND_DECODER, Recipe, Stage


def _stages(
    *,
    embedding: float = 1.0,
    masks: float = 1.0,
    iou: float = 1.0,
    labels: float = 1.0,
    rounds: int = 2,
    hard_masks: bool = True,
) -> tuple[Stage, ...]:
    """rounds: 1 asks about every prompt once (no hard prompts).  hard_masks: False weighs all prompts alike."""
    return (
        Stage(
            {"embedding_l1": embedding, "masks": masks, "iou": iou, "labels": labels},
            trained=ENCODER_AND_DECODER,
            rounds=rounds,
            clicks="labels",
            hard=hard_masks,
        ),
    )


RECIPE = Recipe(
    description="embedding, masks and rated IoU of the teacher beside the labels; prompts are asked again with a click "
    "where the student is wrong, and those it gets wrong weigh more (TinySAM, Shu et al. 2023)",
    source="https://arxiv.org/abs/2312.13789",
    stages=_stages,
    differences="Interpretation: the weights of the terms are not published; the distance of masks is cross-entropy "
    "and the Dice semimetric; the decoder's output tokens are not compared.",
)
