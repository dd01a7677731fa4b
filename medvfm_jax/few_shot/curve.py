"""Scores against the number of labelled cases: every seed and size learns in one compiled program."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray
from rich.console import Console

from medvfm_jax.data import Dataset, LoadedCase, read_case
from medvfm_jax.data.splits import stratified_order
from medvfm_jax.few_shot.dense_features import (
    BadSupport,
    DenseEncoder,
    class_shares,
    load_encoder,
    pictures_of,
)
from medvfm_jax.few_shot.learners import Learner
from medvfm_jax.few_shot.methods import METHODS
from medvfm_jax.few_shot.predictors import learned_logits
from medvfm_jax.few_shot.scoring import as_evaluation, check_apart, open_data, record_of
from medvfm_jax.images import restore, stack
from medvfm_jax.local_paths import file_word
from medvfm_jax.metrics import profiles, score_case, summarise
from medvfm_jax.predict.case_prediction import Pictures
from medvfm_jax.predict.evaluated_cases import readable
from medvfm_jax.printable import counted
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.progress import tracked
from medvfm_jax.runs.provenance import provenance
from medvfm_jax.settings.few_shot import FewShotConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.data_check import lines

CURVE = "learning_curve.json"
FORMAT = 1
_AT_ONCE = 4 << 30  # bytes of features, counted once for every seed and size, that learn in one program


class Supports(NamedTuple):
    """Nested supports of several seeds and sizes.

    Attributes:
        features: (S, n, h, w, c) of each seed's pictures in order, padded with 0 to as many as the largest has.
        shares: (S, n, K, h, w) of their classes.
        present: (S, Z, n), 1 for the pictures of each seed's support of each size.
    """

    features: NDArray[np.float32]
    shares: NDArray[np.float32]
    present: NDArray[np.float32]


def fit_all(learner: Learner, supports: Supports, keys: Array) -> Any:
    """Learn from every support of every seed by one ``vmap`` of a ``vmap``.

    Args:
        learner: what learns.
        supports: of S seeds and Z sizes.
        keys: (S,) of random weights; the sizes of a seed share one.

    Returns:
        The models, a pytree whose arrays have the leading axes (S, Z).
    """
    of_sizes = jax.vmap(learner.fit, in_axes=(None, None, 0, None))
    return jax.jit(jax.vmap(of_sizes))(supports.features, supports.shares, supports.present, keys)


def seeds_at_once(supports: Supports, limit: int = _AT_ONCE) -> int:
    """How many seeds learn in one program: their features, counted once for each size, stay below ``limit`` bytes."""
    one = supports.features[0].nbytes * supports.present.shape[1]
    return max(1, min(len(supports.features), limit // max(one, 1)))


def learning_curve(config: FewShotConfig, console: Console | None = None) -> dict[str, Any]:
    """Learn from ``config.shots`` patients with each of ``config.seeds`` seeds, score the same cases with all.

    Supports of one seed are nested. The pictures of all supports are encoded once; all heads learn in one compiled
    program where ``seeds_at_once`` allows it, and every case to score is encoded once.

    Args:
        config: settings, with ``shots``.
        console: shows progress.

    Returns:
        What was written, and where: "file". "curve" has a row for each size and label: "shots", "label", "mean", "low"
        and "high" of Dice over patients (each the mean over seeds), "n", and the mean of each seed, "seeds".

    Raises:
        BadConfig: settings that contradict each other, a method that does not learn from features alone, or nothing
            left to score.
        BadSupport: more patients than there are, a support that shows nothing of a class, or one that holds an image
            that is to be scored.
        RunError: a file in the way that is no learning curve.
        MedvfmError: data or weights.
    """
    console = console or Console(stderr=True, highlight=False)
    rules = replace(profiles.get(config.profile), scores=("dice", "iou"))
    learner_of = METHODS[config.method].learner
    if learner_of is None:
        known = ", ".join(name for name in METHODS if METHODS[name].learner is not None)
        raise BadConfig(
            f"--shots is for methods that learn from features alone ({known}), not {config.method}."
        )
    source, learning, candidates = open_data(config)
    out = config.out or _default_out(config, source.dataset.name)
    _refuse_foreign(out)
    orders = support_orders(config, learning, candidates)
    names = getattr(source.split, config.split) if config.split != "all" else sorted(source.dataset.by_id)
    taken = {case for order in orders for cases in order for case in cases}
    if learning is source.dataset and (seen := taken & set(names)):
        names = [name for name in names if name not in seen]
        console.print(f"{counted(len(seen), 'case')} of the supports not scored", markup=False)
        if not names:
            raise BadConfig(
                f"All cases of the {config.split} split are in a support; choose another --split."
            )
    cases, checked = readable(source.dataset, names, as_evaluation(config), console)
    if learning is not source.dataset:
        check_apart(cases, [learning.case(name) for name in taken])
    base = load_encoder(config.model, file=config.weights, dtype=config.dtype, offline=config.offline)
    encoder = DenseEncoder(base.model, base.params)
    supports = _encoded(config, encoder, learning, orders, console)
    learner = learner_of(config)
    start = time.perf_counter()
    models = _fit_in_groups(learner, supports, config.seed)
    seconds = time.perf_counter() - start
    at_once = seeds_at_once(supports)
    console.print(
        f"{len(config.shots) * config.seeds} models ({counted(config.seeds, 'seed')} of {len(config.shots)} sizes, "
        f"{counted(at_once, 'seed')} at once) learned in {seconds:.1f} s",
        markup=False,
        soft_wrap=True,
    )
    for line in lines(checked):
        console.print(line, markup=False, soft_wrap=True)
    logits = jax.jit(jax.vmap(jax.vmap(learner.logits, in_axes=(0, None)), in_axes=(0, None)))
    rows: list[list[list[dict[str, Any]]]] = [[[] for _ in config.shots] for _ in range(config.seeds)]
    for case in tracked(cases, "evaluate", console):
        loaded, who = read_case(source.dataset, case), {"case": case.id, "patient": case.patient}
        for seed, sizes in enumerate(_predictions(loaded, source.dataset, encoder, models, logits)):
            for size, labels in enumerate(sizes):
                scored = score_case(
                    loaded.label, labels, dict(source.dataset.labels), loaded.image.spacing, rules
                )
                rows[seed][size] += [who | row for row in scored]
    record = {
        "format": FORMAT,
        "model": f"{config.model} + {config.method}",
        "metric": "dice",
        "metric_profile": config.profile,
        "split": config.split,
        "data": source.dataset.name,
        "few_shot": record_of(config, learning, sorted(taken)) | {"orders": orders},
        "shots": list(config.shots),
        "seeds": config.seeds,
        "seeds_at_once": at_once,
        "fit_seconds": round(seconds, 2),
        "n_cases": len(cases),
        "n_patients": len({case.patient for case in cases}),
        "curve": _curve(config, rows),
        "cases": [
            {"seed": config.seed + s, "shots": config.shots[z]}
            | {k: row[k] for k in ("case", "patient", "label", "dice")}
            for s, sizes in enumerate(rows)
            for z, found in enumerate(sizes)
            for row in found
        ],
        "skipped": [{"case": case, "why": why} for case, why in checked.bad_cases().items()],
        "provenance": provenance(
            seed=config.seed, weights_sha256=base.fingerprint, data_sha256=source.sha256, trained=None
        ),
    }
    run_directory.make_folder(out.parent)
    run_directory.write_json(out, record)
    return run_directory.finite(record) | {"file": str(out)}


def support_orders(
    config: FewShotConfig, dataset: Dataset, candidates: Sequence[str]
) -> list[list[list[str]]]:
    """Cases of the patients of the largest support of every seed, in the order in which they are added.

    Args:
        config: its ``seed`` is that of the first order.
        dataset: that has the cases.
        candidates: names of the cases to choose from.

    Returns:
        [seed][patient][case].

    Raises:
        BadSupport: more patients are asked for than there are.
    """
    orders = []
    for seed in range(config.seed, config.seed + config.seeds):
        patients = stratified_order(dataset, candidates, seed)
        if config.shots[-1] > len(patients):
            raise BadSupport(
                f"{config.shots[-1]} patients were asked for as support; {dataset.folder} leaves {len(patients)}."
            )
        orders.append(
            [[c for c in candidates if dataset.case(c).patient == p] for p in patients[: config.shots[-1]]]
        )
    return orders


def _default_out(config: FewShotConfig, data: str) -> Path:
    return Path("runs") / "_".join(("fewshot", config.method, config.model, file_word(data))) / CURVE


def plot_file(out: Path) -> Path:
    """Where the plot of a learning curve goes."""
    return out.with_suffix(".svg")


def _refuse_foreign(out: Path) -> None:
    """A curve replaces a curve and its plot, nothing else."""
    if out == plot_file(out):
        raise BadConfig(f"--out {out} is the name of the plot; give that of the record, ending in .json.")
    if not out.exists():
        if plot_file(out).exists():
            raise run_directory.RunError(
                f"{plot_file(out)} exists, where the plot would be written; choose another --out."
            )
        return
    try:
        record = run_directory.read_json(out)
    except run_directory.RunError:
        record = None
    if not isinstance(record, dict) or "curve" not in record:
        raise run_directory.RunError(f"{out} exists and holds no learning curve; choose another --out.")


def _encoded(
    config: FewShotConfig,
    encoder: DenseEncoder,
    dataset: Dataset,
    orders: list[list[list[str]]],
    console: Console,
) -> Supports:
    """The supports, every case of them encoded once; raises BadSupport."""
    distinct = list(dict.fromkeys(case for order in orders for cases in order for case in cases))
    found: dict[str, list[tuple[NDArray, NDArray]]] = {}
    for case in tracked(distinct, "features", console):
        pictures = pictures_of(dataset, case, config.slices)
        encoded = [(*encoder(picture), label) for picture, label in pictures]
        found[case] = [(f, class_shares(frame, label, dataset.classes)) for f, frame, label in encoded]
    own = [[[pair for case in cases for pair in found[case]] for cases in order] for order in orders]
    most = max(sum(map(len, order)) for order in own)
    first = next(iter(found.values()))[0]
    features = np.zeros((len(own), most, *first[0].shape), np.float32)
    shares = np.zeros((len(own), most, *first[1].shape), np.float32)
    present = np.zeros((len(own), len(config.shots), most), np.float32)
    for s, order in enumerate(own):
        for i, (f, share) in enumerate(pair for pairs in order for pair in pairs):
            features[s, i], shares[s, i] = f, share
        for z, shots in enumerate(config.shots):
            present[s, z, : sum(map(len, order[:shots]))] = 1
    _check_classes(config, Supports(features, shares, present), dataset.labels)
    return Supports(features, shares, present)


def _check_classes(config: FewShotConfig, supports: Supports, labels: Mapping[str, int]) -> None:
    covered = np.einsum("szn,snk->szk", supports.present, supports.shares.sum((3, 4)))
    for s, z in np.argwhere((covered == 0).any(-1)):
        missing = [name for name, value in labels.items() if covered[s, z, value] == 0]
        raise BadSupport(
            f"The support of {counted(config.shots[z], 'patient')} of seed {config.seed + s} shows nothing of "
            f"{', '.join(missing)}; leave that size out of --shots, or take another --seed."
        )


def _fit_in_groups(learner: Learner, supports: Supports, seed: int) -> Any:
    """``fit_all`` of as many seeds at once as memory allows."""
    keys = jax.vmap(jax.random.key)(np.arange(seed, seed + len(supports.features)))
    step = seeds_at_once(supports)
    groups = [
        fit_all(learner, Supports(*(part[i : i + step] for part in supports)), keys[i : i + step])
        for i in range(0, len(supports.features), step)
    ]
    return jax.block_until_ready(jax.tree.map(lambda *parts: np.concatenate(parts), *groups))


def _predictions(
    case: LoadedCase,
    dataset: Dataset,
    encoder: DenseEncoder,
    models: Any,
    logits: Callable[[Any, NDArray], Array],
) -> list[list[NDArray[np.int16]]]:
    """Class indices of a case by every model: [seed][size] -> map on the case's grid."""
    planes = []
    for picture in Pictures(dataset, case):
        features, frame = encoder(picture)
        found = learned_logits(logits(models, features), encoder.spec.name)
        planes.append([[restore(frame, one).argmax(0).astype(np.int16) for one in sizes] for sizes in found])
    if not case.image.is_volume:
        return planes[0]
    seeds, sizes = len(planes[0]), len(planes[0][0])
    return [
        [stack([plane[s][z] for plane in planes], case.image) for z in range(sizes)] for s in range(seeds)
    ]


def _curve(config: FewShotConfig, rows: list[list[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Means over patients of means over seeds, with intervals over patients, and the mean of each seed."""
    curve = []
    for z, shots in enumerate(config.shots):
        together = summarise([row for sizes in rows for row in sizes[z]], seed=config.seed)["summary"]
        alone = [summarise(sizes[z], seed=config.seed)["summary"] for sizes in rows]
        for row in together:
            if row["metric"] != "dice":
                continue
            seeds = [
                next((r["mean"] for r in found if (r["metric"], r["label"]) == ("dice", row["label"])), None)
                for found in alone
            ]
            kept = ("label", "mean", "low", "high", "interval", "n")
            curve.append({"shots": shots} | {name: row[name] for name in kept} | {"seeds": seeds})
    return curve
