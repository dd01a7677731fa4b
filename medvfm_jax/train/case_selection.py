"""Which cases to train on, by the mean features of a frozen encoder; labels are never looked at."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data import Dataset, read_case
from medvfm_jax.data.selection import SELECTIONS
from medvfm_jax.images import plane
from medvfm_jax.images.geometry import slice_axis
from medvfm_jax.images.intensity import VolumeScale
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.base_model import entry_of, load_base
from medvfm_jax.train.dense_encoder import DenseEncoder
from medvfm_jax.train.training_data import SplitData

Track = Callable[[Sequence[Any], str], Iterable[Any]]

_SLICES = 5  # of a volume, that its mean is made of


def with_selected(
    source: SplitData, config: AdaptConfig, bad: Collection[str], *, track: Track = lambda items, what: items
) -> SplitData:
    """The same data with the training patients that ``config.select_cases`` chooses among those of the split.

    Args:
        source: with all training cases.
        config: says the model whose features are compared, how to choose, and how many patients.
        bad: cases that cannot be read.
        track: shows progress.

    Returns:
        Validation and test stay the same.

    Raises:
        BadSelection: fewer patients than asked for.
        BadConfig: a model that starts from random weights or sees volumes.
    """
    entry = entry_of(config.model)
    if entry.start == "random" and config.weights is None:
        raise BadConfig(
            f"Model '{config.model}' starts from random weights, whose features choose no cases; use --select-cases "
            "random."
        )
    base = load_base(
        config.model,
        classes=source.dataset.classes,
        seed=config.seed,
        dtype=config.dtype,
        file=config.weights,
        offline=config.offline,
    )
    encoder = DenseEncoder(base.model, base.params)
    cases = [case for case in source.split.train if case not in bad]
    patients = list(dict.fromkeys(source.dataset.case(case).patient for case in cases))
    vectors = mean_features(source.dataset, cases, track(patients, "features"), encoder.mean)
    chosen = {patients[i] for i in SELECTIONS[config.select_cases](vectors, config.train_cases)}
    kept = tuple(case for case in cases if source.dataset.case(case).patient in chosen)
    return source._replace(split=source.split._replace(train=kept))


def mean_features(
    dataset: Dataset,
    cases: Sequence[str],
    patients: Iterable[str],
    encode: Callable[[NDArray], NDArray],
) -> NDArray[np.float32]:
    """A vector of each patient: the mean of ``encode`` over the pictures of the patient's cases.

    Args:
        dataset: that has the cases.
        cases: names; those of the patients.
        patients: in the order of the rows.
        encode: picture (H, W, C) -> (c,). Of a volume it sees five slices, evenly spaced.

    Returns:
        (patients, c).
    """
    own: dict[str, list[str]] = {}
    for case in cases:
        own.setdefault(dataset.case(case).patient, []).append(case)
    return np.stack(
        [
            np.mean(
                [encode(picture) for case in own[patient] for picture in _pictures(dataset, case)], axis=0
            )
            for patient in patients
        ]
    )


def _pictures(dataset: Dataset, name: str) -> list[NDArray]:
    image = read_case(dataset, name).image
    if not image.is_volume:
        return [image.array]
    axis, scale = slice_axis(image), VolumeScale(image.array, dataset.channel_names)
    last = image.grid[axis] - 1
    where = np.linspace(0.1 * last, 0.9 * last, min(_SLICES, last + 1)).round().astype(int)
    return [scale(plane(image.array, axis, int(i))) for i in where]
