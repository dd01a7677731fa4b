"""Which of several frozen encoders has features from which the classes of a dataset follow."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.frame import Frame
from medvfm_jax.printable import counted
from medvfm_jax.settings.analyze import TransferabilityConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.empirical_predictor import n_leep
from medvfm_jax.theory.evidence import logme
from medvfm_jax.theory.h_score import h_score
from medvfm_jax.theory.probes import held_out_accuracy, neighbour_predictions, ridge_predictions
from medvfm_jax.theory.runs.pictures import Sample, open_encoder, open_sample
from medvfm_jax.theory.runs.points import Points, features_at, labelled_points
from medvfm_jax.train.dense_encoder import BadFeatures

_FOLDS = 8  # of patients: left out in turns for standard errors, held out for probes


class Estimate(NamedTuple):
    """A number.

    Attributes:
        value: of all points.
        error: its standard error over patients.
    """

    value: float
    error: float


class Transferability(NamedTuple):
    """What is said of one encoder.

    Attributes:
        model: as it was named.
        features: numbers at each point.
        logme: largest evidence of the classes per point.
        h_score: of the classes.
        by_chance: H-score that as many features have of which nothing follows; near ``h_score`` there are too few
            points for it.
        h_score_shrunk: the same with a shrunk covariance.
        n_leep: mean log probability of the right class, told by clusters of the features.
        probe: share of points of held-out patients that a ridge classifier gets right, mean over patients.
        neighbour: the same of the nearest point.
        seconds: for the features, compilation included, and for the tools.
    """

    model: str
    features: int
    logme: Estimate
    h_score: Estimate
    by_chance: float
    h_score_shrunk: Estimate
    n_leep: Estimate
    probe: Estimate
    neighbour: Estimate
    seconds: tuple[float, float]


class TransferabilityResult(NamedTuple):
    """Encoders, the one with the largest evidence first.

    Attributes:
        data: name of the dataset.
        images: pictures that were looked at.
        points: class -> labelled points.
        models: one for each encoder.
    """

    data: str
    images: int
    points: dict[str, int]
    models: tuple[Transferability, ...]


def analyze_transferability(
    config: TransferabilityConfig, say: Callable[[str], None] = lambda text: None
) -> TransferabilityResult:
    """Rank frozen encoders by how well classes follow from their features, on the same points for all.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Transferability estimates, and probes of held-out patients as a cheap measurement.

    Raises:
        BadConfig: pictures of fewer than four patients, or points of one class alone.
        BadFeatures: features that are constant, not finite, or as many as the points.
        MedvfmError: settings, data or weights that do not fit.
    """
    sample = open_sample(config, say)
    points = labelled_points(sample, config.points)
    names = {value: name for name, value in sample.dataset.labels.items()}
    counts = {name: int((points.classes == value).sum()) for value, name in names.items()}
    if missing := [name for name, count in counts.items() if not count]:
        say(f"note: no picture shows {', '.join(missing)}; left out")
    if len(np.unique(points.classes)) < 2:
        raise BadConfig(
            f"{counted(len(sample.pictures), 'picture')} of {sample.dataset.name} show one class alone; "
            "take more --cases."
        )
    patients = len(np.unique(points.patients))
    if patients < 4:
        raise BadConfig(
            f"The pictures are of {counted(patients, 'patient')}; 4 are needed: take more --cases."
        )
    encoders, found = {name: open_encoder(name, config.offline) for name in config.models}, []
    for name, encoder in encoders.items():
        say(f"{name}: {counted(len(points.classes), 'point')} of {counted(len(sample.pictures), 'picture')}")
        found.append(transferability(name, encoder, sample, points))
    found.sort(key=lambda one: -one.logme.value)
    return TransferabilityResult(sample.dataset.name, len(sample.pictures), counts, tuple(found))


def transferability(
    name: str, encoder: Callable[[NDArray], tuple[NDArray, Frame]], sample: Sample, points: Points
) -> Transferability:
    """What is said of one encoder; raises BadFeatures.

    encoder: picture -> features on its grid, and the frame of the picture.
    """
    start = time.monotonic()
    features = features_at(encoder, sample, points)
    seen = time.monotonic()
    try:
        said = _estimates(features, points)
    except ValueError as error:
        raise BadFeatures(
            f"{name} cannot be ranked on {len(features)} points of {sample.dataset.name}: {error}. Leave it out, "
            "or take more --cases or --points."
        ) from error
    return Transferability(name, features.shape[1], *said, (seen - start, time.monotonic() - seen))


def _estimates(x: NDArray, points: Points) -> list[Estimate | float]:
    """LogME, H-score, what it is by chance, the shrunk one, N-LEEP, probe and nearest neighbour."""
    classes, patients = points.classes, points.patients
    scores = (logme, h_score, lambda x, classes: h_score(x, classes, shrink=True), n_leep)
    folds = min(_FOLDS, len(np.unique(patients)))
    said = [_jackknifed(score, x, classes, patients % folds) for score in scores]
    for predict in (ridge_predictions, neighbour_predictions):
        right = held_out_accuracy(predict, x, classes, patients, folds)
        said.append(Estimate(float(right.mean()), float(right.std(ddof=1) / len(right) ** 0.5)))
    independent, kinds = min(x.shape[1], len(x) - 1), len(np.unique(classes))
    return [*said[:2], independent * (kinds - 1) / (len(x) - 1), *said[2:]]


def _jackknifed(
    score: Callable[[NDArray, NDArray], float], x: NDArray, classes: NDArray, folds: NDArray
) -> Estimate:
    """A score, and its standard error by leaving out one fold after the other."""
    parts = np.unique(folds)
    without = np.array([score(x[folds != part], classes[folds != part]) for part in parts])
    variance = (len(parts) - 1) / len(parts) * np.square(without - without.mean()).sum()
    return Estimate(score(x, classes), float(variance**0.5))
