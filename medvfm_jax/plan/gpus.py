"""GPUs that are not here, described for XLA's compiler: it compiles for a described GPU as for one it finds.

The description is XLA's own message ``GpuTargetConfigProto`` in text form
(xla/stream_executor/device_description.proto); its figures are NVIDIA's for the boards (CUDA programming guide,
architecture white papers).
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from medvfm_jax.plan.chips import CHIPS, Chip
from medvfm_jax.plan.errors import BadPlan


@dataclass(frozen=True)
class Board:
    """Multiprocessors and caches.  major: of the compute capability.  lanes: float32 units of a multiprocessor.

    l2: bytes.  shared, block: bytes of shared memory of a multiprocessor, and that one block may ask for.
    """

    major: int
    multiprocessors: int
    lanes: int
    clock: float
    l2: int
    shared: int
    block: int


_AMPERE = Board(8, 108, 64, 1.41e9, 40 * 2**20, 164 * 2**10, 163 * 2**10)
_HOPPER = Board(9, 132, 128, 1.98e9, 50 * 2**20, 228 * 2**10, 227 * 2**10)
BOARDS = {"a100": _AMPERE, "h100": _HOPPER, "h200": _HOPPER}

_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {board.shared} shared_memory_per_block_optin: {board.block}
  core_count: {board.multiprocessors} fpus_per_core: {board.lanes} clock_rate_ghz: {clock} l2_cache_size: {board.l2}
  memory_bandwidth: {chip.bandwidth:.0f} device_memory_size: {chip.hbm} device_address_bits: 64
  cuda_compute_capability {{ major: {board.major} }}
  device_vendor: "NVIDIA Corporation" name: "{chip.name}"
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA" device_description_str: "{chip.name}"
dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}
"""


def target(name: str) -> str:
    """XLA's description of a GPU of ``CHIPS``."""
    board = BOARDS[name]
    return _TARGET.format(board=board, chip=CHIPS[name], clock=board.clock / 1e9)


def chip_of(name: str, hosts: int) -> Chip:
    """What the maker says of a GPU; among several hosts all that is sent is taken to go over the network."""
    chip = CHIPS[name]
    return chip if hosts == 1 else replace(chip, ici=chip.network)


def gpu_devices(name: str, shape: Sequence[int]) -> tuple[Sequence[Any], Chip]:
    """Devices to compile for: (8,) is a host with 8 GPUs, (4, 8) four of these; and what the maker says of one.

    Raises BadPlan for hosts that do not exist, or without JAX's CUDA plugin (extra ``[cuda]``), which needs no GPU.
    """
    from jax.experimental import topologies

    if len(shape) > 2:
        raise BadPlan(f"GPUs are written {name}:8, or {name}:4x8 for 4 hosts of 8; got {len(shape)} numbers.")
    hosts, each = (1, *shape)[-2:]
    chip = chip_of(name, hosts)
    if each > chip.pod:
        raise BadPlan(f"A host has at most {chip.pod} {name}; write {name}:2x8 for 2 hosts of 8.")
    if not _has_plugin():
        raise BadPlan(
            "Compiling for GPUs needs JAX's CUDA plugin, which needs no GPU: install it with "
            "pip install 'medvfm-jax[cuda]'."
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it asks for libraries only a GPU needs
    topology = f"1x{hosts}x{each}"
    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=topology, target_config=target(name)
        )
    except Exception as error:  # XLA raises its own kinds
        raise BadPlan(f"The CUDA plugin refuses {name}: {error}") from error
    return found.devices, chip


def _has_plugin() -> bool:
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13))
