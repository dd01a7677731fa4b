"""`bench`: every row alone for memory, then all of them, the machine's ceilings and the peer in turns for time."""

import contextlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from medvfm_jax.bench import machine, peer, rows
from medvfm_jax.bench.alone import alone
from medvfm_jax.bench.turns import take_turns, timed
from medvfm_jax.models import catalog
from medvfm_jax.settings.bench import BadBench, BenchConfig, RowName
from medvfm_jax.types import ModelSpec
from medvfm_jax.weights.registry import model_of

Key = tuple[str, RowName]
_PRODUCT, _COPY = "product", "copy"


@dataclass(frozen=True)
class RowResult:
    """One line of the table; seconds: of every round, of one call.

    share: of the best matrix product of the run, of the median call; None where nothing is counted.  first_s and
    peak_mib: of a fresh process (peak_of "process" or "device").  peer_over_ours: the median over rounds, above 1 is
    faster than the peer.
    """

    model: str
    row: RowName
    measures: str
    pixels: int
    images: int
    seconds: list[float]
    median_s: float
    images_per_s: float
    gflop: float | None
    share: float | None
    first_s: float | None
    peak_mib: float | None
    peak_of: str | None
    peer_seconds: list[float] | None
    peer_over_ours: float | None
    note: str | None


@dataclass(frozen=True)
class BenchResult:
    """Rows, and the machine in the same minutes.  comparison: what they are compared with, or why with nothing.

    product_gflop_per_s and copy_gb_per_s: {"best", "median"} over rounds.
    """

    config: BenchConfig
    environment: dict[str, Any]
    backend: str
    product_gflop_per_s: dict[str, float]
    copy_gb_per_s: dict[str, float]
    comparison: str
    rows: list[RowResult]


def bench(
    config: BenchConfig,
    say: Callable[[str], None] = lambda text: None,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> BenchResult:
    """Measure as configured; say: one line about what happens next; track: wraps the rounds.

    Raises UnknownModel, BadBench, and what a row raises when it is built.
    """
    keys = [(name, row) for name in config.models for row in config.rows_of(spec_of(name))]
    environment, batch = machine.environment(), config.resolved_batch
    lonely: dict[Key, dict[str, Any]] = {}
    for model, row in () if config.quick else keys:  # first, while this process holds no accelerator
        say(f"{model} {row}: alone in a fresh process, for memory and the first call")
        lonely[model, row] = alone(model, row, batch, config.dtype)
    ours: dict[Key, rows.Row] = {}
    for name in config.models:
        given = rows.subject(name, config.dtype)
        for model, row in keys:
            if model == name:
                say(f"{model} {row}: compiling")
                ours[model, row] = rows.build(row, given, batch)
                ours[model, row].call()
    ceilings = {_PRODUCT: machine.product(config.dtype), _COPY: machine.copy()}
    with contextlib.ExitStack() as stack:
        theirs, comparison, notes = _peer_clocks(config, keys, stack, say)
        clocks: dict[Any, Callable[[], float]] = {}
        for key, row in ours.items():  # neighbours: the two times of a ratio belong to the same moment
            clocks[key] = timed(row.call)
            if key in theirs:
                clocks["peer", *key] = theirs[key]
        clocks |= {name: timed(ceiling.call) for name, ceiling in ceilings.items()}
        seconds = take_turns(clocks, track(range(config.resolved_rounds)))
    rates = {name: _rates(ceiling.amount, seconds[name]) for name, ceiling in ceilings.items()}
    results = [
        _result(
            key, row, seconds[key], seconds.get(("peer", *key)), rates[_PRODUCT], lonely.get(key, {}), notes
        )
        for key, row in ours.items()
    ]
    return BenchResult(
        config, environment, jax.default_backend(), rates[_PRODUCT], rates[_COPY], comparison, results
    )


def _peer_clocks(
    config: BenchConfig, keys: Sequence[Key], stack: contextlib.ExitStack, say: Callable[[str], None]
) -> tuple[dict[Key, Callable[[], float]], str, dict[Key, str]]:
    """Clocks of the rows the peer can do, what the comparison is, and {row: why it is not compared}."""
    if reason := _no_peer(config):
        return {}, f"not compared with {peer.NAME}: {reason}", {}
    running = stack.enter_context(peer.started())
    clocks: dict[Key, Callable[[], float]] = {}
    notes: dict[Key, str] = {}
    for key in keys:
        say(f"{' '.join(key)}: {peer.NAME}")
        try:
            running.prepare(*key, config.resolved_batch)
        except peer.Lost as error:
            notes[key] = f"{peer.NAME}: {error}"
        else:
            clocks[key] = lambda key=key: running.run(*key)
    return clocks, f"compared with eager {peer.NAME} in turns, in a process of its own", notes


def _no_peer(config: BenchConfig) -> str | None:
    if config.without_pytorch:
        return "as asked"
    if config.dtype != "float32" or jax.default_backend() != "cpu":
        return "its rows are in float32 on a CPU"
    return peer.missing()


def _rates(amount: float, seconds: Sequence[float]) -> dict[str, float]:
    """Giga per second."""
    rates = [amount / s / 1e9 for s in seconds]
    return {"best": max(rates), "median": statistics.median(rates)}


def _result(
    key: Key,
    row: rows.Row,
    seconds: list[float],
    peer_seconds: list[float] | None,
    product: Mapping[str, float],
    lonely: Mapping[str, Any],
    notes: Mapping[Key, str],
) -> RowResult:
    (model, name), median = key, statistics.median(seconds)
    gflop = None if row.flop is None else row.flop / 1e9
    ratio = None
    if peer_seconds is not None:
        ratio = statistics.median(theirs / ours for theirs, ours in zip(peer_seconds, seconds, strict=True))
    on_device = lonely.get("device_peak_mib")
    peak = on_device if on_device is not None else lonely.get("peak_mib")
    words = [lonely[word] for word in ("failed",) if word in lonely] + [
        notes[word] for word in (key,) if word in notes
    ]
    return RowResult(
        model=model,
        row=name,
        measures=rows.MEASURES[name],
        pixels=spec_of(model).input_size,
        images=row.images,
        seconds=seconds,
        median_s=median,
        images_per_s=row.images / median,
        gflop=gflop,
        share=None if gflop is None else gflop / median / product["best"],
        first_s=lonely.get("first_s"),
        peak_mib=peak,
        peak_of=None if peak is None else "process" if on_device is None else "device",
        peer_seconds=peer_seconds,
        peer_over_ours=ratio,
        note="; ".join(words) or None,
    )


def spec_of(name: str) -> ModelSpec:
    """What a model is; raises UnknownModel, and BadBench for one that takes no prompts."""
    spec = catalog.MODELS[model_of(name)].spec
    if spec.task != "promptable":
        raise BadBench(
            f"Model '{name}' takes no prompts; the rows are for models that do, such as lite-medsam."
        )
    return spec
