r"""Two small students of an adapted LiteMedSAM: Dice with and without its teacher, size, and time per picture.

python -m experiments.distillation --data DATA/dsb2018 --out runs/distillation

The teacher is adapted first, on the same training part as its students; a student "without" learns from the labels
alone for as many steps from the same start (``--recipe plain``).  Every row is a run directory made by the commands
`adapt` and `distill` and scored by `evaluate`; a row that is there is kept.  Times are processor time of one image's
encoder, interleaved, in JAX and, where they are installed, ONNX Runtime and LiteRT (one thread).
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from medvfm_jax import compilation_cache, cpu
from medvfm_jax.distill import distill
from medvfm_jax.export import CannotExport, bundle, export_encoder
from medvfm_jax.export.card import part_record
from medvfm_jax.export.parts import encoder_part
from medvfm_jax.metrics import compare
from medvfm_jax.metrics.summary import summarise
from medvfm_jax.models import build
from medvfm_jax.predict import evaluate
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings import AdaptConfig, EvaluateConfig
from medvfm_jax.settings.distill import DistillConfig
from medvfm_jax.train import adapt

TEACHER = "teacher"
RESULTS = Path(__file__).parent / "results" / "distillation.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the table."""

    data: str
    """Folder of the dataset."""
    out: Path = Path("runs/distillation")
    """Where the run directories go; one per row."""
    teacher: str = "lite-medsam"
    """Model that is adapted and then teaches."""
    adapter: str = "lora"
    """System that adapts it."""
    prompt: str = "box"
    """Prompts of all rows."""
    teacher_steps: int = 100
    """Optimiser steps of the teacher, two images each."""
    students: tuple[str, ...] = ("lite-medsam-xs", "lite-medsam-s")
    """Networks that learn."""
    recipes: tuple[str, ...] = ("task", "plain")
    """With the teacher, and without."""
    steps: int = 100
    """Optimiser steps of a student, four images each."""
    prompts_per_image: int = 2
    """Prompts of each image and step."""
    cases: int = 24
    """Score the first so many test images."""
    seed: int = 0
    """Of the split, the prompts, the sampling and the bootstrap."""


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """Make every row, then the table as JSON."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    rows = {TEACHER: plan.out / TEACHER}
    if not (rows[TEACHER] / run_directory.DELTA).exists():
        adapt(
            AdaptConfig(
                data=plan.data,
                model=plan.teacher,
                adapter=plan.adapter,
                prompt=plan.prompt,
                steps=plan.teacher_steps,
                batch_size=2,
                prompts_per_image=plan.prompts_per_image,
                seed=plan.seed,
                validate_every=0,
                out=rows[TEACHER],
                resume=rows[TEACHER].exists(),
            )
        )
    for student in plan.students:
        for recipe in plan.recipes:
            folder = rows[f"{student} {recipe}"] = plan.out / f"{student}_{recipe}"
            if not (folder / run_directory.DELTA).exists():
                distill(
                    DistillConfig(
                        data=plan.data,
                        teacher=str(rows[TEACHER]),
                        student=student,
                        recipe=recipe,
                        augment="none",
                        steps=plan.steps,
                        batch_size=4,
                        prompts_per_image=plan.prompts_per_image,
                        seed=plan.seed,
                        validate_every=0,
                        out=folder,
                        resume=folder.exists(),
                    )
                )
    scores = {name: _scores(plan, folder, console) for name, folder in rows.items()}
    table = table_of(plan, scores, {name: build(name) for name in (plan.teacher, *plan.students)})
    run_directory.write_json(results, table)
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def _scores(plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    out = folder.with_name(f"{folder.name}_scores.json")
    if not out.exists():
        evaluate(
            EvaluateConfig(run=folder, cases=plan.cases, seed=plan.seed, save_predictions=False, out=out),
            console,
        )
    return run_directory.read_record(out)


def table_of(
    plan: Plan, scores: Mapping[str, Mapping[str, Any]], models: Mapping[str, Any], rounds: int = 5
) -> dict[str, Any]:
    """Dice of every row, paired with the teacher and with the student without one; size and time of every encoder."""
    rows = {}
    for name, record in scores.items():
        summary = summarise(record["cases"], seed=plan.seed)["summary"]
        dice = next(row for row in summary if row["metric"] == "dice")
        student = name.rpartition(" ")[0]
        others = {TEACHER: TEACHER, "plain": f"{student} plain"}
        rows[name] = {
            "model": student or plan.teacher,
            "dice": {key: dice[key] for key in ("mean", "low", "high", "n")},
            "minus": {
                label: compare(scores[other]["cases"], record["cases"], "dice", seed=plan.seed)
                for label, other in others.items()
                if other in scores and other != name
            },
        }
    first = next(iter(scores.values()))
    return {
        "plan": {k: v for k, v in dataclasses.asdict(plan).items() if k not in ("data", "out")},
        "data": first["data"],
        "data_sha256": first["provenance"]["data_sha256"],
        "profile": first["metric_profile"],
        "versions": versions(),
        "device": device(),
        "networks": rows,
        "encoders": encoders(models, rounds),
    }


def encoders(models: Mapping[str, Any], rounds: int, threads: int = 1) -> dict[str, Any]:
    """Parameters and seconds per image of each model's encoder, by runtime; median of interleaved rounds.

    One thread: processor time; several, for an idle machine: wall-clock time. JAX has as many threads as the process
    has cores (``taskset``).
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for name, model in models.items():
        params, image = model.init(jax.random.key(0)), np.zeros((1, *model.spec.input_shape), np.float32)
        encode = jax.jit(model.encode)
        calls[name, "jax"] = partial(encode, params, image[0])
        for to in ("onnx", "litert"):
            try:
                file = export_encoder(model, params, to=to)
            except CannotExport as refused:
                Console().print(f"{name}: {refused}", markup=False)
                continue
            part = encoder_part(lambda x, model=model, params=params: model.encode(params, x), model.spec, 1)
            calls[name, to] = partial(bundle.network(file, part_record(part), threads=threads), image)
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            start = clock()
            jax.block_until_ready(call())
            seconds[key].append(clock() - start)
    return {
        name: {
            "parameters": model.parameters,
            "seconds": {to: statistics.median(s) for (n, to), s in seconds.items() if n == name},
        }
        for name, model in models.items()
    }


def markdown(table: Mapping[str, Any]) -> str:
    """The table as text."""
    whole = table["encoders"][table["plan"]["teacher"]]
    lines = [
        "| row | parameters | encoder's time of the teacher's, by runtime | Dice | minus teacher | minus without |",
        "|---" * 6 + "|",
    ]
    for name, row in table["networks"].items():
        encoder, dice = table["encoders"][row["model"]], row["dice"]
        shares = ", ".join(
            f"{to} {s / whole['seconds'][to]:.2f}"
            for to, s in encoder["seconds"].items()
            if to in whole["seconds"]
        )
        paired = (
            f"{d['difference']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
            if (d := row["minus"].get(label))
            else "-"
            for label in (TEACHER, "plain")
        )
        lines.append(
            f"| {name} | {encoder['parameters'] / 1e6:.1f} M | {shares} | "
            f"{dice['mean']:.3f} ({dice['low']:.3f} to {dice['high']:.3f}) | {' | '.join(paired)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(tyro.cli(Plan))
