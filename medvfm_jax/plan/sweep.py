"""The best way to run a training step on given devices: compile the sensible ways, few of them, and compare.

A candidate is a mesh, rules, parts of the batch, and what is kept for the backward pass.  Sensible means: ``data``
divides the batch; with one device per copy of the model, parameters are replicated or sharded over ``data``
(``replicated``, ``fsdp``), on a large slice within groups (``fsdp_mesh``); a ``model`` axis, which must divide the
encoder's heads, comes with ``tensor`` alone, because the other rules would leave its devices to do the same work
twice; parts are 1, 2, 4, ... up to one image per device.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from medvfm_jax.plan.abstract_training import KEEP, abstract_training
from medvfm_jax.plan.errors import BadPlan
from medvfm_jax.plan.step_plan import Plan, plan
from medvfm_jax.plan.topologies import devices_of, fsdp_mesh
from medvfm_jax.settings.plan import PlanConfig
from medvfm_jax.train.base_model import entry_of
from medvfm_jax.types import MedvfmError


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate: a plan, or the reason why there is none."""

    config: PlanConfig
    plan: Plan | None
    reason: str | None = None
    refused_by_compiler: bool = False


def candidates(config: PlanConfig, devices: int) -> list[PlanConfig]:
    """Every sensible way to run ``config`` on so many devices, likeliest first.

    Order: few parts before many (each part costs time); little kept before much (which needs more
    memory); no ``model`` axis before one (it costs collectives), small ones first; whole parameters before divided.
    Raises BadPlan if there is none.
    """
    batch, heads = config.global_batch, _heads(config.model)
    found = []
    for model in (size for size in range(1, devices + 1) if devices % size == 0 and heads % size == 0):
        data = devices // model
        if batch % data:
            continue
        rules = ("tensor",) if model > 1 else ("replicated", "fsdp") if data > 1 else ("replicated",)
        parts = [2**i for i in range((batch // data).bit_length()) if batch // data % 2**i == 0]
        keeping = KEEP if "remat" in entry_of(config.model).options else ("everything",)
        mesh = f"data={data}" + (f",model={model}" if model > 1 else "")
        meshes = {"fsdp": fsdp_mesh(config.topology, devices)}
        found += [
            dataclasses.replace(config, mesh=meshes.get(rule, mesh), rules=rule, accumulate=part, keep=keep)
            for rule in rules
            for part in parts
            for keep in keeping
        ]
    if not found:
        raise BadPlan(
            f"No mesh of {devices} devices suits {batch} images per step and the {heads} heads of {config.model}; "
            f"choose a batch that is a multiple of {devices}."
        )
    return sorted(
        found, key=lambda c: (c.accumulate, KEEP.index(c.keep))
    )  # stable: mesh and rules stay in order


def sweep(
    config: PlanConfig, most: int, compile_one: Callable[[PlanConfig], Plan] = plan
) -> Iterator[Outcome]:
    """One Outcome per candidate as soon as it is known, at most ``most`` of them compiled, in a loop over equal blocks.

    Where the best of them fits, it is compiled once more with every block on its own.

    Not compiled, with the reason: more kept where less does not fit; where time can be estimated, more
    parts where fewer fit, which can only be slower; and what is left when ``most`` are compiled. A candidate that a
    rule, the mesh or the compiler refuses does not end the sweep; settings that no candidate could have do.

    Raises BadPlan, and what ``abstract_training`` and ``devices_of`` raise.
    """
    if most < 1:
        raise BadPlan(f"most is {most}; expected at least 1.")
    devices, chip = devices_of(config.topology)
    loops = "scan_blocks" in entry_of(config.model).options
    ways = [dataclasses.replace(way, scan_blocks=loops) for way in candidates(config, len(devices))]
    abstract_training(config)
    outcomes: list[Outcome] = []
    compiled = 0
    for way in ways:
        reason = _needless(way, outcomes, timed=chip is not None)
        if reason is None and compiled == most:
            reason = f"{most} programs are compiled already (--most)"
        outcome = Outcome(way, None, reason) if reason else _attempt(way, compile_one)
        compiled += outcome.plan is not None or outcome.refused_by_compiler
        outcomes.append(outcome)
        yield outcome
    best = ranked(outcomes)
    if loops and best and best[0].memory.fits:
        yield _attempt(dataclasses.replace(best[0].config, scan_blocks=False), compile_one)


def ranked(outcomes: Sequence[Outcome]) -> list[Plan]:
    """Plans, best first: those that fit, by estimated step, or by peak memory where there is none; then the others."""
    plans = [outcome.plan for outcome in outcomes if outcome.plan is not None]

    def key(found: Plan) -> tuple[bool, float, int]:
        step = found.speed.step if found.speed is not None else math.inf
        return not found.memory.fits, step, found.memory.peak

    return sorted(plans, key=key)


def words(config: PlanConfig) -> str:
    """The options that make ``medvfm plan`` compile this candidate."""
    return " ".join([f"--{name.replace('_', '-')}" + _value(value) for name, value in _said(config)])


def _said(config: PlanConfig) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(PlanConfig):
        value = getattr(config, field.name)
        if field.name == "set":
            yield from (("set", shlex.quote(assignment)) for assignment in value)
        elif field.name in ("model", "adapter", "topology", "global_batch") or value != field.default:
            yield field.name, value


def _value(value: Any) -> str:
    return "" if value is True else f" {value}"


def _needless(way: PlanConfig, outcomes: Sequence[Outcome], *, timed: bool) -> str | None:
    """Why compiling it would teach nothing, given what is known."""
    for before in outcomes:
        if before.plan is None or (before.config.mesh, before.config.rules) != (way.mesh, way.rules):
            continue
        known, fits = before.config, before.plan.memory.fits
        more = KEEP.index(way.keep) - KEEP.index(known.keep)
        if more > 0 and known.accumulate == way.accumulate and not fits:
            return f"it does not fit even with --keep {known.keep}"
        if timed and more == 0 and known.accumulate < way.accumulate and fits:
            return f"it fits in {known.accumulate} part{'s' * (known.accumulate > 1)}, which is faster"
    return None


def _attempt(way: PlanConfig, compile_one: Callable[[PlanConfig], Plan]) -> Outcome:
    try:
        return Outcome(way, compile_one(way))
    except MedvfmError as error:
        return Outcome(way, None, " ".join(str(error).split()))
    except jax.errors.JaxRuntimeError as error:  # the compiler's
        return Outcome(way, None, f"the compiler refuses: {str(error).strip().splitlines()[0][:200]}", True)
    finally:
        jax.clear_caches()  # traces of a large model are not needed again and hold memory


def _heads(model: str) -> int:
    """Heads per block of the image encoder, 1 where the rules for a model axis know no blocks."""
    return entry_of(model).heads
