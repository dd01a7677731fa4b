"""`medvfm plan`: whether a training step fits a machine and how fast it would be there, before anyone rents it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import fields

import jax

from medvfm_jax.cli import console
from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.options.plan import PlanArgs
from medvfm_jax.cli.plan_table import as_record, describe_sweep, one_line
from medvfm_jax.plan.round_plan import plan_cohort
from medvfm_jax.plan.step_plan import Memory, Plan, Speed, plan
from medvfm_jax.plan.sweep import Outcome, ranked, sweep
from medvfm_jax.plan.topologies import fsdp_mesh
from medvfm_jax.settings.plan import CohortPlanConfig, PlanConfig

_CHOSEN_BY_A_SWEEP = ("mesh", "rules", "accumulate", "keep", "scan_blocks")


def run(args: PlanArgs) -> int:
    """Compile and print; exit code 1 if it does not fit, or nothing of a sweep does."""
    config = _config(args)
    if args.sweep:
        _refuse_fixed(config)
    if args.topology != "cpu":
        jax.config.update("jax_platforms", "cpu")  # not the devices a plugin would drive
    if args.sweep:
        return _sweep(config, args.most)
    console.say(f"compiling {args.model} with {args.adapter} for {args.topology}; this takes minutes")
    with _without_cache():
        found = plan_cohort(config) if isinstance(config, CohortPlanConfig) else plan(config)
    console.result(found, describe(found))
    return 0 if found.memory.fits else 1


def _config(args: PlanArgs) -> PlanConfig:
    kind = CohortPlanConfig if args.clients else PlanConfig
    if not args.clients and (args.local_steps, args.at_once) != (1, 1):
        raise BadUsage("--local-steps and --at-once are about a federated round; say of how many --clients")
    if args.clients and args.sweep:
        raise BadUsage("--sweep compares meshes of a training step, not of a federated round; leave one out")
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})


def _refuse_fixed(config: PlanConfig) -> None:
    """A sweep chooses these itself: an option that would be ignored is refused."""
    for field in fields(PlanConfig):
        if field.name in _CHOSEN_BY_A_SWEEP and getattr(config, field.name) != field.default:
            raise BadUsage(
                f"--sweep chooses --{field.name.replace('_', '-')} itself; leave one of the two out"
            )


def _sweep(config: PlanConfig, most: int) -> int:
    """Every candidate in a line when it is known, the table at the end; also of what an interruption left."""
    console.say(
        f"compiling at most {most} programs of {config.model} with {config.adapter} for {config.topology}; "
        "each takes minutes"
    )
    outcomes: list[Outcome] = []
    try:
        with _without_cache():
            for outcome in sweep(config, most, plan):
                outcomes.append(outcome)
                if outcome.plan is not None or outcome.refused_by_compiler:
                    console.say(one_line(outcome))
    finally:  # hours of compilations are not thrown away by Ctrl-C
        if outcomes:
            console.result(as_record(outcomes), describe_sweep(outcomes))
    best = ranked(outcomes)
    return 0 if best and best[0].memory.fits else 1


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Programs for devices that are not here cannot be kept, and a program from the cache has no text to read."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def describe(found: Plan) -> str:
    """The plan as a table of lines."""
    memory, flops, config = found.memory, found.flops, found.config
    images, what = config.global_batch, "step"
    if isinstance(config, CohortPlanConfig):
        images, what = config.global_batch * config.local_steps, "round"
    mesh = ", ".join(f"{axis}={size}" for axis, size in found.mesh.items() if size > 1) or "one device"
    rows = [
        ("trained", f"{found.trained:,} of {found.total:,} parameters"),
        (
            "devices",
            f"{found.devices} ({mesh}), {images} images per {what}, parameters {config.rules}",
        ),
        ("memory per device", f"{_gib(memory.peak)} of {_gib(memory.capacity)}" + _parts(memory)),
        (
            "model FLOPs",
            f"{_tera(flops.model)} per {what}; executed with recomputation {_tera(flops.executed)}",
        ),
    ]
    if found.program is not None:
        rows.append(("traffic per device", f"{_gib(found.program.traffic)} to and from memory (estimate)"))
        rows += [
            (
                c.kind,
                f"{c.count} among {c.group} devices, {_mib(c.payload)} payload, {_mib(c.sent)} sent per device",
            )
            for c in found.program.collectives
        ]
        if found.program.unknown_loops:
            rows.append(("loops", f"{found.program.unknown_loops} of unknown length count once"))
    if found.speed is not None:
        s = found.speed
        parts = f"roofline {_ms(s.roofline)}"
        parts += "" if s.compiler is None else f", compiler's cycles {_ms(s.compiler)}"
        parts += f" and kernels {_ms(s.kernels)}" if s.kernels else ""
        rows += [
            (
                f"{what} (estimate)",
                f"{_ms(s.step)}: {parts}, collectives {_ms(s.collectives)}, of it latency {_ms(s.latency)}",
            ),
            (
                "utilisation",
                _utilisation(s, images, config.kernel_efficiency),
            ),
        ]
        rows += [
            ("", f"{_ms(spot.cycles / found.program.cycles * s.compiler)} {spot.where}, {_gib(spot.traffic)}")
            for spot in found.program.hotspots
            if s.compiler
        ]
    if found.speed is not None and found.speed.kernels and os.environ.get("MEDVFM_KERNELS") != "1":
        rows.append(
            (
                "note",
                "with attention kernels, which no TPU has run: a run has them with MEDVFM_KERNELS=1 alone",
            )
        )
    if _gathers_decomposed(found):
        better = fsdp_mesh(config.topology, found.devices)
        rows.append(
            (
                "note",
                f"the compiler sums whole arrays instead of gathering them; --mesh {better} gathers in groups",
            )
        )
    rows.append(("compiled in", f"{found.compile_seconds:.0f} s"))
    width = max(len(name) for name, _ in rows)
    cohort = f", {config.clients} clients" if isinstance(config, CohortPlanConfig) else ""
    lines = [f"{config.model} with {config.adapter}{cohort} on {config.topology}"]
    lines += [f"{name.ljust(width)}  {value}" for name, value in rows]
    verdict = "it fits" if memory.fits else f"it does not fit; try {found.advice}"
    return "\n".join([*lines, verdict])


def _gathers_decomposed(found: Plan) -> bool:
    """Whether divided weights travel as sums of whole arrays, which sends them twice."""
    asked, among = found.config, found.mesh["data"]
    collectives = found.program.collectives if found.program else ()
    kinds = {c.kind for c in collectives if c.group == among}
    return (
        asked.rules == "fsdp"
        and "all-reduce" in kinds
        and "all-gather" not in kinds
        and fsdp_mesh(asked.topology, found.devices) != f"data={found.devices}"
    )


def _utilisation(speed: Speed, images: int, kernel_efficiency: float) -> str:
    """As a range where attention kernels, whose time is a bound, take part in it; with its assumption."""
    best = f"{100 * speed.utilisation:.0f} % of peak, {images / speed.step:,.0f} images/s"
    if speed.compiler is None:
        return f"at most {best}: products, memory and links all at their published speed"
    if speed.slow_step == speed.step:
        return f"{best}: the compiler's own cycles, collectives not overlapped"
    return (
        f"{100 * speed.low_utilisation:.0f} to {best}: attention kernels at {100 * kernel_efficiency:.0f} to 100 % "
        "of their bound"
    )


def _parts(memory: Memory) -> str:
    if memory.arguments is None:
        return ""
    return f": arguments {_gib(memory.arguments)}, temporaries {_gib(memory.temporaries)}"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:,.2f} TFLOP" if flops >= 1e10 else f"{flops / 1e6:,.2f} MFLOP"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else _mib(count)


def _mib(count: float) -> str:
    return f"{count / 2**20:,.2f} MiB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"
