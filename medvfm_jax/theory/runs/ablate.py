"""A grid of runs: predictions of each cell before its training, what was measured, and whether the orders agree."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from medvfm_jax.metrics.summary import summarise
from medvfm_jax.predict import evaluate
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.settings_record import settings_digest
from medvfm_jax.settings import AdaptConfig, EvaluateConfig
from medvfm_jax.settings.analyze.ablate import AblateConfig, Cell, Grid, folder_of, read_grid
from medvfm_jax.settings.records import BadConfig, to_json
from medvfm_jax.theory.predictors import PREDICTORS
from medvfm_jax.theory.rank_agreement import RankAgreement, rank_agreement
from medvfm_jax.theory.runs.trained_numbers import open_start
from medvfm_jax.train import adapt
from medvfm_jax.train.adaptation import adapt_together
from medvfm_jax.train.loop import NonFiniteLoss
from medvfm_jax.train.together import NotAlike
from medvfm_jax.train.training_data import open_split
from medvfm_jax.types import MedvfmError

TABLE = "ablation.json"
PREDICTIONS = "predictions.json"
TRAINING = "training.json"  # seconds, beside the runs of a cell
SCORING = "scoring.json"  # seconds of the scores of each run
SCORES = "scores_{cases}.json"


class NoScore(MedvfmError, ValueError):
    """A number that is missing or not finite where a table needs one."""


class CellResult(NamedTuple):
    """A cell of the grid.

    Attributes:
        name: what varies.
        predicted: name of a number -> {"value", "error"}, empty where a tool failed.
        dice: of each seed that ended, its mean over patients.
        cases: number of test cases behind each.
        prediction_seconds: tool -> seconds, compilation included.
        training_seconds: of all its seeds, with their evaluation.
    """

    name: str
    predicted: dict[str, dict[str, float | None]]
    dice: dict[int, float]
    cases: int
    prediction_seconds: dict[str, float]
    training_seconds: float

    @property
    def mean(self) -> float:
        """Mean Dice over seeds, NaN without any."""
        return float(np.mean(list(self.dice.values()))) if self.dice else float("nan")

    @property
    def error(self) -> float:
        """Standard error of the mean over seeds, NaN with fewer than two."""
        values = list(self.dice.values())
        return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


class AblationResult(NamedTuple):
    """Predictions beside measurements.

    Attributes:
        cells: of the grid, in its order.
        agreement: name of a number -> Spearman's correlation with the mean Dice over the cells that have both.
        cost: tool -> its seconds over those of training and scoring, over all cells.
        failed: {"cell", "seed" or "tool", "why"} of everything that did not end.
        folder: where the runs and the table lie.
    """

    cells: tuple[CellResult, ...]
    agreement: dict[str, RankAgreement]
    cost: dict[str, float]
    failed: tuple[dict[str, Any], ...]
    folder: Path

    def record(self) -> dict[str, Any]:
        """As JSON holds it; numbers that are not finite are None."""
        return run_directory.finite(
            {
                "cells": [cell._asdict() | {"mean": cell.mean, "error": cell.error} for cell in self.cells],
                "agreement": {name: found._asdict() for name, found in self.agreement.items()},
                "cost": self.cost,
                "failed": list(self.failed),
            }
        )


def analyze_ablate(config: AblateConfig, say: Callable[[str], None] = lambda text: None) -> AblationResult:
    """Predict, train and score every cell of a grid; what ``config.out`` has of the same grid is kept.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        The table, which is written to ``config.out`` too. What failed is in it and held nothing else up.

    Raises:
        BadConfig: a grid that is none, or of which nothing could be done; the table is written then, too.
        RunExists: ``config.out`` has a run of other settings or data under the name of a cell.
        MedvfmError: a folder that cannot be written.
    """
    grid = read_grid(config)
    tools = {name: PREDICTORS[name] for name in grid.tools}
    data = _data_digests(grid)
    for cell in grid.cells:
        for one in cell.configs:
            run_directory.check_unchanged(one.out, to_json(one), data.get(_data_of(one), ""))
    failed: list[dict[str, Any]] = []
    cells = []
    for number, cell in enumerate(grid.cells, 1):
        say(f"cell {number} of {len(grid.cells)}: {cell.name}")
        predicted, seconds = {}, {}
        for name in tools:
            try:
                found = _predicted(config, cell, name, data.get(_data_of(cell.configs[0]), ""), say)
            except MedvfmError as error:
                failed.append({"cell": cell.name, "tool": name, "why": str(error)})
                say(f"{name} failed: {error}")
            else:
                predicted |= found["scores"]
                seconds[name] = found["seconds"]
        spent = _train(config, cell, failed, say)
        dice, cases = {}, 0
        for one in cell.configs:
            try:
                score, cases, more = _score(config, one)
            except MedvfmError as error:
                if not any(f["cell"] == cell.name and f.get("seed") == one.seed for f in failed):
                    failed.append({"cell": cell.name, "seed": one.seed, "why": str(error)})
                    say(f"seed {one.seed} failed: {error}")
            else:
                dice[one.seed] = score
                spent += more
        cells.append(CellResult(cell.name, predicted, dice, cases, seconds, spent))
    result = AblationResult(tuple(cells), _agreement(cells), _cost(cells), tuple(failed), config.out)
    run_directory.make_folder(config.out)
    run_directory.write_json(config.out / TABLE, result.record())
    if not any(cell.predicted or cell.dice for cell in cells):
        cell, what, why = failures(failed)[0]
        raise BadConfig(
            f"Nothing could be done of any cell of {config.grid}; {config.out / TABLE} lists why. The first is {cell}, "
            f"{what}: {why}"
        )
    return result


def failures(failed: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What failed, the same reason once for each cell.

    Args:
        failed: as ``AblationResult`` has it.

    Returns:
        (Cell, tools and seeds in words, reason) in the order in which they failed first.
    """
    whats: dict[tuple[str, str], list[str]] = {}
    for one in failed:
        what = f"tool {one['tool']}" if one.get("tool") else f"seed {one['seed']}"
        whats.setdefault((one["cell"], one["why"]), []).append(what)
    return [(cell, ", ".join(what), why) for (cell, why), what in whats.items()]


def _agreement(cells: Sequence[CellResult]) -> dict[str, RankAgreement]:
    names = dict.fromkeys(name for cell in cells for name in cell.predicted)
    found = {}
    for name in names:
        both = [cell for cell in cells if name in cell.predicted and cell.dice]
        found[name] = rank_agreement(
            [cell.predicted[name]["value"] for cell in both], [cell.mean for cell in both]
        )
    return found


def _cost(cells: Sequence[CellResult]) -> dict[str, float]:
    names = dict.fromkeys(name for cell in cells for name in cell.prediction_seconds)
    return {
        name: sum(cell.prediction_seconds.get(name, 0) for cell in cells) / whole
        for name in names
        if (whole := sum(cell.training_seconds for cell in cells if name in cell.prediction_seconds)) > 0
    }


def _data_of(one: AdaptConfig) -> tuple[Any, ...]:
    """The settings that decide which files are the data of a run."""
    return one.data, one.objects, one.annotated, one.allow_geometry_mismatch, one.follow_links


def _data_digests(grid: Grid) -> dict[tuple[Any, ...], str]:
    """Of the files of each dataset that can be read; one that cannot fails in its cells."""
    found: dict[tuple[Any, ...], str] = {}
    for one in (one for cell in grid.cells for one in cell.configs):
        if _data_of(one) not in found:
            with contextlib.suppress(MedvfmError):
                found[_data_of(one)] = open_split(
                    one.data, seed=one.seed, val=one.val_fraction, test=one.test_fraction, fold=one.fold,
                    offline=one.offline, allow_geometry_mismatch=one.allow_geometry_mismatch,
                    follow_links=one.follow_links, objects=one.objects, annotated=one.annotated,
                ).sha256  # fmt: skip
    return found


def _predicted(
    config: AblateConfig, cell: Cell, name: str, data: str, say: Callable[[str], None]
) -> Mapping[str, Any]:
    """Of one tool, from the folder of the cell where it is there for as many cases of the same settings and data."""
    path = folder_of(config, cell) / PREDICTIONS
    known = run_directory.read_record(path) if path.exists() else {}
    settings = settings_digest({**to_json(cell.configs[0]), "data_sha256": data})
    key = f"{name}, {config.cases} cases, settings {settings[:16]}"
    if key not in known:
        say(f"predicting by {name}")
        start = time.monotonic()
        one = AdaptConfig(
            **{
                **vars(cell.configs[0]),
                "batch_size": 1,
                "accumulate": None,
                "augment": "none",
                "embeddings": "off",
            }
        )
        opened = open_start(one, config.cases, say)
        scores = {
            column: {"value": value, "error": error}
            for column, (value, error) in PREDICTORS[name].scores(opened).items()
        }
        for column, score in scores.items():
            if not math.isfinite(score["value"]):
                raise NoScore(f"Its {column} is not finite; check the data (medvfm check) and the weights.")
        run_directory.make_folder(path.parent)
        known = {**known, key: {"scores": scores, "seconds": time.monotonic() - start}}
        run_directory.write_json(path, known)
    return known[key]


def _train(
    config: AblateConfig, cell: Cell, failed: list[dict[str, Any]], say: Callable[[str], None]
) -> float:
    """Train the seeds that are not there yet, together where they can; returns the seconds of all so far."""
    missing = [one for one in cell.configs if not (one.out / run_directory.DELTA).exists()]
    path = folder_of(config, cell) / TRAINING
    spent = float(run_directory.read_record(path)["seconds"]) if path.exists() else 0.0
    if not missing:
        return spent
    start = time.monotonic()

    def lost(one: AdaptConfig, error: MedvfmError) -> None:
        failed.append({"cell": cell.name, "seed": one.seed, "why": str(error)})
        say(f"seed {one.seed} failed: {error}")

    for group in [[one] for one in missing] if config.apart else [missing]:
        try:
            ended = adapt_together(group, say) if len(group) > 1 else [adapt(group[0])]
        except NotAlike as error:
            say(f"{error} They train one after the other.")
            for one in group:
                try:
                    adapt(one)
                except MedvfmError as why:
                    lost(one, why)
        except MedvfmError as error:
            for one in group:
                lost(one, error)
        else:
            for one, result in zip(group, ended):
                if isinstance(result, NonFiniteLoss):
                    lost(one, result)
    spent += time.monotonic() - start
    run_directory.make_folder(path.parent)  # where nothing got as far as its own folder
    run_directory.write_json(path, {"seconds": spent})
    return spent


def _score(config: AblateConfig, one: AdaptConfig) -> tuple[float, int, float]:
    """(Mean Dice over patients, cases, seconds of the scoring, now or earlier)."""
    out = one.out / SCORES.format(cases=config.test_cases or "all")
    path = one.out / SCORING
    seconds = run_directory.read_record(path) if path.exists() else {}
    start = time.monotonic()
    if not out.exists():
        quiet = Console(quiet=True)
        settings = EvaluateConfig(
            run=one.out, cases=config.test_cases, save_predictions=False, out=out, offline=one.offline
        )
        evaluate(settings, quiet)
        seconds = {**seconds, out.name: time.monotonic() - start}
        run_directory.write_json(path, seconds)
    rows = run_directory.read_record(out)["cases"]
    summary = summarise(rows, seed=0)["summary"]
    dice = next(row for row in summary if row["metric"] == "dice")
    if dice["mean"] is None or not math.isfinite(dice["mean"]):
        raise NoScore("No test case has a Dice; give more --test-cases.")
    return float(dice["mean"]), int(dice["n_cases"]), float(seconds.get(out.name, 0))
