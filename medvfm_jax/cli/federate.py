"""`medvfm federate`: one model from the images of several hospitals, which share updates instead of images."""

import sys
from dataclasses import fields

import jax

from medvfm_jax.cli import console
from medvfm_jax.cli.options.federate import FederateArgs
from medvfm_jax.federated.run.federate import FederateResult, federate
from medvfm_jax.federated.run.placement import CohortPlacement
from medvfm_jax.mesh_axes import CLIENTS
from medvfm_jax.parallel import RULES, BadMesh, make_mesh
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.federate import FederateConfig


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
    return CohortPlacement(mesh, RULES[args.rules](), args.rules)


def _following(config: FederateConfig, result: FederateResult) -> str:
    command = "report" if result.scores else "evaluate --run"
    return f"next: medvfm {command} {config.out}"
