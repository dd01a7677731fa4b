"""The sections of a report about one run. Each returns HTML; a missing part becomes one sentence."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvfm_jax.data import mni152
from medvfm_jax.metrics.bootstrap import methods_in_words
from medvfm_jax.metrics.profiles import PROFILES
from medvfm_jax.report import words
from medvfm_jax.report.charts import Series, curves
from medvfm_jax.report.run_record import RunRecord
from medvfm_jax.report.tables import cases_table, describe, facts, scores_table
from medvfm_jax.report.words import is_number, text
from medvfm_jax.settings.groups import TUNE_ALL


def section(title: str, body: str, lead: str = "", missing: str = "") -> str:
    """A titled panel; `missing` is shown instead when there is no body, and nothing at all without it."""
    if not body and not missing:
        return ""
    sentence = lead if body else text(missing)
    paragraph = f"<p>{sentence}</p>" if sentence else ""
    return f"<section><h2>{text(title)}</h2>{paragraph}{body}</section>"


def cards(run: RunRecord) -> str:
    """The numbers a reader looks for first."""
    scores, found = run.scores, []
    headline = run.summary_row("dice") or next(iter(scores.get("summary", [])), None)
    if headline:
        metric = headline["metric"]
        span = words.interval(headline, metric)
        span = "no interval" if span == words.NOTHING else f"95 % interval {span}"
        over = "mean over labels" if headline["label"] == "all" else text(headline["label"])
        found.append(
            (words.metric_name(metric), words.score(headline.get("mean"), metric), f"{over}<br>{span}")
        )
    if scores:
        split = f"{text(scores.get('split', ''))} split, {words.counted(scores.get('n_cases'), 'case')}"
        found.append(("patients", words.count(scores.get("n_patients")), split))
    if run.trained:
        size = run.trained
        of = f"of {words.count(size.get('total'))} ({words.share(size.get('parameters'), size.get('total'))})"
        found.append(("trained parameters", words.count(size.get("parameters")), of))
        found.append(("size of the delta", words.size(size.get("bytes")), "everything that was learnt"))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><div class="name">{name}</div><div class="value">{value}</div>'
            f'<div class="detail">{detail}</div></div>'
            for name, value, detail in found
        )
        + "</div>"
        if found
        else ""
    )


def notes(run: RunRecord) -> list[str]:
    """What a reader must know before believing the numbers; plain sentences, not escaped."""
    scores, found = run.scores, []
    if scores.get("note"):
        found.append(str(scores["note"]))
    elif mni152.NAME in (data_of(run), run.config.get("data")):
        found.append(mni152.NOTE)
    prompt = scores.get("prompt")
    if prompt not in (None, "none"):
        source = scores.get("prompt_source") or "the reference"
        found.append(
            f"The {prompt} prompts were made from {source}, so these scores assume a person who prompts every "
            "structure well."
        )
    patients = scores.get("n_patients")
    if patients == 1:
        found.append("There is only one patient, so there are no intervals.")
    elif is_number(patients) and patients < 10:
        found.append(f"Only {patients} patients (or units treated as such): the intervals are rough.")
    if scores.get("metric_profile") in ("transunet_compat", "medsam_compat"):
        found.append(
            f"The {scores['metric_profile']} profile reproduces published conventions; its numbers compare only with "
            "numbers made the same way."
        )
    checked = (scores.get("checked") or {}).get("findings") or ()
    found += [f"{row['message'].rstrip('.')}." for row in checked if row.get("severity") == "note"]
    skipped = len(scores.get("skipped") or ())
    if skipped:
        cases = words.counted(skipped, "case was", "cases were")
        found.append(f"{cases} skipped and not scored; the section Cases says why.")
    if run.unproven:
        found.append(f"{run.unproven}.")
    if run.unread:
        pictures = words.counted(run.unread, "overlay that the scores name", "overlays that the scores name")
        found.append(f"{pictures} could not be read; evaluate the run again to write them anew.")
    if run.damaged:
        lines = words.counted(len(run.damaged), "line")
        shown = ", ".join(map(str, run.damaged[:5])) + (", ..." if len(run.damaged) > 5 else "")
        found.append(
            f"{lines} of metrics.jsonl could not be read (line {shown}): the curves and sums leave them out."
        )
    return found


def data_of(run: RunRecord) -> str:
    """Name of the dataset a run was scored on, else of the one it was trained on."""
    return str(run.scores.get("data") or Path(str(run.config.get("data") or "")).name)


def scores(run: RunRecord) -> str:
    """Scores with intervals and the number of empty masks."""
    record = run.scores
    profile = record.get("metric_profile", "")
    explained = PROFILES[profile].description if profile in PROFILES else ""
    lead = (
        f"Each cell: mean, 95 % interval ({text(methods_in_words(record.get('summary') or ()))}), number of patients "
        "and median. Metric profile "
        f"<b>{text(profile)}</b>{': ' + text(explained) if explained else ''}."
    )
    body = scores_table(record)
    if body:
        body += f'<p class="after">{_empty(record.get("empty") or {})}</p>'
    return section("Scores", body, lead, _why_no_scores(run))


def _why_no_scores(run: RunRecord) -> str:
    if run.scores:
        return "Nothing could be scored: no case has a score that is defined."
    others = sorted(path.name for path in run.folder.glob("scores_*.json"))
    if others:
        return f"There are no scores of the test split; report on the file {' or '.join(others)} instead."
    return "There are no scores yet: run medvfm evaluate on this run, then report again."


def _empty(empty: Mapping[str, Any]) -> str:
    counts = [words.count(empty.get(kind, 0)) for kind in ("reference", "prediction", "both")]
    return (
        f"Empty masks, counted per case and label: {counts[0]} in the reference only, {counts[1]} in the "
        f"prediction only, {counts[2]} in both."
    )


def overlays(run: RunRecord) -> str:
    """Best, median and worst cases: reference and prediction as contours."""
    order = {"best": 0, "median": 1, "worst": 2}
    labels = list(dict.fromkeys(o.label for o in run.overlays))
    body = []
    for label in labels:
        chosen = sorted((o for o in run.overlays if o.label == label), key=lambda o: order.get(o.rank, 3))
        pictures = "".join(
            f'<figure><img alt="{text(o.rank)} case {text(o.case)}, {text(label)}" '
            f'src="data:image/png;base64,{base64.b64encode(o.png).decode()}">'
            f"<figcaption><b>{text(o.rank)}</b>, Dice {words.score(o.dice)}<br>{text(o.case)}</figcaption></figure>"
            for o in chosen
        )
        heading = f"<h3>{text(label)}</h3>" if len(labels) > 1 or label else ""
        body.append(f'{heading}<div class="figures">{pictures}</div>')
    lead = (
        '<span class="key reference"></span>reference<span class="key prediction"></span>prediction. '
        "Best, median and worst case of each label by Dice."
    )
    missing = "There are no overlays: they are made by medvfm evaluate with saved predictions."
    return section("Overlays", "".join(body), lead, missing if run.scores else "")


def learning_curve(run: RunRecord) -> str:
    """Training loss and validation Dice over the steps."""
    train = _points(run, "loss")
    validation = _points(run, "val_dice")
    pictures = [
        curves("Training loss", [Series("loss", train, smooth=True)]),
        curves("Validation Dice", [Series("validation Dice", validation, dots=True)]),
    ]
    body = "".join(f"<div>{picture}</div>" for picture in pictures if picture)
    lead = ""
    if validation:
        step, best = max(validation, key=lambda point: point[1])
        lead = f"Best validation Dice {words.score(best)} at step {words.count(step)}; the delta of that step is kept. "
    speed = [v for _, v in _points(run, "images_per_s")[1:] if v > 0]  # the first step compiles
    if speed:
        # Of the time that all steps took together: a device may report two steps at once, one of them in no time.
        lead += f"Mean speed {len(speed) / sum(1 / v for v in speed):.3g} images/s. "
    if run.goodput is not None:
        lead += f"Wall time: {text(run.goodput.describe())}."
    missing = "There is no learning curve: the run logged no training steps." if run.config else ""
    return section("Learning curve", f'<div class="charts">{body}</div>' if body else "", lead, missing)


def _points(run: RunRecord, name: str) -> list[tuple[float, float]]:
    return [(m["step"], m[name]) for m in run.metrics if is_number(m.get("step")) and is_number(m.get(name))]


def trained(run: RunRecord) -> str:
    """What was trained, out of how many parameters, and how large the delta is."""
    size, config = run.trained, run.config
    if not (size or config):
        return section("What was trained", "", missing="Nothing was trained: the model was scored zero-shot.")
    resolved = config.get("resolved") or {}
    share = words.share(size.get("parameters"), size.get("total"))
    parameters = (
        f"{words.count(size.get('parameters'))} of {words.count(size.get('total'))} ({share})"
        if size
        else "known once the run has been evaluated"
    )
    body = facts(
        [
            ("model", config.get("model") or run.scores.get("model")),
            ("recipe", config.get("recipe")),
            ("teacher", config.get("teacher")),
            ("adapter", config.get("adapter") or config.get("preset")),
            ("adapter options", json.dumps(resolved["adapter"]) if resolved.get("adapter") else None),
            ("trained parameters", parameters),
            ("delta", words.size(size.get("bytes")) if size else None),
            ("prompts in training", resolved.get("prompt") or config.get("prompt")),
            ("loss", resolved.get("objective") or config.get("objective")),
            ("optimiser steps", config.get("steps")),
            ("images per step", config.get("batch_size")),
            ("learning rate", resolved.get("learning_rate") or config.get("learning_rate")),
            ("cases", _split(resolved.get("split"))),
            ("training patients limited to", config.get("train_cases")),
            ("computation in", config.get("dtype")),
        ],
        code=("adapter options",),
    )
    lead = "The base weights are frozen; only the delta is learnt."
    if config.get("recipe"):
        lead = "A student learnt from a teacher; its recipe says which of its parts were free to change."
    elif config.get("adapter") in TUNE_ALL:
        lead = "Every parameter was free to change."
    return section("What was trained", body, lead)


def _split(split: Any) -> str | None:
    """ "16 to train on, 4 for validation, 5 for the test" from lists of case names."""
    if not isinstance(split, Mapping):
        return None
    purposes = {"train": "to train on", "val": "for validation", "test": "for the test"}
    return ", ".join(f"{len(split.get(part) or ()):,} {purpose}" for part, purpose in purposes.items())


def cases(run: RunRecord) -> str:
    """Every case, sortable."""
    body = cases_table(run.scores)
    skipped = run.scores.get("skipped") or ()
    if skipped:
        body += "<h3>skipped</h3>" + facts([(entry.get("case"), entry.get("why")) for entry in skipped])
    missing = "No case was scored." if run.scores else ""
    return section("Cases", body, "Click on the head of a column to sort by it.", missing)


def provenance(run: RunRecord) -> str:
    """Where the numbers come from: enough to make them again."""
    record = run.scores.get("provenance") or {}
    resolved = run.config.get("resolved") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    body = facts(
        [
            ("command", record.get("command") or ("none, called from Python" if record else None)),
            ("data", data_of(run)),
            ("licence of the data", run.scores.get("licence")),
            ("data sha256", record.get("data_sha256") or resolved.get("data_sha256")),
            ("weights sha256", record.get("weights_sha256") or resolved.get("fingerprint")),
            ("seed", record.get("seed", run.config.get("seed"))),
            ("versions", versions),
            ("device", record.get("device")),
            ("evaluated", record.get("time")),
            ("run directory", run.folder.resolve().name),
        ],
        code=("command", "data sha256", "weights sha256"),
    )
    if run.config:
        settings = json.dumps(run.config, indent=2, ensure_ascii=False)
        body += f"<details><summary>all settings</summary><code>{text(settings)}</code></details>"
    return section("Provenance", body)


def one_run(run: RunRecord, federated: str = "") -> str:
    """All sections of a run in reading order; those of a federated run take the place of the learning curve."""
    middle = federated or learning_curve(run)
    before, after = (scores, overlays), (trained, cases, provenance)
    shown = [*(part(run) for part in before), middle, *(part(run) for part in after)]
    return cards(run) + "".join(shown)


def summary_line(run: RunRecord) -> str:
    """What was run, in one line, escaped."""
    data = data_of(run)
    return describe(run) + (f", on {text(data)}" if data else "")
