"""Options of `medvfm fewshot`."""

from dataclasses import dataclass

from medvfm_jax.settings.few_shot import FewShotConfig


@dataclass(frozen=True)
class FewshotArgs(FewShotConfig):
    """Segment with a frozen model and a few labelled cases, and score as `evaluate` does; the model is not trained.

    Example: medvfm fewshot --data data/dsb2018 --train-cases 4 --model dinov2-s --method prototype

    Example: medvfm fewshot --data data/new --support data/labelled --train-cases 2 --select-cases k_center

    Example: medvfm fewshot --data data/dsb2018 --model lite-medsam --method linear --shots 1 2 4 8 16 32 --seeds 3

    The names of the chosen cases are written into the scores.
    """
