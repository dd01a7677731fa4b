"""Training pictures and frozen encoders that the tools on features look at."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data import Dataset
from medvfm_jax.distill.teacher import open_teacher
from medvfm_jax.few_shot.dense_features import load_encoder, pictures_of
from medvfm_jax.printable import counted
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.analyze.pictures import EncodersConfig, PicturesConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.data_check import check_split
from medvfm_jax.train.dense_encoder import DenseEncoder
from medvfm_jax.train.training_data import SplitData, open_split

T = TypeVar("T")


class Sample(NamedTuple):
    """Labelled pictures of the training part, spread evenly over its cases.

    Attributes:
        dataset: that they are of.
        cases: names, one for each picture.
        pictures: (H, W, C) each.
        labels: their class indices, (H, W) each, IGNORE where unlabelled.
    """

    dataset: Dataset
    cases: tuple[str, ...]
    pictures: tuple[NDArray, ...]
    labels: tuple[NDArray, ...]


def open_sample(config: PicturesConfig, say: Callable[[str], None], *, at_least: int = 4) -> Sample:
    """Pictures of ``config.cases`` training cases; of a volume, a slice with a label.

    Raises:
        BadConfig: fewer cases than ``at_least``.
        MedvfmError: data that cannot be read.
    """
    source, cases = training_cases(config, config.data, say)
    wanted = min(config.cases, len(cases))
    if wanted < at_least:
        raise BadConfig(
            f"The training part of {source.dataset.name} has {counted(wanted, 'case')}; {at_least} are needed."
        )
    if wanted < config.cases:
        say(f"note: the training part has {wanted} cases, fewer than --cases {config.cases}")
    chosen = tuple(spread(cases, wanted))
    found = [pictures_of(source.dataset, case, slices=1)[0] for case in chosen]
    return Sample(source.dataset, chosen, tuple(p for p, _ in found), tuple(label for _, label in found))


class Encoders(NamedTuple):
    """Encoders, and the pictures that each is looked at on.

    Attributes:
        data: name of the dataset, "" for pictures of noise.
        images: pictures of each.
        each: name -> (encoder, its pictures (H, W, C)); those of noise are as large as its input.
    """

    data: str
    images: int
    each: dict[str, tuple[DenseEncoder, Sequence[NDArray]]]


def open_encoders(config: EncodersConfig, say: Callable[[str], None]) -> Encoders:
    """The encoders of ``config.models`` on pictures of its data, or without data on the same noise for each size.

    Raises:
        BadConfig: fewer than four cases, a model of volumes, or one without published weights.
        MedvfmError: data, weights or a run that cannot be read.
    """
    sample = open_sample(config, say) if config.data is not None else None
    found = {name: open_encoder(name, config.offline) for name in config.models}
    if sample is not None:
        each = {name: (encoder, sample.pictures) for name, encoder in found.items()}
        return Encoders(sample.dataset.name, len(sample.pictures), each)
    each = {}
    for name, encoder in found.items():
        rng = np.random.default_rng(config.seed)
        size = encoder.spec.input_shape
        each[name] = encoder, [rng.integers(0, 256, size, np.uint8) for _ in range(config.cases)]
    return Encoders("", config.cases, each)


def training_cases(
    config: PicturesConfig, data: str, say: Callable[[str], None]
) -> tuple[SplitData, list[str]]:
    """A dataset, and the cases of its training part that can be used.

    Raises:
        MedvfmError: data that cannot be read.
    """
    source = open_split(
        data, seed=config.seed, val=config.val_fraction, test=config.test_fraction, offline=config.offline,
        allow_geometry_mismatch=config.allow_geometry_mismatch, follow_links=config.follow_links,
    )  # fmt: skip
    with ProgressDisplay(title="analyze") as display:
        bad = check_split(source, skip_bad=config.skip_bad, track=display.track, say=say).bad_cases()
    return source, [case for case in source.split.train if case not in bad]


def spread(items: Sequence[T], count: int) -> list[T]:
    """So many of the items, evenly, each the middle of as many parts; all where there are no more."""
    count = min(count, len(items))
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def open_encoder(name: str, offline: bool) -> DenseEncoder:
    """The frozen encoder of a model by name, or of a run directory.

    Raises:
        BadConfig: a model of volumes, or one without published weights.
        MedvfmError: weights or a run that cannot be read.
    """
    if not Path(name).is_dir():
        base = load_encoder(name, offline=offline)
        return DenseEncoder(base.model, base.params)
    teacher = open_teacher(name, dtype="float32", weights=None, offline=offline)
    return DenseEncoder(teacher, teacher.params)
