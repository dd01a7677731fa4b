"""Features and classes of a labelled support."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax import weights
from medvfm_jax.data import Case, Dataset, read_case
from medvfm_jax.images.frame import Frame, to_target
from medvfm_jax.predict.case_prediction import Pictures, planes_of
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import Base, entry_of, options_of
from medvfm_jax.train.dense_encoder import DenseEncoder
from medvfm_jax.types import MedvfmError
from medvfm_jax.weights import artifacts


class BadSupport(MedvfmError, ValueError):
    """Labelled cases of which nothing can be learned about a class."""


class Support(NamedTuple):
    """Labelled pictures as features.

    Attributes:
        features: (n, h, w, c).
        shares: (n, K, h, w), the share of each place that each class covers; 0 in all where nothing is known.
        pictures: the n pictures, (H, W, C) each.
        labels: their class indices, (H, W) each, IGNORE where unlabelled.
        cases: names of the cases they come from.
    """

    features: NDArray[np.float32]
    shares: NDArray[np.float32]
    pictures: Sequence[NDArray]
    labels: Sequence[NDArray[np.int32]]
    cases: tuple[str, ...]


def load_encoder(
    name: str, *, file: Path | None = None, dtype: str = "float32", offline: bool = False
) -> Base:
    """A frozen model by name, also one that gives features alone.

    Raises what ``weights.load`` raises, and BadConfig for a model without published weights.
    """
    if entry_of(name).start == "random" and file is None:
        raise BadConfig(
            f"Model '{name}' starts from random weights, whose features mean nothing; choose another."
        )
    model, params = weights.load(name, file, offline=offline, **options_of(dtype))
    return Base(model, params, artifacts.fingerprint(params))


def class_shares(frame: Frame, label: NDArray, classes: int) -> NDArray[np.float32]:
    """Class indices (H, W) -> (K, h, w): the share of each place that each class covers, 0 in the padding."""
    masks = np.asarray(label)[None] == np.arange(classes)[:, None, None]
    return np.maximum(to_target(frame, masks), 0)


def pictures_of(dataset: Dataset, case: Case | str, slices: int) -> list[tuple[NDArray, NDArray[np.int32]]]:
    """The picture of a case and its labels, or at most so many slices, evenly among those with a label."""
    loaded = read_case(dataset, case)
    if loaded.label is None:
        raise BadSupport(f"Case '{loaded.case.id}' of {dataset.folder} has no label map to learn from.")
    pictures, labels = Pictures(dataset, loaded), planes_of(loaded, loaded.label)
    if not loaded.image.is_volume:
        return [(pictures[0], labels[0])]
    labelled = [i for i, label in enumerate(labels) if (label > 0).any()] or [len(labels) // 2]
    count = min(slices, len(labelled))
    some = ((np.arange(count) + 0.5) * len(labelled) / count).astype(
        int
    )  # the middle of each of as many parts
    return [(pictures[labelled[i]], labels[labelled[i]]) for i in some]


def encode_support(encoder: DenseEncoder, dataset: Dataset, cases: Sequence[str], slices: int = 8) -> Support:
    """Read and encode labelled cases.

    Args:
        encoder: of the features.
        dataset: that has the cases.
        cases: names.
        slices: of a volume, at most so many.

    Returns:
        The support.

    Raises:
        BadSupport: a class that none of the cases shows.
        BadCase: a case that cannot be read.
    """
    pairs = [pair for case in cases for pair in pictures_of(dataset, case, slices)]
    encoded = [(*encoder(picture), label) for picture, label in pairs]
    shares = np.stack([class_shares(frame, label, dataset.classes) for _, frame, label in encoded])
    check_classes(shares, dataset.labels, cases)
    features = np.stack([found for found, *_ in encoded])
    return Support(features, shares, *zip(*pairs, strict=True), tuple(cases))


def check_classes(shares: NDArray, labels: Mapping[str, int], cases: Sequence[str]) -> None:
    """Raise BadSupport for a class that covers nothing of the support."""
    covered = shares.sum((0, 2, 3))
    missing = [name for name, value in labels.items() if covered[value] == 0]
    if missing:
        raise BadSupport(
            f"The support ({', '.join(list(cases)[:4])}{' ...' if len(cases) > 4 else ''}) shows nothing of "
            f"{', '.join(missing)}; take more --train-cases, or another --seed or --select-cases."
        )
