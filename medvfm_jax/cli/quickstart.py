"""`medvfm quickstart`: real weights and real images, from nothing to a report, in a few minutes."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from medvfm_jax import report
from medvfm_jax.cli import console
from medvfm_jax.cli.options.quickstart import QuickstartArgs
from medvfm_jax.data import mni152, open_dataset
from medvfm_jax.images.writing import write_atomically
from medvfm_jax.predict import evaluate
from medvfm_jax.predict.overlay_cases import choose, slice_to_show
from medvfm_jax.predict.scored_cases import reread
from medvfm_jax.report.overlays import draw
from medvfm_jax.report.picture import Panel, grid
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.train import AdaptConfig, adapt

MODEL, ADAPTER = "lite-medsam", "decoder"
ZERO_SHOT, ADAPTED = "zero_shot", "adapted"


def run(args: QuickstartArgs) -> int:
    """Score, adapt, score, report."""
    start = time.monotonic()
    config = AdaptConfig(
        data=mni152.NAME,
        model=MODEL,
        adapter=ADAPTER,
        prompt="none",
        out=args.out / ADAPTED,
        resume=(args.out / ADAPTED).exists(),
        steps=args.steps,
        validate_every=max(1, args.steps // 3),
        validation_images=16,
        seed=args.seed,
        offline=args.offline,
    )
    _refuse_other_settings(args)
    lines = Console(file=sys.stderr if console.json_mode() else sys.stdout, highlight=False, soft_wrap=True)
    lines.print(f"{MODEL} on {mni152.NAME}: {mni152.NOTE}", markup=False)
    zero_shot = _once(args.out / ZERO_SHOT, lambda: _zero_shot(args, lines))
    if not (config.out / run_directory.DELTA).exists():
        with ProgressDisplay(lines.file, "adapt") as display:
            adapt(config, display)
    scoring = EvaluateConfig(run=config.out, seed=args.seed, offline=args.offline)
    adapted = _once(config.out, lambda: evaluate(scoring, lines))
    page = report.write([args.out / ZERO_SHOT, config.out], args.out / "report.html")
    picture = args.out / "picture.png"
    if not picture.exists():
        write_atomically(picture, _picture(args, adapted))
    rows = {
        f"{MODEL} zero-shot, boxes from the reference": zero_shot,
        f"adapted ({ADAPTER}), no prompts": adapted,
    }
    text = "\n".join(
        [
            "",
            *[f"{name}: Dice {_dice(scores)}" for name, scores in rows.items()],
            f"picture: {picture}",
            f"report: {page}  ({(time.monotonic() - start) / 60:.1f} min)",
            f"next: medvfm segment IMAGE --run {config.out} --out MASK, or medvfm adapt --data YOUR_FOLDER",
        ]
    )
    console.result({"report": page, ZERO_SHOT: _summary(zero_shot), ADAPTED: _summary(adapted)}, text)
    return 0


def _refuse_other_settings(args: QuickstartArgs) -> None:
    """What is there already was made with the same settings, or nothing is done. Raises RunExists."""
    scores, settings = args.out / ZERO_SHOT / run_directory.SCORES, args.out / ADAPTED / run_directory.CONFIG
    before = {}
    if scores.exists():
        before["seed"] = _recorded(scores, "provenance", "seed")
    if settings.exists():
        before |= {name: _recorded(settings, name) for name in ("seed", "steps")}
    for name, value in before.items():
        if value != getattr(args, name):
            raise run_directory.RunExists(
                f"{args.out} was started with --{name} {value}, now it is {getattr(args, name)}; go on with the "
                "same, or choose another --out."
            )


def _recorded(path: Path, *names: str) -> Any:
    """A value inside a file of an earlier start. Raises RunError."""
    value: Any = run_directory.read_record(path)
    for name in names:
        if not isinstance(value, dict) or name not in value:
            raise run_directory.RunError(
                f"{path} is damaged: it has no '{name}'; delete it to have it made again."
            )
        value = value[name]
    return value


def _zero_shot(args: QuickstartArgs, lines: Console) -> dict[str, Any]:
    folder = args.out / ZERO_SHOT
    config = EvaluateConfig(
        model=MODEL,
        data=mni152.NAME,
        seed=args.seed,
        out=folder / run_directory.SCORES,
        offline=args.offline,
    )
    return evaluate(config, lines)


def _picture(args: QuickstartArgs, adapted: dict[str, Any]) -> bytes:
    """Per label the adapted model's median case, zero-shot on the left, adapted on the right."""
    dataset = open_dataset(mni152.NAME, offline=args.offline)
    columns = {"zero-shot, boxes from the reference": ZERO_SHOT, "adapted, no prompts": ADAPTED}
    rows = []
    for label, value in dataset.labels.items():
        ranks = choose(adapted["cases"], label) if value else {}
        chosen = ranks.get("median", ranks.get("best"))  # a single case is called the best
        row = []
        for words, run in columns.items() if chosen else ():
            case, predicted = reread(dataset, chosen["case"], args.out / run / "predictions")
            png = draw(*slice_to_show(dataset, case, predicted, value))
            row.append(Panel(png, f"{label}, {words}"))
        rows += [row] if row else []
    return grid(rows)


def _once(folder: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The scores in a run directory, made when they are not there."""
    path = folder / run_directory.SCORES
    if not path.exists():
        return make()
    scores = dict(report.load(path).scores)  # refuses what is damaged
    if not any(row["metric"] == "dice" for row in scores.get("summary", [])):
        raise run_directory.RunError(f"{path} holds no Dice; delete it to have it made again.")
    return scores


def _summary(scores: dict[str, Any]) -> dict[str, Any]:
    return next(row for row in scores["summary"] if row["metric"] == "dice")


def _dice(scores: dict[str, Any]) -> str:
    row = _summary(scores)
    between = "" if row["low"] is None else f"95 % interval {row['low']:.3f} to {row['high']:.3f}, "
    return f"{row['mean']:.3f} ({between}n = {row['n']})"
