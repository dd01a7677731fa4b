"""The sections of a report about federated runs: what each client has, each round, each site, runs side by side."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from medvfm_jax.federated.run.site_scores import OVER_SITES, SiteScore, over_sites, site_scores, worst_site
from medvfm_jax.metrics.bootstrap import FEW
from medvfm_jax.report import words
from medvfm_jax.report.charts import Interval, Series, curves, intervals
from medvfm_jax.report.holdings_chart import holdings_chart
from medvfm_jax.report.run_record import RunRecord
from medvfm_jax.report.sections import section
from medvfm_jax.report.tables import facts
from medvfm_jax.report.words import is_number, text

_UNITS = {"client": "each client", "patient": "each patient"}


def is_federated(run: RunRecord) -> bool:
    """Whether `federate` made the run."""
    return "rounds" in run.config and isinstance((run.config.get("resolved") or {}).get("holdings"), list)


def one_run(run: RunRecord) -> str:
    """All federated sections of a run in reading order; "" for a run that is not federated."""
    if not is_federated(run):
        return ""
    return sites(run) + federation(run) + clients(run) + rounds(run)


def sites(run: RunRecord) -> str:
    """Dice of every site with its interval, the mean over sites, and the worst."""
    found = site_scores(run.scores.get("cases") or [])
    if not found:
        return ""
    mean = over_sites(run.scores["cases"])
    rows = [Interval(s.site, s.mean, s.low, s.high, s.n, 0) for s in found]
    rows.append(Interval(OVER_SITES, mean.mean, mean.low, mean.high, mean.n, 1))
    chart = intervals("Dice of each site with 95 % interval", rows, "dice")
    worst = worst_site(found)
    lead = f"Worst site: <b>{text(worst.site)}</b>, Dice {words.score(worst.mean)}."
    left_out = run.config.get("leave_out")
    if left_out:
        lead += f" {text(left_out)} was held out from training."
    return section("Sites", f'<div class="scroll wide" tabindex="0">{chart}</div>', lead)


def federation(run: RunRecord) -> str:
    """Algorithm, rounds, traffic and privacy."""
    config, resolved = run.config, run.config["resolved"]
    options = resolved.get("algorithm_options") or {}
    up, down = _traffic(run, "upload_bytes"), _traffic(run, "download_bytes")
    body = facts(
        [
            ("algorithm", resolved.get("algorithm")),
            ("its options", json.dumps(options) if options else None),
            ("system or adapter", config.get("preset")),
            ("rounds", config.get("rounds")),
            ("local steps in a round", config.get("local_steps")),
            ("local optimizer", _optimizer(run)),
            ("share of clients in a round", config.get("participation")),
            ("site left out", config.get("leave_out")),
            ("compression of the updates", _codec(config, "")),
            ("compression of the server's step", _codec(config, "down_")),
            ("sent to the server", up),
            ("sent to the clients", down),
            ("privacy", resolved.get("privacy")),
            ("noise", (resolved.get("noise") or {}).get("sentence")),
            ("share clipped", _clipped(run)),
        ],
        code=("its options",),
    )
    return section(
        "Federation",
        body,
        _warnings(run) + "A simulation on one computer: traffic is what a network would carry.",
    )


def _warnings(run: RunRecord) -> str:
    """What a reader must not miss about privacy."""
    config, found = run.config, []
    if config.get("dp_seed") is not None:
        found.append(f"This run is not private: its noise was made from --dp-seed {text(config['dp_seed'])}.")
    if config.get("dp_log_unprotected"):
        found.append(
            "Numbers that the noise does not cover were recorded, as asked for with --dp-log-unprotected."
        )
    if (config["resolved"].get("noise") or {}).get("drowned"):
        found.append("Noise drowns the signal.")
    return "".join(f"<b>{sentence}</b> " for sentence in found)


def _clipped(run: RunRecord) -> str | None:
    """Mean share of the units whose contribution was cut to the clipping bound; None without privacy."""
    if not run.config.get("dp_epsilon"):
        return None
    shares = [value for _, value in _points(run, "clipped")]
    if not shares:
        return "not recorded, as noise does not cover it: --dp-log-unprotected records it"
    unit = "patients in a step" if run.config.get("dp_unit") == "patient" else "clients in a round"
    return f"{sum(shares) / len(shares):.0%} of the {unit}, {shares[-1]:.0%} in the last round"


def _optimizer(run: RunRecord) -> str | None:
    """Whether clients keep the state of their optimizer; older runs do not say."""
    keeps = run.config.get("keep_optimizer")
    if keeps is None:
        return None
    return "kept from round to round" if keeps else "started anew each round"


def _codec(config: Mapping[str, Any], way: str) -> str | None:
    codec, memory = config.get(f"{way}codec"), config.get(f"{way}memory")
    return f"{codec}, {memory}" if memory not in (None, "none") else codec


def clients(run: RunRecord) -> str:
    """What each client trains on."""
    held = [
        row for row in run.config["resolved"]["holdings"] if isinstance(row, Mapping) and row.get("client")
    ]
    labels = list(dict.fromkeys(label for row in held for label in row.get("pixels") or {}))
    head = "".join(f"<th>{text(label)}</th>" for label in labels)
    body = "".join(
        f'<tr><td class="text">{text(row["client"])}</td><td>{words.count(row.get("patients"))}</td>'
        f"<td>{words.count(row.get('images'))}</td>"
        + "".join(f"<td>{words.count((row.get('pixels') or {}).get(label))}</td>" for label in labels)
        + "</tr>"
        for row in held
    )
    table = (
        '<div class="scroll" tabindex="0"><table><thead><tr><th class="text">client</th><th>patients</th>'
        f"<th>images</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    chart = f'<div class="scroll wide" tabindex="0">{holdings_chart(held)}</div>'
    lead = "Training data of each client; label columns count pixels (voxels in volumes)."
    shifts = run.config["resolved"].get("shifts") or {}
    if shifts:
        lead += " Each client has a scanner of its own: intensities are changed by gamma, gain and bias."
    private = "What each client holds is not recorded in a private run; --dp-log-unprotected records it."
    missing = private if run.config.get("dp_epsilon") else ""
    return section("Clients", chart + table if held else "", lead, missing)


def rounds(run: RunRecord) -> str:
    """Loss, validation Dice, traffic and privacy over the rounds."""
    worst, mean = _points(run, "val_worst"), _points(run, "val_dice")
    charts = [
        curves(
            "Training loss, mean over clients", [Series("loss", _points(run, "loss"), dots=True)], "round"
        ),
        curves(
            "Validation Dice",
            [Series("mean over sites", mean, dots=True), Series("worst site", worst, dots=True)],
            "round",
        ),
        curves(
            "Traffic of a round in MB",
            [
                Series("up", _megabytes(run, "upload_bytes")),
                Series("down", _megabytes(run, "download_bytes")),
            ],
            "round",
        ),
        curves("Privacy spent (epsilon)", [Series("epsilon", _points(run, "epsilon"), dots=True)], "round"),
    ]
    body = "".join(f"<div>{chart}</div>" for chart in charts if chart)
    lead = ""
    if mean and not run.config.get("dp_epsilon"):
        number, best = max(mean, key=lambda point: point[1])
        lead = f"Best validation Dice {words.score(best)} in round {words.count(number)}, whose models are kept. "
    seconds = sorted(line["seconds"] for line in run.metrics if is_number(line.get("seconds")))
    if seconds:
        lead += f"Median time of a round {seconds[len(seconds) // 2]:.3g} s."
    return section(
        "Rounds", f'<div class="charts">{body}</div>' if body else "", lead, "No round was logged."
    )


def side_by_side(runs: Sequence[RunRecord]) -> str:
    """Dice of every site under every run, with intervals; "" unless two runs have scores at two sites or more."""
    scored = [(run, site_scores(run.scores.get("cases") or [])) for run in runs]
    scored = [(run, found) for run, found in scored if found]
    names = sorted({score.site for _, found in scored for score in found})
    if len(scored) < 2 or len(names) < 2 or not any(is_federated(run) for run, _ in scored):
        return ""
    head = "".join(
        f'<th>{text(run.name)}<small class="muted">{text(kind_of(run))}</small></th>' for run, _ in scored
    )
    body = []
    for name in names:
        cells = "".join(_cell(next((s for s in found if s.site == name), None)) for _, found in scored)
        body.append(f'<tr><td class="text"><b>{text(name)}</b></td>{cells}</tr>')
    means = "".join(_cell(over_sites(run.scores["cases"])) for run, _ in scored)
    body.append(f'<tr class="total"><td class="text"><b>{OVER_SITES}</b></td>{means}</tr>')
    worst = "".join(_cell(worst_site(found), named=True) for _, found in scored)
    body.append(f'<tr class="total"><td class="text"><b>worst site</b></td>{worst}</tr>')
    traffic = "".join(f"<td>{_per_round(run)}</td>" for run, _ in scored)
    body.append(f'<tr><td class="text">traffic of a round, up and down</td>{traffic}</tr>')
    private = "".join(f"<td>{_privacy(run)}</td>" for run, _ in scored)
    body.append(f'<tr><td class="text">privacy</td>{private}</tr>')
    lead = (
        f"Dice: mean, 95 % interval over the patients of a site (Student's t below {FEW} of them, else bootstrap) and "
        "number of patients."
    )
    table = f'<table><thead><tr><th class="text">site</th>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return section("Site by site", f'<div class="scroll" tabindex="0">{table}</div>', lead)


def kind_of(run: RunRecord) -> str:
    """What a run is among federated ones: "local only", "centralised", "fedavg", or "one place"."""
    if not is_federated(run):
        return "not federated" if run.config else "zero-shot"
    algorithm = str(run.config["resolved"].get("algorithm"))
    return "local only" if algorithm == "local" else algorithm


def _cell(score: SiteScore | None, named: bool = False) -> str:
    if score is None:
        return f"<td>{words.NOTHING}</td>"
    span = words.interval(score._asdict(), "dice")
    site = f"<small>{text(score.site)}</small>" if named else ""
    return (
        f"<td><b>{words.score(score.mean)}</b><small>{'no interval' if span == words.NOTHING else span}</small>"
        f"<small>n {words.count(score.n)}</small>{site}</td>"
    )


def _traffic(run: RunRecord, name: str) -> str | None:
    values = [value for _, value in _points(run, name)]
    if not any(values):
        return None
    return f"{words.size(sum(values))} in all, {words.size(sum(values) / len(values))} in a round"


def _per_round(run: RunRecord) -> str:
    means = []
    for name in ("upload_bytes", "download_bytes"):
        values = [value for _, value in _points(run, name)]
        means.append(words.size(sum(values) / len(values)) if any(values) else words.NOTHING)
    return words.NOTHING if set(means) == {words.NOTHING} else f"{means[0]}<small>{means[1]}</small>"


def _privacy(run: RunRecord) -> str:
    epsilon = run.config.get("dp_epsilon")
    if not is_number(epsilon):
        return words.NOTHING
    if run.config.get("dp_seed") is not None:
        return "not private<small>noise from --dp-seed</small>"
    return f"ε {epsilon:g}<small>{text(_UNITS.get(run.config.get('dp_unit'), ''))}</small>"


def _points(run: RunRecord, name: str) -> list[tuple[float, float]]:
    return [(m["step"], m[name]) for m in run.metrics if is_number(m.get("step")) and is_number(m.get(name))]


def _megabytes(run: RunRecord, name: str) -> list[tuple[float, Any]]:
    points = _points(run, name)
    return [(x, y / 1e6) for x, y in points] if any(y for _, y in points) else []
