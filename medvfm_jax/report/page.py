"""Run directories -> one HTML file that works offline: no script, font or picture from elsewhere."""

import os
from collections.abc import Sequence
from pathlib import Path

from medvfm_jax import __version__, local_paths
from medvfm_jax.report import federated_sections, sections
from medvfm_jax.report.audit_section import audit
from medvfm_jax.report.charts import Interval, intervals
from medvfm_jax.report.run_record import NothingToReport, RunRecord, load
from medvfm_jax.report.style import CSS, SCRIPT
from medvfm_jax.report.tables import conditions, paired_differences, side_by_side
from medvfm_jax.report.words import is_number, text
from medvfm_jax.types import MedvfmError

_MARK = "medvfm report</title>"  # near the beginning of every page
_MARK_WITHIN = 1 << 16  # bytes


class NoPlaceForReport(MedvfmError):
    """The report would replace a file that is no report, or cannot be written."""


def write(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report on one run, or on several side by side.

    An earlier report is replaced as a whole, no other file is.

    Args:
        runs: run directories or files with scores.
        out: by default report.html in the run directory, or comparison.html beside the first of several.

    Returns:
        The file.

    Raises:
        NothingToReport: no run, or one that cannot be read.
        NoPlaceForReport: the file is no report or cannot be written.
    """
    if not runs:
        raise NothingToReport("There is nothing to report on; give at least one run directory.")
    if out is not None:
        local_paths.check(out, "The file of the report")
    records = [load(Path(run)) for run in runs]
    first = Path(runs[0])
    if out is None and len(records) > 1:
        out = first.resolve().parent / "comparison.html"
    elif out is None:
        out = first / "report.html" if first.is_dir() else first.with_suffix(".html")
    publish(Path(out), render(records))
    return Path(out)


def publish(out: Path, page: str) -> None:
    """Write a page from ``framed`` in place of an earlier one; raises NoPlaceForReport for another file."""
    _refuse_foreign(out)
    _replace(out, page)


def render(runs: Sequence[RunRecord]) -> str:
    """One run, or several side by side, as a page without references to other files.

    Args:
        runs: records from ``load``.

    Returns:
        HTML.
    """
    runs = _distinct(runs)
    if len(runs) == 1:
        title, lead = runs[0].name, sections.summary_line(runs[0])
        body = _notes(runs) + _one_run(runs[0])
    else:
        title, lead = " · ".join(run.name for run in runs), f"{len(runs)} runs side by side"
        body = _notes(runs) + _comparison(runs)
        for run in runs:
            heading = f'<h2 class="run-title">{text(run.name)}</h2>'
            body += f'{heading}<p class="lead">{sections.summary_line(run)}</p>{_one_run(run)}'
    return framed(title, lead, body)


def framed(title: str, lead: str, body: str) -> str:
    """A page without references to other files, of HTML but for the title."""
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{text(title)}, {_MARK}
<style>{CSS}</style>
</head>
<body>
<header class="masthead"><div>
<div class="kicker">medvfm report</div>
<h1>{text(title)}</h1>
<p class="lead">{lead}</p>
</div></header>
<main>
{body}
<footer>Written by medvfm {text(__version__)}. The numbers describe these data and this split, nothing else;
this is research software, not a medical device.</footer>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _one_run(run: RunRecord) -> str:
    return sections.one_run(run, federated_sections.one_run(run) + audit(run))


def _notes(runs: Sequence[RunRecord]) -> str:
    found: dict[str, list[str]] = {}
    for run in runs:
        for note in sections.notes(run):
            found.setdefault(note, []).append(run.name)
    shown = []
    for note, names in found.items():
        # A note on some of the runs says on which.
        whose = "" if len(names) == len(runs) else f"<b>{text(', '.join(names))}:</b> "
        shown.append(f"<p>{whose}{text(note)}</p>")
    return f'<div class="note" role="note">{"".join(shown)}</div>' if shown else ""


def _comparison(runs: Sequence[RunRecord]) -> str:
    scored = [run for run in runs if run.scores]
    if not scored:
        return sections.section("Side by side", "", missing="None of the runs has scores yet.")
    warning = _unlike(scored)
    chart = intervals(
        "Dice with 95 % interval, all labels",
        [
            Interval(run.name, row["mean"], row.get("low"), row.get("high"), row.get("n") or 0, k)
            for k, run in enumerate(scored)
            if (row := run.summary_row("dice")) and is_number(row.get("mean"))
        ],
        "dice",
    )
    lead = "Mean over labels, 95 % interval, number of patients and median."
    chart = chart and f'<div class="scroll wide" tabindex="0">{chart}</div>'
    page = sections.section("Side by side", chart + side_by_side(scored), lead)
    page += federated_sections.side_by_side(scored)
    lead = (
        "Later run minus earlier run, each patient compared with itself. p-values are not corrected for the "
        "number of rows."
    )
    missing = (
        "Nothing can be compared in pairs: no two runs were scored under one metric profile on the same data "
        "with patients in common."
    )
    page += sections.section("Paired differences", paired_differences(scored), lead, missing)
    return (f'<div class="note" role="note"><p>{text(warning)}</p></div>' if warning else "") + page


def _unlike(runs: Sequence[RunRecord]) -> str:
    """A sentence naming what differs between the runs that should not, or "" """
    profiles, data = zip(*map(conditions, runs), strict=True)
    kinds = {
        "under different metric profiles": profiles,
        "on different splits": [run.scores.get("split") for run in runs],
        "on different data": data,
    }
    differing = [name for name, values in kinds.items() if any(value != values[0] for value in values)]
    if not differing:
        return ""
    return f"These runs were scored {' and '.join(differing)}: their means do not compare."


def _distinct(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Runs of equal name get numbers."""
    names = [run.name for run in runs]
    return [
        run._replace(name=f"{run.name} ({names[: k + 1].count(run.name)})")
        if names.count(run.name) > 1
        else run
        for k, run in enumerate(runs)
    ]


def _refuse_foreign(path: Path) -> None:
    """Raise NoPlaceForReport if the file exists and is no report."""
    if path.is_dir():
        raise NoPlaceForReport(f"{path} is a folder; give --out a file name that ends in .html.")
    if path.exists():
        with open(path, "rb") as file:
            if _MARK.encode() not in file.read(_MARK_WITHIN):
                raise NoPlaceForReport(
                    f"{path} exists and is no report, so it is not replaced; choose another --out."
                )


def _replace(path: Path, content: str) -> None:
    """Write beside the target, then rename: a reader sees the old page or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise NoPlaceForReport(
            f"The report cannot be written to {path} ({error.strerror or error}); free space or choose another "
            "--out."
        ) from error
