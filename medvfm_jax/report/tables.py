"""The tables of a report: scores, cases, comparison, provenance. Every function returns HTML or ""."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medvfm_jax import metrics
from medvfm_jax.report import words
from medvfm_jax.report.run_record import RunRecord
from medvfm_jax.report.words import NOTHING, text
from medvfm_jax.settings.runtime import described

_INSTANCES = "instances"
_SIGNIFICANT = 0.05
_NAMES_OF_A_CASE = ("case", "patient", "site", "label")
_NOT_SCORES = {*_NAMES_OF_A_CASE, "slice", "unit", "empty"}
_COMPARED = ("dice", "nsd", "hd95", "aji", "pq", "assd", "iou")


def unit_of(scores: Mapping[str, Any]) -> str | None:
    """Unit of the distances, or None when the cases disagree or do not say."""
    units = {row.get("unit") for row in scores.get("cases") or () if row.get("unit")}
    return str(units.pop()) if len(units) == 1 else None


def scores_table(scores: Mapping[str, Any]) -> str:
    """Labels down, metrics across; each cell has mean, 95 % interval, n and median."""
    unit = unit_of(scores)
    return "".join(_pivot(group, unit) for group in _apart(scores.get("summary") or ()))


def _apart(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows of labels and rows of instances, which have other scores; without the empty group."""
    of_instances = [[row for row in rows if (row["label"] == _INSTANCES) is which] for which in (False, True)]
    return [group for group in of_instances if group]


def _scroll(table: str, what: str, *, tall: bool = False) -> str:
    """The table in a box that scrolls by itself, with the keyboard too."""
    kind = "scroll tall" if tall else "scroll"
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{what}">{table}</div>'


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
    return _scroll(
        f'<table><thead><tr><th class="text">label</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
        "scores",
    )


def _arrow(metric: str) -> str:
    better = "higher" if words.larger_is_better(metric) else "lower"
    return f' <span title="{better} is better">{"↑" if better == "higher" else "↓"}</span>'


def _score_cell(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None:
        return f"<td>{NOTHING}</td>"
    details = f"n {words.count(row.get('n'))}, median {words.score(row.get('median'), metric)}"
    span = words.interval(row, metric)
    return (
        f"<td><b>{words.score(row.get('mean'), metric)}</b>"
        f"<small>{'no interval' if span == NOTHING else span}</small><small>{details}</small></td>"
    )


def cases_table(scores: Mapping[str, Any]) -> str:
    """One row per case and label, then one per case for its instances, sortable by each column."""
    unit = unit_of(scores)
    return "".join(_cases(group, unit) for group in _apart(scores.get("cases") or ()))


def _cases(rows: Sequence[Mapping[str, Any]], unit: str | None) -> str:
    names = [n for n in _NAMES_OF_A_CASE if any(row.get(n) not in (None, "") for row in rows)]
    if all(row.get("patient") == row.get("case") for row in rows):
        names = [n for n in names if n != "patient"]
    numbers = list(
        dict.fromkeys(
            k for row in rows for k, v in row.items() if k not in _NOT_SCORES and words.is_number(v)
        )
    )
    empties = any(row.get("empty") for row in rows)
    head = "".join(f'<th class="text"><button>{text(n)}</button></th>' for n in names)
    head += "".join(f"<th><button>{_case_column(n, unit)}</button></th>" for n in numbers)
    head += '<th class="text"><button>empty</button></th>' if empties else ""
    body = "".join(f"<tr>{_case_row(row, names, numbers, empties)}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return _scroll(table, "cases", tall=True)


def _case_column(name: str, unit: str | None) -> str:
    if name.startswith("n_"):
        return text(f"objects, {name.removeprefix('n_')}")
    if name.startswith("volume_"):
        return text(f"size, {name.removeprefix('volume_')}")
    return words.metric_name(name, unit)


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
    shown = [m for m in _COMPARED if any(run.summary_row(m) for run in runs)][:4]
    units = {unit_of(run.scores) for run in runs}
    unit = units.pop() if len(units) == 1 else None
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
    return _scroll(
        f'<table><thead><tr><th class="text">run</th>{head}<th>trained parameters</th></tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>",
        "runs side by side",
    )


def describe(run: RunRecord) -> str:
    """Model, adapter and prompt of a run in a few words, escaped."""
    scores, config = run.scores, run.config
    prompt = scores.get("prompt")
    made_of = [config[key] for key in ("model", "adapter") if config.get(key)]
    parts = [
        scores.get("model") or " + ".join(map(str, made_of)),
        "zero-shot" if scores and not run.trained else None,
        "no prompts" if prompt == "none" else f"{prompt} prompts" if prompt else None,
        "averaged over flips" if scores.get("flips") else None,
        described(scores.get("runtime")) or None,
    ]
    return ", ".join(text(part) for part in parts if part)


def paired_differences(runs: Sequence[RunRecord]) -> str:
    """Every pair of runs, later minus earlier, per metric, on the patients both have scores for.

    Runs on other data or under another metric profile are not paired: equal names would mean nothing.
    """
    body = []
    for a, b in itertools.combinations(runs, 2):
        if conditions(a) != conditions(b):
            continue
        for metric in _COMPARED:
            if not (a.summary_row(metric) and b.summary_row(metric)):
                continue
            try:
                found = metrics.compare(a.scores.get("cases") or [], b.scores.get("cases") or [], metric)
            except metrics.NothingInCommon:
                continue
            body.append(_difference_row(a.name, b.name, metric, found))
    if not body:
        return ""
    head = "<th>n</th><th>difference</th><th>95 % interval</th><th>p (sign flip)</th><th>p (Wilcoxon)</th>"
    return _scroll(
        '<table><thead><tr><th class="text">comparison</th><th class="text">metric</th>'
        f'{head}<th class="text">reading</th></tr></thead><tbody>{"".join(body)}</tbody></table>',
        "paired differences",
    )


def conditions(run: RunRecord) -> tuple[object, object]:
    """Metric profile and hash of the data: what must agree before scores of two runs are compared."""
    return run.scores.get("metric_profile"), (run.scores.get("provenance") or {}).get("data_sha256")


def _difference_row(first: str, second: str, metric: str, found: Mapping[str, Any]) -> str:
    alone = found["left_out_a"] + found["left_out_b"]
    left_out = f"<small>{alone} left out</small>" if alone else ""
    return (
        f'<tr><td class="text">{text(second)} <span class="muted">minus</span> {text(first)}</td>'
        f'<td class="text">{words.metric_name(metric)}</td><td>{found["n"]}{left_out}</td>'
        f"<td><b>{words.score(found['difference'], metric, signed=True)}</b></td>"
        f"<td>{words.interval(found, metric, signed=True)}</td>"
        f"<td>{words.p_value(found['p_permutation'])}</td><td>{words.p_value(found['p_wilcoxon'])}</td>"
        f'<td class="text">{_reading(metric, found)}</td></tr>'
    )


def _reading(metric: str, found: Mapping[str, Any]) -> str:
    """A verdict only where interval and sign-flip test agree; none where no p-value of so few can be small enough."""
    low, high = found["low"], found["high"]
    if low is None or high is None or 2.0 ** (1 - found["n"]) > _SIGNIFICANT:
        return '<span class="muted">too few patients</span>'
    if low <= 0 <= high or found["p_permutation"] > _SIGNIFICANT:
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
    return f'<table class="facts"><tbody>{"".join(body)}</tbody></table>' if body else ""
