"""The outcomes of `medvfm plan --sweep` as a line each, as a table, and as JSON."""

from collections.abc import Sequence
from typing import Any

from medvfm_jax.cli import console
from medvfm_jax.plan.step_plan import Plan, Speed
from medvfm_jax.plan.sweep import Outcome, ranked, words
from medvfm_jax.settings.plan import PlanConfig

_COLUMNS = ("mesh", "rules", "parts", "kept", "peak GiB", "fits", "step ms", "images/s", "use of peak")
_MOST_NAMES = 4  # of candidates that share a reason


def one_line(outcome: Outcome) -> str:
    """A candidate and what became of it."""
    if outcome.plan is None:
        return f"  {_name(outcome.config)}: no plan, {outcome.reason}"
    memory, speed = outcome.plan.memory, outcome.plan.speed
    time = "" if speed is None else f", step {1e3 * speed.step:,.1f} ms"
    fits = "fits" if memory.fits else f"does not fit {memory.capacity / 2**30:.1f} GiB"
    return (
        f"  {_name(outcome.config)}: {memory.peak / 2**30:.2f} GiB, {fits}{time} "
        f"(compiled in {outcome.plan.compile_seconds:.0f} s)"
    )


def describe_sweep(outcomes: Sequence[Outcome]) -> str:
    """Plans, best first, then what is not among them and why, then how to have the best one in full."""
    plans = ranked(outcomes)
    lines = [console.table(_COLUMNS, [_row(found) for found in plans])] if plans else []
    left = [outcome for outcome in outcomes if outcome.plan is None]
    if left:
        lines += ["not in the table:"]
        lines += [f"  {outcome.reason}: {_names(same)}" for outcome, same in _by_reason(left)]
    timed = any(found.speed is not None for found in plans)
    if plans and plans[0].memory.fits:
        by = "fastest estimated step" if timed else "least memory; there is no estimate of time for a CPU"
        lines.append(f"best ({by}): medvfm plan {words(plans[0].config)}")
    elif plans:
        lines.append(
            "none of them fits; " + (f"try {plans[0].advice}" if plans[0].advice else "try more devices")
        )
    else:
        lines.append("no program was compiled")
    return "\n".join(lines)


def as_record(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """plans: best first, as `medvfm plan --json` gives them; others: those without a plan, with the reason."""
    plans = ranked(outcomes)
    best = words(plans[0].config) if plans and plans[0].memory.fits else None
    others = [{"config": o.config, "reason": o.reason} for o in outcomes if o.plan is None]
    return {
        "best": best,
        "plans": [console.plain(p) for p in plans],
        "others": [console.plain(o) for o in others],
    }


def _row(found: Plan) -> list[str]:
    config, memory, speed = found.config, found.memory, found.speed
    row = [
        config.mesh,
        config.rules,
        str(config.accumulate),
        config.keep + ", in a loop" * config.scan_blocks,
        f"{memory.peak / 2**30:.2f}" if memory.arguments is not None else f">= {memory.peak / 2**30:.2f}",
        "yes" if memory.fits else "no",
    ]
    if speed is None:
        return [*row, "", "", ""]
    return [
        *row,
        f"{1e3 * speed.step:,.1f}",
        f"{config.global_batch / speed.step:,.0f}",
        _utilisation(speed),
    ]


def _utilisation(speed: Speed) -> str:
    """A range, from kernels at their assumed worst to kernels at their bound; of a GPU, which has none, a bound."""
    low, high = (round(100 * share) for share in (speed.low_utilisation, speed.utilisation))
    if speed.compiler is None:
        return f"<= {high} %"
    return f"{high} %" if low == high else f"{low}-{high} %"


def _name(config: PlanConfig) -> str:
    parts = f"{config.accumulate} part{'s' * (config.accumulate > 1)}"
    return f"{config.mesh} {config.rules}, {parts}, {config.keep} kept" + ", in a loop" * config.scan_blocks


def _names(outcomes: Sequence[Outcome]) -> str:
    shown = [_name(outcome.config) for outcome in outcomes[:_MOST_NAMES]]
    return "; ".join(shown) + (f"; and {more} more" if (more := len(outcomes) - len(shown)) else "")


def _by_reason(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, list[Outcome]]]:
    groups: dict[str | None, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.reason, []).append(outcome)
    return [(same[0], same) for same in groups.values()]
