"""`medvfm adapt`: train a delta on a folder of labelled images."""

import sys
from dataclasses import dataclass, fields

import tyro

from medvfm_jax.cli import console
from medvfm_jax.train import adapt
from medvfm_jax.train.config import AdaptConfig
from medvfm_jax.train.progress import ProgressDisplay


@dataclass(frozen=True)
class AdaptArgs(AdaptConfig):
    """Adapt a model to a folder of labelled images, training a fraction of its parameters.

    Example: medvfm adapt --data data/dsb2018 --model lite-medsam --adapter samed --set lora.rank=8 --out runs/a

    Kill it at any moment and give the same command with --resume: the result has the same bits on CPU.
    """

    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the adapter, for example lora.rank=8; may be given several times."""


def run(args: AdaptArgs) -> int:
    """Train; prints what trains, the progress, and where things are."""
    config = AdaptConfig(**{field.name: getattr(args, field.name) for field in fields(AdaptConfig)})
    stream = sys.stderr if console.json_mode() else sys.stdout
    with ProgressDisplay(stream, "adapt") as display:
        result = adapt(config, display)
    console.result(result._asdict(), f"next: medvfm evaluate --run {result.folder}")
    return 0
