"""One program over many devices: a mesh, sharding rules that cover every parameter, processes."""

from medvfm_jax.parallel.errors import BadMesh, BadProcesses, BadRules
from medvfm_jax.parallel.mesh import AXES, make_mesh, parse_mesh
from medvfm_jax.parallel.placement import Placement
from medvfm_jax.parallel.processes import start_processes, with_others
from medvfm_jax.parallel.rules import RULES, Largest, Rules, fsdp, replicated, spec_of, tensor
from medvfm_jax.parallel.shardings import (
    batch_shardings,
    delta_shardings,
    param_shardings,
    shard_step,
    state_shardings,
)

__all__ = [
    "AXES",
    "RULES",
    "BadMesh",
    "BadProcesses",
    "BadRules",
    "Largest",
    "Placement",
    "Rules",
    "batch_shardings",
    "delta_shardings",
    "fsdp",
    "make_mesh",
    "param_shardings",
    "parse_mesh",
    "replicated",
    "shard_step",
    "spec_of",
    "start_processes",
    "state_shardings",
    "tensor",
    "with_others",
]
