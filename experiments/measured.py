"""What was measured of a method: figures of experiments/results/*.json by the method's name, with their links."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
# Where docs/results.md has the table of a file; another file of results is linked as the whole page.
SECTIONS = {
    "nuclei": "nuclei-2018-data-science-bowl",
    "hippocampus": "hippocampus-in-mri-medical-segmentation-decathlon",
    "hippocampus_3d": "hippocampus-in-mri-medical-segmentation-decathlon",
    "five_sites": "five-hospitals",
    "catalogue": "type-of-adapter-and-place",
}


class Figure(NamedTuple):
    """One number of one row of results, with its 95 % interval.

    experiment: name of the file. systems, models: names that the row is a measurement of; what else was set: ``how``.
    """

    experiment: str
    names: frozenset[str]
    mean: float
    low: float
    high: float
    how: str

    def linked(self) -> str:
        """As a cell of a table."""
        anchor = f"#{SECTIONS[self.experiment]}" if self.experiment in SECTIONS else ""
        words = self.experiment.replace("_", " ")
        return f"[Dice {self.mean:.3f}](results.md{anchor}) ({self.low:.3f} to {self.high:.3f}), {words}, {self.how}"


@cache
def figures(folder: Path = RESULTS) -> tuple[Figure, ...]:
    """All figures of a folder of results: rows with a model and the Dice of whole cases, or its mean over sites."""
    return tuple(
        figure
        for path in sorted(folder.glob("*.json"))
        for figure in _of_file(path.stem, json.loads(path.read_text(encoding="utf-8")))
    )


def measured(kind: str, name: str, folder: Path = RESULTS) -> str:
    """The figures of a method, "" where nothing was measured.

    Args:
        kind: "system", "model", "algorithm" or "codec".
        name: of it.
        folder: of results.

    Returns:
        A cell of a table.
    """
    return "; ".join(each.linked() for each in figures(folder) if f"{kind} {name}" in each.names)


def _of_file(experiment: str, record: Mapping[str, Any]) -> Iterator[Figure]:
    rows = record.get("rows")
    if not isinstance(rows, Mapping):
        return  # a benchmark: of programs, not of methods
    settings = record.get("settings_of_rows", {})
    for name, row in rows.items():
        if isinstance(row, Mapping):
            if not row.get("set"):  # options of its own: a measurement of them, not of the method as it comes
                yield from _central(experiment, row)
        else:
            yield from _federated(experiment, settings[name], row)


def _central(experiment: str, row: Mapping[str, Any]) -> Iterator[Figure]:
    model, _, system = row["model"].partition(" + ")
    whole = [s for s in row["summary"] if s["metric"] == "dice" and s["label"] in ("all", "foreground")]
    names = {f"system {system}"} if system else {f"model {model}"}
    if system == "full":
        names |= {f"model {model}"}  # every parameter: a measurement of the model as much as of the system
    trained = f"{row['trained_on']} cases, {row['steps']} steps" if row["steps"] else "zero-shot"
    prompt = "no prompts" if row["prompt"] == "none" else f"prompts: {row['prompt']}"
    for s in whole:
        yield Figure(
            experiment, frozenset(names), s["mean"], s["low"], s["high"], f"`{model}`, {trained}, {prompt}"
        )


def _federated(
    experiment: str, settings: Mapping[str, Any], row: Sequence[Mapping[str, Any]]
) -> Iterator[Figure]:
    names = {f"{kind} {settings[key]}" for kind, key in _SETTINGS.items() if key in settings}
    for seed in row:
        s = seed["over_sites"]
        how = ", ".join(
            [f"`{seed['model'].replace(' + ', '` + `').replace(', ', '`, `')}`", *_others(settings)]
        )
        yield Figure(experiment, frozenset(names), s["mean"], s["low"], s["high"], f"mean over sites, {how}")


_SETTINGS = {"algorithm": "algorithm", "federated system": "preset", "codec": "codec"}


def _others(settings: Mapping[str, Any]) -> Iterator[str]:
    if codec := settings.get("codec"):
        yield f"codec `{codec}`"
    if epsilon := settings.get("dp_epsilon"):
        yield f"epsilon {epsilon:g} per {settings['dp_unit']}"
    yield from (text.replace("=", " ") for text in settings.get("algorithm_set", ()))
    if settings.get("keep_optimizer"):
        yield "moments kept"
