"""`medvfm federate`: one model from the images of several hospitals, which share updates instead of images."""

import sys
from dataclasses import dataclass, fields
from typing import Literal

import jax
import tyro

from medvfm_jax.cli import console
from medvfm_jax.federated.cohort_placement import CohortPlacement
from medvfm_jax.federated.federate import FederateResult, federate
from medvfm_jax.federated.federate_config import FederateConfig
from medvfm_jax.mesh_axes import CLIENTS
from medvfm_jax.parallel import BadMesh, make_mesh, preset
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
    mesh: str | None = None
    """Divide the clients of a round over several devices: `all`, or how many on each axis, for example clients=4,data=2
    (data divides the images of a client's step). May change when a run is resumed."""
    rules: Literal["replicated", "fsdp", "tensor"] = "replicated"
    """With --mesh, where the base weights are: whole on every device, divided over data, blocks divided over model."""


def run(args: FederateArgs) -> int:
    """Train; prints what trains, each validated round, and where things are."""
    config = FederateConfig(**{field.name: getattr(args, field.name) for field in fields(FederateConfig)})
    placement = _placement(args)
    stream = sys.stderr if console.json_mode() else sys.stdout
    with ProgressDisplay(stream, "federate") as display:
        result = federate(config, display, placement)
    console.result(result._asdict(), _following(config, result))
    return 0


def _placement(args: FederateArgs) -> CohortPlacement | None:
    """The devices that were asked for; None for one.  Raises BadMesh."""
    if args.mesh is None:
        if args.rules != "replicated":
            raise BadMesh(
                f"Rules {args.rules} divide weights over devices: say which with --mesh, for example --mesh all."
            )
        if jax.default_backend() != "cpu" and jax.device_count() > 1:
            console.say(f"{jax.device_count()} devices are here and one is used; --mesh all takes them all")
        return None
    mesh = make_mesh({CLIENTS: jax.device_count()} if args.mesh == "all" else args.mesh)
    return CohortPlacement(mesh, preset(args.rules), args.rules)


def _following(config: FederateConfig, result: FederateResult) -> str:
    command = "report" if result.scores else "evaluate --run"
    return f"next: medvfm {command} {config.out}"
