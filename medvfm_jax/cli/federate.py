"""`medvfm federate`: one model from the images of several hospitals, which share updates instead of images."""

import sys
from dataclasses import dataclass, fields

import tyro

from medvfm_jax.cli import console
from medvfm_jax.federated.federate import FederateResult, federate
from medvfm_jax.federated.federate_config import FederateConfig
from medvfm_jax.train.progress import ProgressDisplay


@dataclass(frozen=True)
class FederateArgs(FederateConfig):
    """Adapt a model to the images of several hospitals that share updates instead of images (a simulation).

    Example: medvfm federate --data data/dsb2018 --preset decoder --rounds 20 --codec int8 --out runs/fed

    Example: medvfm federate --data data/dsb2018 --preset lora --algorithm ffa_lora --dp-epsilon 8 --dp-unit patient

    Baselines: --algorithm local (every client alone) and --algorithm centralised (all images in one place). Kill it at
    any moment and give the same command with --resume: the result has the same bits on CPU.
    """

    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the adapter, for example lora.rank=8; may be given several times."""
    algorithm_set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the algorithm, for example mu=0.1; may be given several times."""
    codec_set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Option of the codec, for example fraction=0.05; may be given several times."""


def run(args: FederateArgs) -> int:
    """Train; prints what trains, each validated round, and where things are."""
    config = FederateConfig(**{field.name: getattr(args, field.name) for field in fields(FederateConfig)})
    stream = sys.stderr if console.json_mode() else sys.stdout
    with ProgressDisplay(stream, "federate") as display:
        result = federate(config, display)
    console.result(result._asdict(), _following(config, result))
    return 0


def _following(config: FederateConfig, result: FederateResult) -> str:
    command = "report" if result.scores else "evaluate --run"
    return f"next: medvfm {command} {config.out}"
