"""Devices to compile for: those of this machine, or of a TPU slice or GPUs that are described but not here."""

import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from medvfm_jax.plan.chips import CHIPS, Chip
from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.plan.gpus import gpu_devices

_DECOMPOSED = 64  # chips of the smallest slice whose gathers libtpu does not make

# libtpu looks for the machine it runs on; there is none.  Nor is there a TPU that only one process may hold.
_NOWHERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def devices_of(topology: str) -> tuple[Sequence[Any], Chip | None]:
    """ "cpu" -> devices of this machine, None; "v5e:16x16", "h100:4x8" -> devices to compile for, and their chip.

    Raises BadPlan for a topology that does not exist, or without its compiler (extras ``[tpu]``, ``[cuda]``).
    """
    if topology == "cpu":
        return jax.devices("cpu"), None
    found = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*)*)", topology)
    if found is None or found[1] not in CHIPS:  # v4's two cores count as two devices, so it is left out
        raise BadPlan(
            f"Topology '{topology}' is unknown; write cpu, a TPU slice such as v5e:16x16 ({_chips('tpu')}), "
            f"or GPUs such as h100:8 or, on 4 hosts, h100:4x8 ({_chips('gpu')})."
        )
    sides = [int(side) for side in found[2].split("x")]
    return (
        gpu_devices(found[1], sides)
        if CHIPS[found[1]].backend == "gpu"
        else _slice(topology, found[1], sides)
    )


def fsdp_mesh(topology: str, devices: int) -> str:
    """The mesh over which ``fsdp`` is to be divided: all devices, on TPU slices of 64 and more in groups of at most 32.

    libtpu 0.0.42.1 turns a gather among all chips of such a slice into an all-reduce of the whole array, with zeros
    where the others' parts are (its pass ``all_gather_decomposer``); among a part of the chips it gathers.
    """
    name, _, shape = topology.partition(":")
    if devices < _DECOMPOSED or name not in CHIPS or CHIPS[name].backend != "tpu":
        return f"data={devices}"
    sides = [int(side) for side in shape.split("x")]
    products = {math.prod(some) for n in range(len(sides)) for some in itertools.combinations(sides, n)}
    group = max(size for size in products if size < _DECOMPOSED)
    return f"replica={devices // group},data={group}"


def _chips(backend: str) -> str:
    return ", ".join(name for name, chip in CHIPS.items() if chip.backend == backend)


def _slice(topology: str, name: str, sides: list[int]) -> tuple[Sequence[Any], Chip]:
    if importlib.util.find_spec("libtpu") is None:
        raise BadPlan(
            "Compiling for TPUs needs libtpu, which needs no TPU: install it with pip install 'medvfm-jax[tpu]'."
        )
    chip = CHIPS[name]
    if len(sides) != chip.dimensions:
        raise BadPlan(f"A slice of {name} has {chip.dimensions} dimensions, not {len(sides)}: '{topology}'.")
    if math.prod(sides) > chip.pod:
        raise BadPlan(f"A pod of {name} has {chip.pod} chips; '{topology}' would have {math.prod(sides)}.")
    return _tpu_devices(topology, sides), chip


def _tpu_devices(topology: str, sides: list[int]) -> Sequence[Any]:
    from jax.experimental import topologies

    for name, value in _NOWHERE.items():
        os.environ.setdefault(name, value)
    options = {"chips_per_host_bounds": [1, 1, 1]} if set(sides) == {1} else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # XLA raises its own kinds
        raise BadPlan(f"libtpu does not know the slice '{topology}': {error}") from error
