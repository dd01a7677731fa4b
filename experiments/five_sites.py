"""Five acquisition sites of nuclei as five hospitals: local, centralised and federated training of LiteMedSAM.

python -m experiments.five_sites --data DATA/dsb2018 --out runs/five_sites

Sites with fewer than 11 images are left out, which leaves five. Every row is a run directory of `medvfm federate`
per seed, and per site left out; a row that is there is kept, one that was interrupted goes on where it was. Some rows
alone are put into the table that is there, if it was made with the same settings:

python -m experiments.five_sites --data DATA/dsb2018 --out runs/five_sites --rows local centralised --left-out

Every algorithm starts the clients' optimizer anew each round; local_kept and centralised_kept keep Adam's moments over
the whole run.

Measured (results/five_sites.json; one seed; box prompts; 6 rounds of 5 steps of 2 images with 2 boxes each; the first 4
test images of each site and the 2 of E, n = 18; intervals over images, so those of a single site are wide). A row took
7 to 9 minutes on two cores beside other programs, 4 to 5 alone:

================  =====  ==============  =====  ======
row               Dice   95 % interval   worst  MB up
================  =====  ==============  =====  ======
local             0.844  0.820 to 0.869  0.707  0.00
local_kept        0.838  0.815 to 0.862  0.670  0.00
centralised       0.835  0.814 to 0.856  0.619  0.00
centralised_kept  0.850  0.814 to 0.886  0.651  0.00
scaffold          0.822  0.782 to 0.862  0.621  162.33
fedprox           0.815  0.740 to 0.891  0.542  81.17
fedavg            0.810  0.703 to 0.917  0.516  81.17
ffa_lora_dp       0.786  0.751 to 0.821  0.567  0.05
================  =====  ==============  =====  ======

Dice: mean over sites; MB up: of all clients in a round. The same images, Dice minus local training: centralised -0.001
(-0.021 to +0.019), fedavg -0.017 (-0.051 to +0.018), fedprox -0.013 (-0.044 to +0.017), scaffold -0.015 (-0.032 to
+0.002), ffa_lora_dp -0.049 (-0.073 to -0.025), local_kept -0.002 (-0.013 to +0.008), centralised_kept +0.013 (-0.007 to
+0.033). The order of fedavg and local is that of site E, whose 9 training images differ most from the others: 0.516
against 0.707 there, 0.871 against 0.854 at A, the largest. The budget of privacy is that of the patients of E, where it
is weakest: epsilon 7.997 at delta 1e-5. SCAFFOLD takes plain SGD steps at 0.01; at 0.1 it diverged in one of two seeds.

An earlier table with three seeds let the baselines alone keep Adam's moments, and fedmsa and flap_sam, which also adapt
the encoder, were ahead of local training in it (0.854 and 0.852 against 0.840, one seed); they were not made again.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from medvfm_jax import compilation_cache, cpu, report
from medvfm_jax.federated.algorithms.catalog import BASELINES
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.federated.run.resolving import divide
from medvfm_jax.federated.run.site_scores import over_sites, site_scores, worst_site
from medvfm_jax.metrics import compare
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.types import MedvfmError

DECODER_LORA = (r"lora.at=mask_decoder/transformer/.*attn.*/(q|v)_proj", "lora.slices=none")
# Deltas of the decoder train on cached embeddings; fedmsa and flap_sam also adapt the encoder.
ROWS: dict[str, dict[str, Any]] = {
    "local": {"algorithm": "local"},
    "centralised": {"algorithm": "centralised"},
    "local_kept": {"algorithm": "local", "keep_optimizer": True},
    "centralised_kept": {"algorithm": "centralised", "keep_optimizer": True},
    "fedavg": {"algorithm": "fedavg"},
    "fedprox": {"algorithm": "fedprox", "set": ("algorithm.mu=0.01",)},
    "scaffold": {"algorithm": "scaffold"},
    "fedmsa": {"preset": "fedmsa"},
    "flap_sam": {"preset": "flap_sam"},
    "ffa_lora_dp": {
        "algorithm": "ffa_lora", "preset": "lora", "set": DECODER_LORA, "codec": "int8", "dp_epsilon": 8.0,
        "dp_unit": "patient", "dp_log_unprotected": True,  # for the seconds of a round
    },
}  # fmt: skip


_SAME = ("model", "seeds", "rounds", "local_steps", "batch_size", "prompts", "min_patients", "cases")
_DIFFERS = "{} was made with {} {}, these rows with {}: name another file with --results, or make all rows."


class BadTable(MedvfmError):
    """A row does not belong into the table that is there."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the table."""

    data: str
    """Folder of the dataset, with its sites.csv."""
    out: Path = Path("runs/five_sites")
    """Where the run directories go."""
    model: str = "lite-medsam"
    """Model to adapt."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Rows to make, in this order."""
    left_out: tuple[str, ...] = ("fedavg",)
    """Rows that are also made with each site left out in turn, with the first seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of split, sampling, noise and initial values; every row once per seed."""
    once: tuple[str, ...] = ("fedmsa", "flap_sam")
    """Rows that are made with the first seed only: they adapt the encoder, which takes ten times as long."""
    rounds: int = 6
    """Rounds of exchange."""
    local_steps: int = 5
    """Steps of each client in a round."""
    batch_size: int = 2
    """Images per step; expected patients per step where patients are protected."""
    prompts: int = 2
    """Boxes drawn for each image of a step."""
    min_patients: int = 11
    """Sites with fewer images are left out."""
    cases: int | None = 4
    """Score the first so many test images of each site only."""
    results: Path = Path(__file__).parent / "results" / "five_sites.json"
    """File for the table; rows that are not made stay in it."""


def run(plan: Plan) -> None:
    """Make every row, then the table as JSON and a report that shows the runs of the first seed site by site."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    for row, seed, site in jobs(plan):
        _make(plan, row, seed, site, console)
    table = _with_rows_before(plan, _table(plan))
    plan.results.parent.mkdir(parents=True, exist_ok=True)
    run_directory.write_json(plan.results, table)
    report.write([_folder(plan, row, plan.seeds[0]) for row in plan.rows], plan.out / "comparison.html")
    console.print(markdown(table), markup=False)
    console.print(f"{plan.results}; {plan.out / 'comparison.html'}", markup=False)


def jobs(plan: Plan) -> list[tuple[str, int, str | None]]:
    """(row, seed, site left out or None) of every run, the cheapest answers first."""
    whole = [(row, seed, None) for seed in plan.seeds for row in plan.rows if seed in _seeds(plan, row)]
    sites = _sites(plan)
    return whole + [(row, plan.seeds[0], site) for row in plan.left_out if row in plan.rows for site in sites]


def _seeds(plan: Plan, row: str) -> tuple[int, ...]:
    return plan.seeds[:1] if row in plan.once else plan.seeds


def _sites(plan: Plan) -> list[str]:
    return list(divide(_config(plan, plan.rows[0], plan.seeds[0], None))[1].clients)


def _folder(plan: Plan, row: str, seed: int, site: str | None = None) -> Path:
    return plan.out / (f"{row}_seed{seed}" if site is None else f"{row}_seed{seed}_without_{site}")


def _config(plan: Plan, row: str, seed: int, site: str | None) -> FederateConfig:
    folder = _folder(plan, row, seed, site)
    return FederateConfig(
        data=plan.data, model=plan.model, out=folder, resume=folder.exists(), rounds=plan.rounds,
        local_steps=plan.local_steps, batch_size=plan.batch_size, prompts_per_image=plan.prompts,
        min_patients=plan.min_patients, cases=plan.cases,
        validate_every=0, seed=seed, leave_out=site, **{"embeddings": "disk"} | ROWS[row],
    )  # fmt: skip


def _make(plan: Plan, row: str, seed: int, site: str | None, console: Console) -> None:
    folder = _folder(plan, row, seed, site)
    if (folder / "seconds.json").exists():
        before = run_directory.read_json(folder / run_directory.CONFIG)
        wanted = ROWS[row].get("keep_optimizer", False)
        # A run that does not say so is older: only the baselines kept their optimizer's state then.
        if before.get("keep_optimizer", ROWS[row].get("algorithm") in BASELINES) != wanted:
            raise BadTable(f"{folder} was made with another --keep-optimizer; delete it and make it again.")
        return
    console.print(f"\n{folder.name}", markup=False)
    start = time.perf_counter()
    result = federate(_config(plan, row, seed, site))
    seconds = round(time.perf_counter() - start, 1)
    run_directory.write_json(folder / "seconds.json", {"all": seconds, "privacy": result.privacy})


def _table(plan: Plan) -> dict[str, Any]:
    rows = {row: [_one(plan, row, seed) for seed in _seeds(plan, row)] for row in plan.rows}
    left_out = {
        row: {site: _one(plan, row, plan.seeds[0], site) for site in _sites(plan)}
        for row in plan.left_out
        if row in plan.rows
    }
    first = run_directory.read_json(_folder(plan, plan.rows[0], plan.seeds[0]) / run_directory.SCORES)
    settings = json.loads(json.dumps(dataclasses.asdict(plan), default=str))
    return {
        "plan": settings | {n: Path(settings[n]).name for n in ("data", "out", "results")},
        "settings_of_rows": ROWS,
        "profile": first["metric_profile"],
        "data_sha256": first["provenance"]["data_sha256"],
        "versions": versions(),
        "device": device(),
        "rows": rows,
        "left_out": left_out,
        "paired_dice": _paired(plan),
    }


def _with_rows_before(plan: Plan, table: dict[str, Any]) -> dict[str, Any]:
    """The table with the rows of the file that were not made now; raises BadTable for other settings or data.

    A paired difference stays if both of its rows do: what a row was compared with may have been made anew.
    """
    if not plan.results.exists():
        return table
    before = run_directory.read_json(plan.results)
    if not set(before["rows"]) - set(table["rows"]):
        return table
    for name in ("profile", "data_sha256"):
        if before[name] != table[name]:
            raise BadTable(_DIFFERS.format(plan.results, name, before[name], table[name]))
    for name in _SAME:
        if before["plan"][name] != table["plan"][name]:
            raise BadTable(_DIFFERS.format(plan.results, name, before["plan"][name], table["plan"][name]))
    made = set(table["rows"])
    paired = {
        name: found for name, found in before["paired_dice"].items() if not made & set(name.split(" minus "))
    }
    rows = {row: (before["rows"] | table["rows"]).get(row) for row in ROWS}
    return table | {
        "plan": table["plan"] | {"rows": [row for row, found in rows.items() if found]},
        "made_last": sorted(made),
        "rows": {row: found for row, found in rows.items() if found},
        "left_out": before["left_out"] | table["left_out"],
        "paired_dice": paired | table["paired_dice"],
    }


def _one(plan: Plan, row: str, seed: int, site: str | None = None) -> dict[str, Any]:
    folder = _folder(plan, row, seed, site)
    scores = run_directory.read_json(folder / run_directory.SCORES)
    seconds = run_directory.read_json(folder / "seconds.json")
    lines = [line for line in run_directory.read_metrics(folder) if "upload_bytes" in line]
    by_site = site_scores(scores["cases"], seed=seed)
    return {
        "seed": seed,
        "model": scores["model"],
        "trained": scores["provenance"]["trained"],
        "sites": [score._asdict() for score in by_site],
        "over_sites": over_sites(scores["cases"], seed=seed)._asdict(),
        "worst": worst_site(by_site)._asdict(),
        "upload_bytes_per_round": float(np.mean([line["upload_bytes"] for line in lines])),
        "download_bytes_per_round": float(np.mean([line["download_bytes"] for line in lines])),
        "seconds_per_round": float(np.median([line["seconds"] for line in lines])),
        "seconds": seconds["all"],
        "privacy": seconds["privacy"],
    }


def _paired(plan: Plan) -> dict[str, Any]:
    """Each row minus local and minus centralised training, on the test images of the first seed."""
    cases = {
        row: run_directory.read_json(_folder(plan, row, plan.seeds[0]) / run_directory.SCORES)["cases"]
        for row in plan.rows
    }
    return {
        f"{row} minus {baseline}": compare(cases[baseline], cases[row], "dice", seed=plan.seeds[0])
        for baseline in ("local", "centralised")
        if baseline in cases
        for row in plan.rows
        if row != baseline
    }


def markdown(table: dict[str, Any]) -> str:
    """The table as text: Dice per site, mean over seeds; interval over patients of the first seed."""
    sites = [score["site"] for score in next(iter(table["rows"].values()))[0]["sites"]]
    head = ["row", *sites, "mean over sites (range over seeds)", "worst site", "MB up", "s per round"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, seeds in table["rows"].items():
        cells = [_site_cell(seeds, site) for site in sites]
        means = [one["over_sites"]["mean"] for one in seeds]
        worst = [one["worst"]["mean"] for one in seeds]
        up = np.mean([one["upload_bytes_per_round"] for one in seeds]) / 1e6
        seconds = np.mean([one["seconds_per_round"] for one in seeds])
        cells.append(f"{np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})")
        cells += [f"{np.mean(worst):.3f}", f"{up:.2f}", f"{seconds:.1f}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    for row, runs in table["left_out"].items():
        for site, one in runs.items():
            score = next(score for score in one["sites"] if score["site"] == site)
            lines.append(f"{row} without {site}: Dice there {_number(score)}, n = {score['n']}")
    for name, found in table["paired_dice"].items():
        lines.append(
            f"{name}: Dice {found['difference']:+.3f} ({_signed(found['low'])} to {_signed(found['high'])}), "
            f"n = {found['n']}, sign-flip p = {found['p_permutation']:.4f}"
        )
    return "\n".join(lines)


def _site_cell(seeds: list[dict[str, Any]], site: str) -> str:
    scores = [score for one in seeds for score in one["sites"] if score["site"] == site]
    mean = np.mean([score["mean"] for score in scores])
    span = _number(scores[0]).partition(" ")[2]
    return f"{mean:.3f} {span}".strip()


def _number(score: dict[str, Any]) -> str:
    span = "" if score["low"] is None else f" ({score['low']:.3f} to {score['high']:.3f})"
    return f"{score['mean']:.3f}{span}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


if __name__ == "__main__":
    run(tyro.cli(Plan))
