"""A learning curve of `fewshot` as a scaling law, and what it predicts for more patients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.runs import run_directory
from medvfm_jax.settings.analyze.scaling import ScalingConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.scaling_law import BadCurve, ScalingLaw, fit_scaling_law

FLAT = 0.05  # exponent below which a curve is as good as level


class ScalingPoint(NamedTuple):
    """One size.

    Attributes:
        shots: patients.
        measured: mean Dice over seeds, None where it was not measured.
        fitted: whether the law was fitted to it.
        predicted: Dice of the law.
        low: 95 % interval of the prediction, over resampled seeds; None with one seed.
        high: the other end.
    """

    shots: int
    measured: float | None
    fitted: bool
    predicted: float
    low: float | None
    high: float | None


class ScalingResult(NamedTuple):
    """What was found.

    Attributes:
        label: whose Dice.
        law: of 1 - Dice.
        points: measured ones and predicted ones, in order.
        exponent: 95 % interval of the exponent, over resampled seeds; None with one seed.
        floor: the same of the floor.
        seeds: behind each measured point.
    """

    label: str
    law: ScalingLaw
    points: tuple[ScalingPoint, ...]
    exponent: tuple[float, float] | None
    floor: tuple[float, float] | None
    seeds: int


def analyze_scaling(config: ScalingConfig, say: Callable[[str], None] = lambda text: None) -> ScalingResult:
    """Fit 1 - Dice = floor + amplitude * patients ** -exponent, and predict sizes that were not fitted.

    Args:
        config: settings.
        say: told what was left out.

    Returns:
        The law, and at every size what it predicts beside what was measured.

    Raises:
        BadConfig: a file that is no learning curve, or one without this label.
        BadCurve: fewer than three sizes, or a Dice of 1.
    """
    label, shots, dice = _read(config, say)
    use = shots <= (config.fit_up_to or shots[-1])
    if config.fit_up_to and use.sum() < 3:
        raise BadCurve(
            f"Up to {config.fit_up_to} patients the curve has {use.sum()} sizes; a law needs three at least."
        )
    law = fit_scaling_law(shots[use], 1 - dice[use].mean(1))
    means = dice[use].mean(1)
    if means[-1] < means[0]:
        say(
            f"note: Dice falls from {means[0]:.4f} to {means[-1]:.4f} with more patients, which no such law can follow"
        )
    elif law.exponents[0] < FLAT:
        say("note: Dice hardly changes with patients, so that floor and amplitude cannot be told apart")
    asked = config.at or (2 * int(shots[-1]), 4 * int(shots[-1]))
    sizes = np.unique(np.concatenate([shots, np.array(asked, np.int64)]))
    rng = np.random.default_rng(config.seed)
    laws = []
    for _ in range(config.draws):
        picks = rng.integers(dice.shape[1], size=dice[use].shape)
        drawn = 1 - np.take_along_axis(dice[use], picks, 1).mean(1)
        if (drawn > 0).all():
            laws.append(fit_scaling_law(shots[use], drawn, start=law))
    if not laws:
        raise BadCurve("Every resample of the seeds has a size of Dice 1, to which no law can be fitted.")
    if len(laws) < config.draws:
        say(f"note: {config.draws - len(laws)} of {config.draws} resamples have a size of Dice 1; left out")
    several = dice.shape[1] > 1
    spread = np.array([1 - one.at(sizes) for one in laws])
    low, high = np.quantile(spread, (0.025, 0.975), axis=0)
    measured = dict(zip(shots.tolist(), dice.mean(1).tolist()))
    fitted = set(shots[use].tolist())
    points = tuple(
        ScalingPoint(
            int(n), measured.get(int(n)), int(n) in fitted, float(1 - law.at(float(n))),
            *((float(a), float(b)) if several else (None, None)),
        )
        for n, a, b in zip(sizes, low, high)
    )  # fmt: skip

    def interval(values: list[float]) -> tuple[float, float] | None:
        if not several:
            return None
        ends = np.quantile(values, (0.025, 0.975))
        return float(ends[0]), float(ends[1])

    return ScalingResult(
        label, law, points, interval([float(one.exponents[0]) for one in laws]),
        interval([one.floor for one in laws]), dice.shape[1],
    )  # fmt: skip


def _is_row(row: Any) -> bool:
    """Whether it is a size of a learning curve."""
    return (
        isinstance(row, dict)
        and {"shots", "label", "seeds"} <= row.keys()
        and type(row["shots"]) is int
        and isinstance(row["seeds"], list)
    )


def _read(
    config: ScalingConfig, say: Callable[[str], None]
) -> tuple[str, NDArray[np.int64], NDArray[np.float64]]:
    """Label, sizes (z,), Dice (z, seeds)."""
    record = run_directory.read_record(config.curve)
    rows: list[dict[str, Any]] = record.get("curve") or []
    if not rows or not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise BadConfig(
            f"{config.curve} is no learning curve; give learning_curve.json of medvfm fewshot --shots."
        )
    labels = list(dict.fromkeys(str(row["label"]) for row in rows))
    label = labels[0] if config.label == "all" and len(labels) == 1 else config.label
    if label not in labels:
        raise BadConfig(f"{config.curve} has no label {label!r}; it has {', '.join(labels)}.")
    chosen = sorted((row for row in rows if str(row["label"]) == label), key=lambda row: row["shots"])
    whole = [row for row in chosen if all(isinstance(mean, int | float) for mean in row["seeds"])]
    if len(whole) < len(chosen):
        lost = ", ".join(str(row["shots"]) for row in chosen if row not in whole)
        say(f"note: without sizes {lost}, at which a seed has no Dice of {label}")
    if len({row["shots"] for row in whole}) < len(whole):
        raise BadConfig(f"{config.curve} has a size of {label} twice.")
    if len({len(row["seeds"]) for row in whole}) > 1 or not whole or not whole[0]["seeds"]:
        raise BadConfig(f"{config.curve} has sizes with different numbers of seeds.")
    return (
        label,
        np.array([row["shots"] for row in whole], np.int64),
        np.array([row["seeds"] for row in whole], np.float64),
    )
