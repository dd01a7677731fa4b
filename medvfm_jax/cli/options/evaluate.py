"""Options of `medvfm evaluate`."""

from dataclasses import dataclass

from medvfm_jax.settings.evaluate import EvaluateConfig


@dataclass(frozen=True)
class EvaluateArgs(EvaluateConfig):
    """Score a run, or a pretrained model zero-shot, on labelled images: whole cases, on their own grid.

    Example: medvfm evaluate --run runs/a

    Example: medvfm evaluate --model lite-medsam --data data/dsb2018 --out zero_shot.json

    Every score comes with its metric profile, n, a 95 % interval (over patients) and the number of
    empty masks. Scores of a run go into its directory, for medvfm report. In a federated run whose
    sites keep a part of the model, each case is scored with the model of its site, and the scores say so.
    """
