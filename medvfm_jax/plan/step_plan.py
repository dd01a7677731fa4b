"""Does it fit and how fast would it be: a training step compiled ahead of time for devices that need not be here.

The compiler is the one that would run there, so memory is its own accounting, not a formula.  Time is an estimate:
the larger of the compiler's cycles and the roofline (Williams et al. 2009), and after it all collectives around rings,
each with its latency, as if nothing overlapped.  The compiler knows no cycles of custom kernels (attention on TPUs);
to its own are added the larger of what matrix units do in them, filled up to whole units, at peak and their traffic at
full bandwidth.  That is a lower bound of a kernel's time, never compared with a TPU, so utilisation is a range: with
kernels at that bound, and with kernels that reach ``kernel_efficiency`` of it.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jax.sharding import Mesh

from medvfm_jax.adapters import Count
from medvfm_jax.models.backend import compiling_for
from medvfm_jax.parallel.mesh import make_mesh
from medvfm_jax.parallel.rules import RULES
from medvfm_jax.parallel.shardings import images_over
from medvfm_jax.plan.abstract_training import Abstract, abstract_training, lower
from medvfm_jax.plan.chips import Chip
from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.plan.flops import Flops, training_flops
from medvfm_jax.plan.hlo import Collective, Program, analyse
from medvfm_jax.plan.topologies import devices_of
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.plan import CohortPlanConfig, PlanConfig
from medvfm_jax.train.base_model import entry_of

Advice = Callable[[Any, Mesh, Count], str]

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes per device.  peak: arguments + results that are no arguments' + temporaries + program.

    If the compiler refuses, it says only what it would need, perhaps of temporaries alone: then that is the peak, at
    least, and the parts are None.
    """

    peak: int
    capacity: int
    fits: bool
    arguments: int | None = None
    temporaries: int | None = None


@dataclass(frozen=True)
class Speed:
    """Seconds per step; roofline: the larger of executed FLOPs at peak and traffic at full bandwidth.

    compiler: its own cycles, None where the clock is unknown.  kernels: custom kernels, at least.
    collectives: bytes at the published bandwidth, and ``latency``, the part of it that does not depend on bytes.
    step: max(roofline, compiler + kernels) + collectives.
    utilisation: model FLOPs over what the devices could do in ``step``.
    slow_step, low_utilisation: the same with kernels at ``PlanConfig.kernel_efficiency`` of their bound; on GPUs, where
    kernels are part of the roofline, equal to the former.
    """

    roofline: float
    compiler: float | None
    kernels: float
    collectives: float
    step: float
    utilisation: float
    latency: float
    slow_step: float
    low_utilisation: float


@dataclass(frozen=True)
class Plan:
    """What ``plan`` found; numbers are per device unless stated otherwise.

    Attributes:
        config: what was asked for.
        devices: how many.
        mesh: size of each mesh axis.
        trained: number of trained parameters, in all.
        total: number of parameters, in all.
        memory: bytes, and whether they fit.
        flops: of one step, over all devices.
        program: what was read from the compiled program; None if the compiler refused.
        speed: estimated seconds per step; None without a program or for a CPU.
        advice: what to change first if it does not fit, else None.
        compile_seconds: time the compiler took.
    """

    config: PlanConfig
    devices: int
    mesh: dict[str, int]
    trained: int
    total: int
    memory: Memory
    flops: Flops
    program: Program | None
    speed: Speed | None
    advice: str | None
    compile_seconds: float


class Work(NamedTuple):
    """A program to compile: ready for a mesh, with the counts of what it does in all."""

    lowered: Any
    size: Count
    flops: Flops


def plan(config: PlanConfig) -> Plan:
    """Compile one training step for ``config.topology`` and read the compiler's report; no arrays are allocated.

    Args:
        config: model, adapter, batch, topology, mesh and rules.

    Returns:
        The plan of the step.

    Raises:
        BadPlan: an unknown topology, one whose compiler is not installed, or settings that cannot be planned.
        BadMesh: the mesh does not fit the devices or the batch.
        BadRules: sharding rules that do not fit the parameters.
    """
    return compile_for(config, _step)


def compile_for(
    config: PlanConfig, make: Callable[[PlanConfig, Mesh], Work], advise: Advice | None = None
) -> Plan:
    """Compile the work that ``make`` finds for the mesh of ``config`` and read what the compiler says.

    make: ``(config, mesh)`` -> the work; the batch of this config has a number of parts.

    advise: ``(config, mesh, parameters)`` -> what to change first where it does not fit; by default that of a
    training step.
    """
    if not 0 < config.kernel_efficiency <= 1:
        raise BadPlan(f"kernel_efficiency is {config.kernel_efficiency}; expected more than 0 and at most 1.")
    devices, chip = devices_of(config.topology)
    mesh, backend = make_mesh(config.mesh, devices), "cpu" if chip is None else chip.backend
    config = _with_parts(config, backend, images_over(mesh))
    with compiling_for(backend):
        work = make(config, mesh)
        start = time.perf_counter()
        compiled, memory = _compile(work.lowered, chip)
    seconds = time.perf_counter() - start
    program = None if compiled is None else analyse(compiled.as_text())
    speed = (
        None
        if program is None or chip is None
        else estimate(work.flops, program, chip, len(devices), config.kernel_efficiency)
    )
    advice = None if memory.fits else (advise or advise_step)(config, mesh, work.size)
    return Plan(
        config, len(devices), dict(mesh.shape), work.size.trained, work.size.total, memory, work.flops, program, speed,
        advice, seconds,
    )  # fmt: skip


def _with_parts(config: PlanConfig, backend: str, devices: int) -> PlanConfig:
    """With the parts of a batch that `adapt` takes on such a backend, unless they are given; a round has no parts."""
    if config.accumulate is not None:
        return config
    if isinstance(config, CohortPlanConfig):
        return replace(config, accumulate=1)
    asked = AdaptConfig("-", batch_size=config.global_batch)
    return replace(config, accumulate=asked.resolved_accumulate(entry_of(config.model), backend, devices))


def _step(config: PlanConfig, mesh: Mesh) -> Work:
    rules = RULES[config.rules]()
    training = abstract_training(config)
    return Work(lower(training, rules, mesh, config.sums), training.size, count_flops(training))


def count_flops(training: Abstract) -> Flops:
    """FLOPs of one compiled step over all devices; model FLOPs are counted on the form without custom kernels."""

    def count() -> Flops:
        def loss(*arguments: Any) -> Any:  # a new function each time, or jax would trace once for both forms
            return training.loss(*arguments)

        return training_flops(loss, training.params, training.state.delta, training.batch, training.state.key)

    flops = count()
    if not flops.kernels:
        return flops
    with compiling_for("accelerator"):  # one without kernels
        return replace(flops, model=count().model)


def estimate(
    flops: Flops, program: Program, chip: Chip, devices: int, kernel_efficiency: float = 1.0
) -> Speed:
    """Seconds per step from counts; collectives are not overlapped with anything.

    kernel_efficiency: share of their lower bound's speed that kernels reach at worst.
    """
    roofline = max(flops.executed / devices / chip.flops, program.traffic / chip.bandwidth)
    compiler = None if chip.clock is None else program.cycles / chip.clock
    kernels = 0.0  # the roofline has a GPU's in it; units of 128 columns are those of TPUs
    if chip.backend == "tpu":
        kernels = max(flops.kernels / devices / chip.flops, program.kernel_traffic / chip.bandwidth)
    latency = sum(c.count * _hops(c, chip) * chip.hop for c in program.collectives)
    collectives = sum(c.sent for c in program.collectives) / chip.ici + latency
    fast, slow = (
        max(roofline, (compiler or 0.0) + kernels / share) + collectives for share in (1.0, kernel_efficiency)
    )
    peak = devices * chip.flops
    high, low = (flops.model / (peak * step) for step in (fast, slow))
    return Speed(roofline, compiler, kernels, collectives, fast, high, latency, slow, low)


def _hops(collective: Collective, chip: Chip) -> float:
    """Hops one after the other: half of every side of a torus that is as square as the group can be, both ways.

    Austin et al. 2025, "How to Scale Your Model", part 3.  An all-reduce scatters and gathers.
    """
    if collective.kind == "collective-permute":
        return 1.0
    around = chip.dimensions * collective.group ** (1 / chip.dimensions) / 2
    return 2 * around if collective.kind == "all-reduce" else around


def advise_step(config: PlanConfig, mesh: Mesh, size: Count) -> str:
    """What to change first where a program does not fit: the cheapest change that has not been made yet.

    Recomputing costs a third more time, dividing the weights costs collectives, cutting the batch nothing but the
    use of small products; where none is left, more devices or a smaller batch.
    """
    each = config.global_batch // (images_over(mesh) * config.accumulate)
    weights = 4 * size.total
    if config.keep == "everything":
        return "--keep products: everything is kept for the whole backward pass"
    if config.keep == "products" and each == 1:
        return "--keep nothing: results of products are kept for the whole backward pass"
    if config.rules == "replicated" and weights > 2**30 and size.trained > size.total / 2:
        return "--rules fsdp: weights, gradients and moments are whole on every device"
    if each > 1:
        return f"--accumulate {2 * config.accumulate}: every device works on {each} images at once"
    if config.rules == "replicated" and weights > 2**30:
        return "--rules fsdp: the weights are whole on every device"
    return "a smaller --image-size, --dtype bfloat16, or chips with more memory"


def _compile(lowered: Any, chip: Chip | None) -> tuple[Any, Memory]:
    capacity = _capacity(chip)
    try:
        compiled = lowered.compile()
    except Exception as error:  # XLA raises its own kinds
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        return None, Memory(needed, capacity, fits=False)
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    code = found.generated_code_size_in_bytes
    peak = found.argument_size_in_bytes + results + found.temp_size_in_bytes + code
    return compiled, Memory(
        peak, capacity, peak <= capacity, found.argument_size_in_bytes, found.temp_size_in_bytes
    )


def out_of_memory(message: str) -> int | None:
    """Bytes per device a program would need at least, from the compiler's refusal; None if that is not what it says."""
    if "RESOURCE_EXHAUSTED" not in message or "memory" not in message:
        return None
    sizes = re.findall(r"\b([\d.]+)([KMGT])i?B?\b", message.splitlines()[0])
    return max((round(float(number) * _UNITS[unit]) for number, unit in sizes), default=None)


def _capacity(chip: Chip | None) -> int:
    """Bytes a program may use: of a GPU the share that JAX takes when it starts."""
    if chip is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75)) if chip.backend == "gpu" else 1.0
    return round(chip.hbm * share)
