r"""Every method that fits two cores on the same data with the same steps: scores beside what a method costs.

python -m experiments.catalogue --nuclei DATA/dsb2018 --hippocampus DATA/Dataset004_Hippocampus --out runs/catalogue

Nuclei are trained on a few images of all acquisition sites but one and scored on the one held out; hippocampus on a
few volumes and scored on the test patients. Every system is asked with its own prompts, boxes from the reference or
none, which the table says: an encoder's adapter alone cannot learn what new class tokens mean, so that Dice with
boxes and without are two groups. A row is made by the commands `adapt` and `evaluate` in processes of their own, so
that the peak of their memory is that of the method. A row that is there is kept, and so is one of an earlier table
with the same settings. Seeds are made one after the other for all rows: stopped early, the table has fewer seeds.

Rows named ``TYPE @ PLACE`` have boxes and differ by the type of adapter and by where it is alone (the mask tokens and
the linear layers that they weight are tuned in each), so that the two can be told apart (arXiv 2502.00418 finds that
the place matters more): beside the table stand the paired differences between places, over all types, and between
types, over all places. They have boxes because a few dozen steps teach new class tokens little: without prompts Dice
was 0.21 on the held-out site after 40 steps of two images.
"""

import csv
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from experiments.pareto_plot import Dot, pareto_plot
from medvfm_jax.metrics import compare
from medvfm_jax.metrics.cases import INSTANCES
from medvfm_jax.metrics.summary import summarise
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions

# of a plan: what rows must share to stand in one table
_SAME = ("few", "steps", "batch_size", "cases", "held_out", "image_size")
_HEAD = r"decoder.at=mask_decoder/(mask_tokens|output_hypernetworks_mlps_\d+)/.*"
_ATTENTION, _MLP = r"image_encoder/(.*/)?attn/qkv", r"image_encoder/(.*/)?mlp/(fc1|fc2)"
_DECODER = r"mask_decoder/transformer/(.*/)?(q_proj|v_proj)"
_PLACES, _TYPES = ("decoder", "attention", "mlp"), ("lora", "ssf", "bottleneck")
_WHOLE = ("lora.slices=none", "lora.layout=none", "lora.head_dim=none")


class Method(NamedTuple):
    """What a row trains: options of `adapt`, and the datasets that it is for."""

    model: str
    adapter: str
    set: tuple[str, ...] = ()
    window: tuple[int, ...] = ()  # slices of a slab, sides of a patch
    on: tuple[str, ...] = ("nuclei", "hippocampus")
    prompt: str = "auto"

    def words(self) -> list[str]:
        """For the command line."""
        options = [word for option in self.set for word in ("--set", option)]
        window = ["--window", *map(str, self.window)] if self.window else []
        return ["--model", self.model, "--adapter", self.adapter, *options, *window]


def _placed(kind: str, at: str) -> Method:
    """A type of adapter at one place; what else is tuned is the same for all."""
    system, part = {"lora": ("samed", "lora"), "ssf": ("ssf", "ssf"), "bottleneck": ("adaptformer", "mlp")}[
        kind
    ]
    own = _WHOLE if kind == "lora" and at != _ATTENTION else ()
    if kind == "bottleneck":  # it stands beside whole layers; one number of channels in, one out
        at = {_ATTENTION: r"image_encoder/(.*/)?attn", _MLP: r"image_encoder/(.*/)?mlp"}.get(
            at, r"mask_decoder/transformer/(.*/)?mlp"
        )
    return Method("lite-medsam", system, (_HEAD, f"{part}.at={at}", *own), on=("nuclei",), prompt="box")


def _lite(*systems: str) -> dict[str, Method]:
    return {name: Method("lite-medsam", name) for name in systems}


METHODS: Mapping[str, Method] = {
    # A, mechanisms, and the systems of B that a TinyViT has the sites for
    **_lite(
        "decoder",
        "linear",
        "lora",
        "dora",
        "pissa",
        "adalora",
        "lora_mixture",
        "conv_lora",
        "fact_tt",
        "fact_tk",
    ),
    **_lite("adaptformer", "compacter", "ssf", "bitfit", "layernorm", "context", "full"),
    **_lite(
        "samed",
        "samed_s",
        "lora_sam",
        "sam_med2d",
        "med_sa",
        "med_sa_whole",
        "trans_sam",
        "h_sam",
        "auto_sam",
    ),
    "sd_trans": Method("lite-medsam", "sd_trans", window=(5,), on=("hippocampus",)),
    "ma_sam": Method("lite-medsam", "ma_sam", window=(5,), on=("hippocampus",)),
    "instances_lora": Method("lite-medsam", "instances_lora", on=("nuclei",)),
    # where against what
    **{
        f"{kind} @ {place}": _placed(kind, at)
        for place, at in {"attention": _ATTENTION, "mlp": _MLP, "decoder": _DECODER}.items()
        for kind in _TYPES
    },
    # E, from scratch
    "unet": Method("unet", "full"),
    "unet-3d-folded": Method("unet-3d-folded", "full", window=(40, 56, 40), on=("hippocampus",)),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the table."""

    nuclei: Path | None = None
    """Folder dsb2018, with sites.csv; without it no nuclei."""
    hippocampus: Path | None = None
    """Folder Dataset004_Hippocampus; without it no hippocampus."""
    out: Path = Path("runs/catalogue")
    """Where the run directories go; one per row and seed."""
    held_out: str = "C_fluo_360x360"
    """Site of the nuclei to score on; it is not trained on."""
    rows: tuple[str, ...] = ()
    """Methods to run; by default all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the choice of training cases, the sampling, the augmentation and the initial values."""
    few: int = 16
    """Patients to train on."""
    steps: int = 60
    """Optimiser steps of every row."""
    batch_size: int = 2
    """Images, slices, slabs or patches of a step."""
    cases: int = 24
    """Cases to score."""
    image_size: int | None = None
    """Side in pixels at which pictures, slices and slabs are seen; None is the model's own. Patches have a window."""
    results: Path = Path(__file__).parent / "results" / "catalogue.json"
    """Where the table goes."""
    plots: Path = Path(__file__).parent.parent / "docs" / "images"
    """Folder for a plot of each dataset and kind of prompts."""


def run(plan: Plan) -> None:
    """Make the rows that are missing, then the table and the plot of all that are there."""
    console = Console(highlight=False, soft_wrap=True)
    unknown = [row for row in plan.rows if row not in METHODS]
    if unknown:
        sys.exit(f"No row is called {', '.join(unknown)}; known are {', '.join(METHODS)}.")
    data = _datasets(plan)
    chosen = plan.rows or tuple(METHODS)
    left_out: dict[str, str] = {}
    for seed in plan.seeds:
        for dataset in data:
            for row in chosen:
                why = (
                    _make(plan, dataset, data[dataset], row, seed, console)
                    if dataset in METHODS[row].on
                    else None
                )
                if why is not None:
                    left_out[f"{dataset}: {row}, seed {seed}"] = why
                    console.print(f"  {why}", markup=False)
    table = _with_rows_of_before(_table(plan, data) | {"left_out": left_out}, plan.results)
    plan.results.parent.mkdir(parents=True, exist_ok=True)
    run_directory.write_json(plan.results, table)
    for dataset, prompt in dict.fromkeys(_group(name, row) for name, row in table["rows"].items()):
        path = plan.plots / f"{plan.results.stem}_{dataset}_{prompt}.svg"
        path.write_text(_plot(table, dataset, prompt), "utf-8")
    console.print(markdown(table), markup=False)


class Data(NamedTuple):
    """Folders of a dataset: to train on, and to score on (None: the run's own test patients)."""

    train: Path
    score: Path | None


def _datasets(plan: Plan) -> dict[str, Data]:
    found: dict[str, Data] = {}
    if plan.nuclei is not None:
        found["nuclei"] = Data(*_without_site(plan.nuclei, plan.held_out, plan.out / "data"))
    if plan.hippocampus is not None:
        found["hippocampus"] = Data(plan.hippocampus, None)
    return found


def _without_site(folder: Path, site: str, out: Path) -> tuple[Path, Path]:
    """Copy the images of all other sites, and those of one site, into folders of their own."""
    with (folder / "sites.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if site not in {row["site"] for row in rows}:
        sys.exit(
            f"{folder / 'sites.csv'} has no site {site}; it has {', '.join(sorted({r['site'] for r in rows}))}."
        )
    parts = {
        out / "other_sites": [r for r in rows if r["site"] != site],
        out / site: [r for r in rows if r["site"] == site],
    }
    for part, members in parts.items():
        if (part / "sites.csv").exists():
            continue
        for kind in ("images", "masks", "instances"):
            (part / kind).mkdir(parents=True, exist_ok=True)
            for row in members:
                shutil.copyfile(folder / kind / row["file"], part / kind / row["file"])
        with (part / "sites.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(members)
    first, second = parts
    return first, second


def _folder(plan: Plan, dataset: str, row: str, seed: int) -> Path:
    return plan.out / dataset / row.replace(" @ ", "_at_") / f"seed_{seed}"


def _make(plan: Plan, dataset: str, data: Data, row: str, seed: int, console: Console) -> str | None:
    """Make a row of one seed, unless it is there; why it could not be made."""
    folder, method = _folder(plan, dataset, row, seed), METHODS[row]
    if (folder / "cost.json").exists():
        return None
    console.print(f"{dataset}: {row}, seed {seed}", markup=False)
    more = ["--resume"] if folder.exists() else []
    trained = _command("adapt", _adapt(plan, data, method, seed, folder), [*method.words(), *more])
    if isinstance(trained, str):
        return f"not trained: {trained}"
    scored = {"run": folder, "cases": plan.cases}
    if data.score is not None:
        scored |= {"data": data.score, "split": "all", "out": folder / run_directory.SCORES}
    evaluated = _command("evaluate", scored, [])
    if isinstance(evaluated, str):
        return f"not scored: {evaluated}"
    cost = {"train": trained._asdict(), "evaluate": evaluated._asdict(), "resumed": bool(more)}
    run_directory.write_json(folder / "cost.json", cost)
    return None


def _adapt(plan: Plan, data: Data, method: Method, seed: int, folder: Path) -> dict[str, Any]:
    """Options of `adapt` for a row; a patch has the size of its window, not that of a picture."""
    settings = {
        "data": data.train, "out": folder, "seed": seed, "prompt": method.prompt, "train-cases": plan.few,
        "steps": plan.steps, "batch-size": plan.batch_size, "validate-every": 0,
    }  # fmt: skip
    sized = plan.image_size is not None and len(method.window) < len("zyx")
    return settings | ({"image-size": plan.image_size} if sized else {})


class Used(NamedTuple):
    """What a process needed: processor seconds and MiB at most."""

    processor_s: float
    peak_mib: float


def _command(name: str, settings: Mapping[str, Any], more: Sequence[str]) -> Used | str:
    """Run a command in a process of its own; its last words where it refuses."""
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "medvfm_jax", name, *words, *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = process.stderr.read() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        return said.strip().splitlines()[-1] if said.strip() else f"exit code {process.returncode}"
    return Used(round(used.ru_utime + used.ru_stime, 1), round(used.ru_maxrss / 1024, 1))


def _table(plan: Plan, data: Iterable[str]) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    first: dict[str, Any] | None = None
    for dataset in data:
        for row, method in METHODS.items():
            folders = [_folder(plan, dataset, row, seed) for seed in plan.seeds]
            folders = [folder for folder in folders if (folder / "cost.json").exists()]
            if folders:
                rows[f"{dataset}: {row}"] = _row(method, folders)
                first = first or run_directory.read_json(folders[0] / run_directory.SCORES)
    return {
        "plan": json.loads(json.dumps(dataclasses.asdict(plan), default=lambda path: path.name)),
        "profile": first["metric_profile"] if first else None,
        "versions": versions(),
        "device": device(),
        "placement": _placement(plan),
        "rows": rows,
    }


def _placement(plan: Plan) -> dict[str, Any]:
    """Paired differences of Dice between places, each case a mean over types and seeds, and between types over places.

    {} until every type has been at every place.
    """
    records: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kind in _TYPES:
        for place in _PLACES:
            folders = [_folder(plan, "nuclei", f"{kind} @ {place}", seed) for seed in plan.seeds]
            records[kind, place] = [
                run_directory.read_json(f / run_directory.SCORES)
                for f in folders
                if (f / "cost.json").exists()
            ]
    if len({len(found) for found in records.values()}) != 1 or not all(records.values()):
        return {}
    return differences({name: [record["cases"] for record in found] for name, found in records.items()})


def differences(cases: Mapping[tuple[str, str], Sequence[Any]]) -> dict[str, Any]:
    """(type, place) -> score rows of each seed; -> {"place": {"a minus b": ...}, "type": ...}, see ``compare``."""
    found: dict[str, Any] = {}
    for axis, name, levels in ((1, "place", _PLACES), (0, "type", _TYPES)):
        rows = {
            level: _mean_of_seeds(
                [{"cases": c} for at, seeds in cases.items() if at[axis] == level for c in seeds]
            )
            for level in levels
        }
        pairs = [(a, b) for i, a in enumerate(levels) for b in levels[i + 1 :]]
        found[name] = {f"{b} minus {a}": compare(rows[a], rows[b], "dice", "foreground") for a, b in pairs}
    return found


def _with_rows_of_before(table: dict[str, Any], results: Path) -> dict[str, Any]:
    """Add the rows of the table that is there, if it was made with the same settings; new rows take their place."""
    if not results.exists():
        return table
    before = run_directory.read_json(results)
    if not all(before["plan"].get(name) == table["plan"].get(name) for name in _SAME):
        return table
    order = [f"{dataset}: {row}" for dataset in ("nuclei", "hippocampus") for row in METHODS]
    rows = {name: row for name, row in before["rows"].items() if name in order} | table["rows"]
    for name in set(before["rows"]) & set(table["rows"]):
        if before["rows"][name]["seeds"] > table["rows"][name]["seeds"]:
            rows[name] = before["rows"][name]
    placement = table.get("placement") or before.get("placement", {})
    return table | {"placement": placement, "rows": {name: rows[name] for name in order if name in rows}}


def _row(method: Method, folders: Sequence[Path]) -> dict[str, Any]:
    records = [run_directory.read_json(folder / run_directory.SCORES) for folder in folders]
    costs = [run_directory.read_json(folder / "cost.json") for folder in folders]
    config = run_directory.read_json(folders[0] / "config.json")
    return {
        "model": records[0]["model"],
        "prompt": records[0]["prompt"],
        "set": list(method.set),
        "trained_on": len(config["resolved"]["split"]["train"]),
        "steps": config["steps"],
        "seeds": len(folders),
        "n_patients": records[0]["n_patients"],
        "trained": records[0]["provenance"]["trained"]["parameters"],
        "delta_bytes": (folders[0] / run_directory.DELTA).stat().st_size,
        "summary": [
            r for r in summarise(_mean_of_seeds(records))["summary"] if r["metric"] in ("dice", "nsd", "aji")
        ],
        "dice_of_seeds": [round(_dice(record["summary"]), 4) for record in records],
        "step_s": round(statistics.median(_step_seconds(folder) for folder in folders), 3),
        "train_processor_s": statistics.median(cost["train"]["processor_s"] for cost in costs),
        "peak_mib": max(cost["train"]["peak_mib"] for cost in costs),
        "resumed": sum(cost.get("resumed", False) for cost in costs),
    }


def _mean_of_seeds(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Scores of the same cases by several seeds -> one row per case and label: means of the numbers.

    The interval over patients is then that of the mean over seeds.
    """
    gathered: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        for row in record["cases"]:
            gathered.setdefault((str(row["case"]), str(row["label"])), []).append(row)
    means = []
    for same in gathered.values():
        numbers = {
            k
            for k, v in same[0].items()
            if isinstance(v, float) and all(isinstance(r.get(k), float) for r in same)
        }
        means.append(dict(same[0]) | {k: statistics.fmean(r[k] for r in same) for k in numbers})
    return means


def _step_seconds(folder: Path) -> float:
    """Mean seconds of a step after the first, which is compiled.

    A CPU reports two steps at once, one of them in no time, so that the median says nothing.
    """
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [line["images_per_s"] for line in map(json.loads, lines) if line.get("images_per_s")][1:]
    batch = run_directory.read_json(folder / "config.json")["batch_size"]
    return statistics.fmean(batch / speed for speed in speeds) if speeds else float("nan")


def _of(summary: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    """The row of a metric over all labels, of the only label, or of objects."""
    rows = [r for r in summary if r["metric"] == metric]
    wanted = ("all", INSTANCES) if metric != "aji" else (INSTANCES, "all")
    return next((r for label in wanted for r in rows if r["label"] == label), rows[0] if rows else None)


def _dice(summary: Sequence[Mapping[str, Any]]) -> float:
    found = _of(summary, "dice")
    return float(found["mean"]) if found else float("nan")


def markdown(table: Mapping[str, Any]) -> str:
    """The table as text, by dataset and prompts, best Dice first."""
    head = "| row | prompts | seeds | Dice | NSD | AJI | trained | delta, kB | s per step | peak, MiB |"
    rows = sorted(table["rows"].items(), key=lambda kv: (*_group(*kv), -_dice(kv[1]["summary"])))
    lines = [head, "|---" * 10 + "|"]
    for name, row in rows:
        scores = [_cell(_of(row["summary"], metric)) for metric in ("dice", "nsd", "aji")]
        costs = [
            f"{row['trained']:,}",
            f"{row['delta_bytes'] / 1e3:.0f}",
            f"{row['step_s']:.2f}",
            f"{row['peak_mib']:.0f}",
        ]
        lines.append("| " + " | ".join([name, row["prompt"], str(row["seeds"]), *scores, *costs]) + " |")
    for pairs in table.get("placement", {}).values():
        lines += [
            f"{name}: Dice {d['difference']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f}), n = {d['n']}"
            for name, d in pairs.items()
        ]
    lines += [
        f"{name}: training was broken off in {row['resumed']} of {row['seeds']} seeds; time and memory are of what "
        "came after"
        for name, row in rows
        if row.get("resumed")
    ]
    lines += [f"left out: {name}: {why}" for name, why in table.get("left_out", {}).items()]
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    bounds = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['mean']:.3f}{bounds}"


def _group(name: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """Dataset and prompts: rows that can be compared."""
    return name.partition(":")[0], "boxes" if row["prompt"] == "box" else str(row["prompt"])


def _plot(table: Mapping[str, Any], dataset: str, prompt: str) -> str:
    dots = [
        Dot(name.partition(": ")[2], row["trained"], _dice(row["summary"]))
        for name, row in table["rows"].items()
        if _group(name, row) == (dataset, prompt)
    ]
    asked = "without prompts" if prompt == "none" else f"with {prompt}"
    return pareto_plot(
        f"{dataset}, {asked}: Dice against trained parameters", dots, "trained parameters", "Dice"
    )


if __name__ == "__main__":
    run(tyro.cli(Plan))
