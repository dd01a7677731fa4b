"""The tables of a report: scores, cases, comparison, provenance. Every function returns HTML or ""."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medvfm_jax import metrics
from medvfm_jax.report import words
from medvfm_jax.report.run_record import RunRecord
from medvfm_jax.report.words import DISTANCES, NOTHING, text

_INSTANCES = "instances"
_NAMES_OF_A_CASE = ("case", "patient", "site", "label")
_NOT_SCORES = {*_NAMES_OF_A_CASE, "slice", "unit", "empty"}
_COMPARED = ("dice", "nsd", "hd95", "assd", "iou", "aji", "pq")


def unit_of(scores: Mapping[str, Any]) -> str | None:
    """Unit of the distances, or None when the cases disagree or do not say."""
    units = {row.get("unit") for row in scores.get("cases", []) if row.get("unit")}
    return units.pop() if len(units) == 1 else None


def scores_table(scores: Mapping[str, Any]) -> str:
    """Labels down, metrics across; each cell has mean, 95 % interval, n and median."""
    rows = scores.get("summary", [])
    unit = unit_of(scores)
    groups = [
        [row for row in rows if (row.get("label") == _INSTANCES) == instances] for instances in (False, True)
    ]
    return "".join(_pivot(group, unit) for group in groups if group)


def _pivot(rows: Sequence[Mapping[str, Any]], unit: str | None) -> str:
    found = list(dict.fromkeys(row["metric"] for row in rows))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    cells = {(row["label"], row["metric"]): row for row in rows}
    head = "".join(f"<th>{words.metric_name(m, unit)}{_arrow(m)}</th>" for m in found)
    body = []
    for label in labels:
        shown = "all labels" if label == "all" else label
        row = "".join(_score_cell(cells.get((label, m)), m) for m in found)
        total = ' class="total"' if label == "all" else ""
        body.append(f'<tr{total}><td class="text"><b>{text(shown)}</b></td>{row}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th class="text">label</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _arrow(metric: str) -> str:
    better = "higher" if words.larger_is_better(metric) else "lower"
    return f' <span title="{better} is better">{"↑" if better == "higher" else "↓"}</span>'


def _score_cell(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None:
        return f"<td>{NOTHING}</td>"
    details = f"n {text(row.get('n', NOTHING))}, median {words.score(row.get('median'), metric)}"
    return (
        f"<td><b>{words.score(row.get('mean'), metric)}</b>"
        f"<small>{words.interval(row, metric)}</small><small>{details}</small></td>"
    )


def cases_table(scores: Mapping[str, Any]) -> str:
    """One row per case and label, sortable by each column; "" without cases."""
    rows = scores.get("cases", [])
    if not rows:
        return ""
    names = [n for n in _NAMES_OF_A_CASE if any(row.get(n) not in (None, "") for row in rows)]
    if all(row.get("patient") == row.get("case") for row in rows):
        names = [n for n in names if n != "patient"]
    numbers = list(
        dict.fromkeys(
            k for row in rows for k, v in row.items() if k not in _NOT_SCORES and words.is_number(v)
        )
    )
    empties = any(row.get("empty") for row in rows)
    unit = unit_of(scores)
    head = "".join(f'<th class="text"><button>{text(n)}</button></th>' for n in names)
    head += "".join(f"<th><button>{_case_column(n, unit)}</button></th>" for n in numbers)
    head += '<th class="text"><button>empty</button></th>' if empties else ""
    body = "".join(f"<tr>{_case_row(row, names, numbers, empties)}</tr>" for row in rows)
    return (
        f'<div class="scroll tall"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _case_column(name: str, unit: str | None) -> str:
    return words.metric_name(name, unit) if not name.startswith("volume") else text(name.replace("_", " "))


def _case_row(row: Mapping[str, Any], names: Iterable[str], numbers: Iterable[str], empties: bool) -> str:
    cells = [_text_cell(row.get(n)) for n in names]
    for name in numbers:
        value = row.get(name)
        whole = name.startswith(("n_", "volume"))
        shown = words.count(value) if whole else words.score(value, name)
        cells.append(f'<td data-value="{text(value) if words.is_number(value) else ""}">{shown}</td>')
    if empties:
        cells.append(_text_cell(row.get("empty")))
    return "".join(cells)


def _text_cell(value: object) -> str:
    shown = "" if value is None else text(value)
    return f'<td class="text" data-value="{shown}">{shown}</td>'


def side_by_side(runs: Sequence[RunRecord]) -> str:
    """One row per run: what it is, Dice and further scores over all labels, what it trained."""
    shown = [m for m in _COMPARED if any(run.summary_row(m) for run in runs)][:5]
    unit = next(filter(None, (unit_of(run.scores) for run in runs)), None)
    head = "".join(f"<th>{words.metric_name(m, unit)}{_arrow(m)}</th>" for m in shown)
    body = []
    for run in runs:
        size = run.trained
        trains = words.count(size.get("parameters")) if size else "none"
        share = f"<small>{words.share(size.get('parameters'), size.get('total'))}</small>" if size else ""
        cells = "".join(_score_cell(run.summary_row(m), m) for m in shown)
        body.append(
            f'<tr><td class="text"><b>{text(run.name)}</b><small>{describe(run)}</small></td>'
            f"{cells}<td>{trains}{share}</td></tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr><th class="text">run</th>{head}<th>trained parameters</th>'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def describe(run: RunRecord) -> str:
    """Model, adapter and prompt of a run in a few words, escaped."""
    scores, config = run.scores, run.config
    prompt = scores.get("prompt")
    parts = [
        scores.get("model") or config.get("model"),
        config.get("adapter") if run.trained or not scores else "as it is",
        "no prompt" if prompt == "none" else f"{prompt} prompts" if prompt else None,
        "averaged over flips" if scores.get("flips") else None,
    ]
    return ", ".join(text(part) for part in parts if part)


def paired_differences(runs: Sequence[RunRecord]) -> str:
    """Every pair of runs (first minus earlier), per metric, on the patients both have scores for."""
    body = []
    for a, b in itertools.combinations(runs, 2):
        for metric in _COMPARED:
            if not (a.summary_row(metric) and b.summary_row(metric)):
                continue
            try:
                found = metrics.compare(a.scores.get("cases", []), b.scores.get("cases", []), metric)
            except (metrics.NothingInCommon, metrics.IncompleteRow):
                continue
            body.append(_difference_row(a.name, b.name, metric, found))
    if not body:
        return ""
    head = "<th>n</th><th>difference</th><th>95 % interval</th><th>p (sign flip)</th><th>p (Wilcoxon)</th>"
    return (
        '<div class="scroll"><table><thead><tr><th class="text">comparison</th><th class="text">metric</th>'
        f'{head}<th class="text">reading</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _difference_row(first: str, second: str, metric: str, found: Mapping[str, Any]) -> str:
    return (
        f'<tr><td class="text">{text(second)} <span class="muted">minus</span> {text(first)}</td>'
        f'<td class="text">{words.metric_name(metric)}</td><td>{found["n"]}</td>'
        f"<td><b>{words.score(found['difference'], metric, signed=True)}</b></td>"
        f"<td>{words.interval(found, metric, signed=True)}</td>"
        f"<td>{words.p_value(found['p_permutation'])}</td><td>{words.p_value(found['p_wilcoxon'])}</td>"
        f'<td class="text">{_reading(metric, found)}</td></tr>'
    )


def _reading(metric: str, found: Mapping[str, Any]) -> str:
    low, high = found["low"], found["high"]
    if low is None or high is None:
        return '<span class="muted">too few patients</span>'
    if low <= 0 <= high:
        return '<span class="muted">no clear difference</span>'
    better = (low > 0) == words.larger_is_better(metric)
    return '<span class="good">better</span>' if better else '<span class="bad">worse</span>'


def facts(rows: Iterable[tuple[str, object]], *, code: Sequence[str] = ()) -> str:
    """Two columns, name and value; rows without a value are left out; `code` names values in monospace."""
    body = []
    for name, value in rows:
        if value in (None, "", {}, []):
            continue
        shown = f"<code>{text(value)}</code>" if name in code else text(value)
        body.append(
            f'<tr><td class="text"><span class="muted">{text(name)}</span></td>'
            f'<td class="text wrap">{shown}</td></tr>'
        )
    return f"<table><tbody>{''.join(body)}</tbody></table>" if body else ""


def distances_in(scores: Mapping[str, Any]) -> bool:
    """Whether any distance is among the scores."""
    return any(row.get("metric") in DISTANCES for row in scores.get("summary", []))
