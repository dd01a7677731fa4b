"""Dice against box jitter and click noise: how exact a prompt has to be.

python -m experiments.prompt_robustness --data DATA/dsb2018 --out runs/prompt_robustness

Every object of a test image is asked about alone, with its tight box or with the pixel farthest from its border, made
worse step by step. At noise s each of the four sides of a box moves by a uniform amount between -s and s times the side
of the box in that direction, inwards or outwards; a click moves by normal noise of standard deviation s times the side,
and may then lie outside its object. Dice of an image is the mean over its objects, and intervals are over images
(``metrics.bootstrap``). The numbers of an image do not depend on which others are scored, so a sweep that was stopped
goes on where it was, and ``--cases`` can be raised later.

Results: experiments/results/prompt_robustness.json, docs/images/prompt_robustness.svg, and a table in docs/results.md.
"""

import dataclasses
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax import compilation_cache, cpu
from medvfm_jax.data import Dataset, read_case
from medvfm_jax.images import Query, box_of, centre_point, frame_of
from medvfm_jax.metrics.bootstrap import bounds_of, interval, method
from medvfm_jax.predict import Segmenter, load_segmenter
from medvfm_jax.report.charts import Series, curves, standalone
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import tracked
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.training_data import open_split

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results" / "prompt_robustness.json"
PLOT = ROOT / "docs" / "images" / "prompt_robustness.svg"
AT_ONCE = 16  # objects per call of the decoder


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is asked of which model."""

    data: str
    """Folder of a dataset of pictures with instances."""
    out: Path = Path("runs/prompt_robustness")
    """Folder for the scores of each image, from which a stopped sweep goes on."""
    model: str | None = "lite-medsam"
    """Model to prompt."""
    weights: Path | None = None
    """File of its weights, where they are not fetched."""
    run: Path | None = None
    """Run of `adapt` in place of the published weights; then --model is not looked at."""
    kinds: tuple[str, ...] = ("box", "point")
    """Kinds of prompts."""
    noise: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3)
    """Shares of the side of an object's box."""
    cases: int = 24
    """Test images, drawn at random."""
    objects: int = 8
    """Of an image at most so many, drawn at random."""
    seed: int = 0
    """Of the split, of the draws and of the noise."""
    results: Path = RESULTS
    """JSON to write."""
    plot: Path = PLOT
    """SVG to write."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if not self.kinds or set(self.kinds) - {"box", "point"}:
            raise BadConfig(f"kinds are {' '.join(self.kinds) or 'none'}; expected box, point or both.")
        if not self.noise or not all(0 <= share < 1 for share in self.noise):
            raise BadConfig("noise is a share of a side; expected numbers from 0 to below 1.")
        if min(self.cases, self.objects) < 1:
            raise BadConfig("cases and objects are numbers of 1 or more.")


def moved_box(
    rng: np.random.Generator, box: NDArray, share: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """A box (4,) whose sides moved by up to ``share`` of the box's sides, within the image, and still a box.

    ``images.jitter_box`` is the noise of training, which moves sides outwards alone.
    """
    sides = np.tile(box[2:] - box[:2] + 1, 2)
    moved = np.clip(box + share * sides * rng.uniform(-1, 1, 4), 0, [shape[1] - 1, shape[0] - 1] * 2)
    return np.concatenate([np.minimum(moved[:2], moved[2:]), np.maximum(moved[:2], moved[2:])]).astype(
        np.float32
    )


def moved_point(
    rng: np.random.Generator, point: NDArray, box: NDArray, share: float, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """A click (2,) with normal noise of ``share`` of the box's sides, within the image."""
    moved = point + share * (box[2:] - box[:2] + 1) * rng.normal(size=2)
    return np.clip(moved, 0, [shape[1] - 1, shape[0] - 1]).astype(np.float32)


def query_of(kind: str, rng: np.random.Generator, mask: NDArray, share: float) -> Query:
    """The noisy prompt for an object (H, W) bool."""
    box = box_of(mask)
    if kind == "box":
        return Query(moved_box(rng, box, share, mask.shape))
    return Query(
        None, moved_point(rng, centre_point(mask), box, share, mask.shape)[None], np.ones(1, np.int32)
    )


def dice_of(prediction: NDArray, mask: NDArray) -> float:
    """Dice of two masks of which the second is not empty."""
    return float(2 * (prediction & mask).sum() / (prediction.sum() + mask.sum()))


def score_image(segmenter: Segmenter, dataset: Dataset, name: str, plan: Sweep) -> dict[str, Any]:
    """{"objects": their number, kind: mean Dice at each noise} of one image."""
    case = read_case(dataset, name)
    if case.image.is_volume or case.instances is None:
        raise BadConfig(f"{name} is no picture with instances; this sweep asks about objects of pictures.")
    opened = segmenter.interactive(case.image)
    least = frame_of(segmenter.member.spec, *case.image.grid).least_object
    rng = np.random.default_rng([plan.seed, zlib.crc32(name.encode())])
    numbers, sizes = np.unique(case.instances[case.instances > 0], return_counts=True)
    numbers = numbers[sizes >= least]
    chosen = np.sort(rng.permutation(numbers)[: plan.objects])
    at_once = min(plan.objects, AT_ONCE)
    record: dict[str, Any] = {"objects": len(chosen)}
    for kind in plan.kinds if len(chosen) else ():
        record[kind] = []
        for share in plan.noise:
            # The same noise, larger: levels are compared on the same draws, whatever the others are.
            draws = np.random.default_rng([plan.seed, zlib.crc32(f"{name} {kind}".encode())])
            scores: list[float] = []
            for start in range(0, len(chosen), at_once):
                masks = [case.instances == number for number in chosen[start : start + at_once]]
                queries = [query_of(kind, draws, mask, share) for mask in masks]
                queries += queries[-1:] * (at_once - len(queries))  # one program for all
                found = opened(queries).logits[:, 0] > 0
                scores += [dice_of(one, mask) for one, mask in zip(found, masks)]
            record[kind].append(float(np.mean(scores)))
    return record


def summary(images: Mapping[str, Mapping[str, Any]], plan: Sweep) -> dict[str, list[dict[str, Any]]]:
    """{kind: one row per noise}: the mean over images with its interval."""
    table: dict[str, list[dict[str, Any]]] = {}
    for kind in plan.kinds:
        values = np.array([image[kind] for image in images.values() if image["objects"]])
        table[kind] = []
        for k, share in enumerate(plan.noise):
            low, high = interval(values[:, k], plan.seed, bounds=bounds_of("dice"))
            row = {"noise": share, "mean": float(values[:, k].mean()), "low": low, "high": high}
            table[kind].append(row | {"interval": method(values[:, k]), "n": len(values)})
    return table


def chart(table: Mapping[str, Sequence[Mapping[str, Any]]], title: str) -> str:
    """The curves as an SVG file."""
    names = {"box": "box", "point": "click"}
    series = [
        Series(
            names[kind],
            [(100 * row["noise"], row["mean"]) for row in rows],
            dots=True,
            bars=[(100 * row["noise"], row["low"], row["high"]) for row in rows if row["low"] is not None],
        )
        for kind, rows in table.items()
    ]
    return standalone(curves(title, series, "noise, % of the side of the object's box"))


def sweep(plan: Sweep) -> dict[str, Any]:
    """Score every image that is not there yet, and write JSON and plot."""
    console = Console(file=sys.stderr, highlight=False)
    facts = {
        name: value
        for name, value in dataclasses.asdict(plan).items()
        if name not in ("cases", "out", "results", "plot")
    }
    facts = {
        name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for name, value in facts.items()
    }
    opened = open_split(plan.data, seed=plan.seed, val=0.15, test=0.2)
    facts |= {"data": Path(plan.data).name, "data_sha256": opened.sha256}
    file = plan.out / "images.json"
    plan.out.mkdir(parents=True, exist_ok=True)
    kept = run_directory.read_json(file) if file.exists() else {"settings": facts, "images": {}}
    if kept["settings"] != facts:
        raise BadConfig(f"{file} holds scores of another sweep; choose another --out.")
    order = np.random.default_rng(plan.seed).permutation(sorted(opened.split.test))[: plan.cases].tolist()
    missing = [name for name in order if name not in kept["images"]]
    if missing:
        say = partial(console.print, markup=False)
        model = None if plan.run is not None else plan.model
        segmenter = load_segmenter(model, run=plan.run, weights=plan.weights, say=say)
        for name in tracked(missing, "sweep", console):
            kept["images"][name] = score_image(segmenter, opened.dataset, name, plan)
            run_directory.write_json(file, kept)
    images = {name: kept["images"][name] for name in order}
    if not any(image["objects"] for image in images.values()):
        raise BadConfig("None of the images holds an object that is large enough for the model.")
    table = summary(images, plan)
    record = {
        "settings": facts,
        "n_images": sum(bool(image["objects"]) for image in images.values()),
        "n_objects": sum(image["objects"] for image in images.values()),
        "versions": versions(),
        "device": device(),
        "curves": table,
        "images": images,
    }
    run_directory.write_json(plan.results, record)
    what = plan.run.name if plan.run is not None else plan.model
    plan.plot.parent.mkdir(parents=True, exist_ok=True)
    plan.plot.write_text(chart(table, f"Dice, {what}, {record['n_images']} images"), encoding="utf-8")
    return record


def markdown(record: Mapping[str, Any]) -> str:
    """The table for docs/results.md."""
    kinds = list(record["curves"])
    lines = ["| noise, share of the side | " + " | ".join(kinds) + " |", "|---" * (1 + len(kinds)) + "|"]
    for rows in zip(*record["curves"].values()):
        cells = [
            f"{r['mean']:.3f}" + (f" ({r['low']:.3f} to {r['high']:.3f})" if r["low"] is not None else "")
            for r in rows
        ]
        lines.append(f"| {rows[0]['noise']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(plan: Sweep) -> None:
    cpu.tune()
    compilation_cache.enable()
    record = sweep(plan)
    print(markdown(record))
    print(f"{record['n_images']} images, {record['n_objects']} objects; {plan.results}; {plan.plot}")


if __name__ == "__main__":
    main(tyro.cli(Sweep))
