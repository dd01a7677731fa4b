"""Predictions beside measurements of a grid of runs, as one page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvfm_jax.report.page import framed, publish
from medvfm_jax.report.scatter import Point, scatter
from medvfm_jax.report.sections import section
from medvfm_jax.report.words import text
from medvfm_jax.theory.runs.ablate import failures

PAGE = "ablation.html"


def write_ablation(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write the page beside the table.

    Args:
        folder: of the ablation.
        record: its table, as ablation.json holds it.

    Returns:
        The file; an earlier page is replaced, no other file is.

    Raises:
        NoPlaceForReport: the file is no report or cannot be written.
    """
    cells, agreement = record["cells"], record["agreement"]
    failed = [
        f"<li>{text(cell)}, {text(what)}: {text(why)}</li>" for cell, what, why in failures(record["failed"])
    ]
    body = (
        section("Do predictions have the measured order?", _agreement(record), _LEAD)
        + section("Predicted and measured", _plots(cells, agreement), missing="No cell has both.")
        + section("Cells", _cells(cells))
        + section("Failed", f"<ul>{''.join(failed)}</ul>" if failed else "")
    )
    scored, lost = sum(len(cell["dice"]) for cell in cells), len(record["failed"])
    lead = f"{len(cells)} cells, {scored} runs scored, {lost} failures"
    path = folder / PAGE
    publish(path, framed(f"Ablation {folder.name}", lead, body))
    return path


_LEAD = (
    "Spearman's correlation of each number, computed before training, with the mean Dice of the cells; interval from "
    "resampled cells; p: share of all orders of the cells that agree or disagree as much. Cost: seconds of the tool "
    "over those of training and scoring."
)


_FIGURE = "display: inline-block; width: 26rem; max-width: 100%; margin: 0.5rem"


def _agreement(record: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{text(name)}</td>{_number(found['rho'], '+.2f')}"
        f"<td>{_span(found)}</td>{_number(found['p'], '.3f')}<td>{found['n']}</td></tr>"
        for name, found in record["agreement"].items()
    ]
    cost = ", ".join(f"{text(name)} {100 * share:.1f} %" for name, share in record["cost"].items())
    head = "<tr><th>number</th><th>correlation</th><th>95 % interval</th><th>p</th><th>cells</th></tr>"
    return (
        f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table><p>Cost: {cost}</p>"
        if rows
        else ""
    )


def _span(found: Mapping[str, Any]) -> str:
    return "none" if found["low"] is None else f"{found['low']:+.2f} to {found['high']:+.2f}"


def _number(value: float | None, form: str) -> str:
    return f"<td>{'none' if value is None else format(value, form)}</td>"


def _plots(cells: list[Mapping[str, Any]], agreement: Mapping[str, Any]) -> str:
    plots = []
    for name in agreement:
        points = [
            Point(cell["name"], cell["predicted"][name]["value"], cell["mean"], cell["error"])
            for cell in cells
            if name in cell["predicted"] and cell["mean"] is not None
        ]
        if points:
            plots.append(f'<figure style="{_FIGURE}">{scatter(name, points, name, "Dice")}</figure>')
    return "".join(plots)


def _cells(cells: list[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for cell in cells for name in cell["predicted"]))
    head = "".join(f"<th>{text(word)}</th>" for word in ("cell", *names, "Dice", "seeds", "test cases"))
    rows = []
    for cell in sorted(cells, key=lambda cell: -(cell["mean"] or 0)):
        numbers = "".join(_number(cell["predicted"].get(name, {}).get("value"), ".3g") for name in names)
        error = "" if cell["error"] is None else f" ± {cell['error']:.4f}"
        dice = "none" if cell["mean"] is None else f"{cell['mean']:.4f}{error}"
        rows.append(
            f"<tr><td>{text(cell['name'])}</td>{numbers}<td>{dice}</td><td>{len(cell['dice'])}</td>"
            f"<td>{cell['cases']}</td></tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
