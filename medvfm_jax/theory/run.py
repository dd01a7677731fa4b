"""From settings to a record: gradients of a model on training images, one after the other."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.distill.teacher import open_teacher
from medvfm_jax.few_shot.dense_features import load_encoder, pictures_of
from medvfm_jax.printable import counted
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.analyze import PlacementConfig, SimilarityConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.gradient_moments import moments
from medvfm_jax.theory.placement import Place, alike, grouped, place, within_budget
from medvfm_jax.theory.similarity import debiased_cka
from medvfm_jax.train.data_check import check_split
from medvfm_jax.train.dense_encoder import DenseEncoder
from medvfm_jax.train.loop import NonFiniteLoss
from medvfm_jax.train.task import make_loss
from medvfm_jax.train.training import Run, resolve
from medvfm_jax.train.training_data import open_split


class PlacementResult(NamedTuple):
    """What was found, and what it cost.

    Attributes:
        model: its name.
        data: name of the dataset.
        images: whose gradients were computed.
        seconds: that they took, compilation included.
        places: every weight, the largest gain per trained number first.
        groups: the same, of weights whose paths differ by numbers alone.
        chosen: groups within the budget; empty without one.
    """

    model: str
    data: str
    images: int
    seconds: float
    places: tuple[Place, ...]
    groups: tuple[Place, ...]
    chosen: tuple[Place, ...]

    @property
    def pattern(self) -> str:
        """Regular expression of the modules of the chosen groups, for ``--set lora.at=``; "" without any."""
        paths = [place.path.removesuffix("/kernel") for place in self.places]
        chosen = [group.path.removesuffix("/kernel") for group in self.chosen]
        return "|".join(_pattern(group, [path for path in paths if alike(path) == group]) for group in chosen)


def _pattern(group: str, paths: Sequence[str]) -> str:
    """``neck_*`` and neck_0, neck_2 -> ``neck_(0|2)``: what stands between them may be no kernel's."""
    first, *others = map(re.escape, group.split("*"))
    numbers = [re.fullmatch(r"(\d+)".join([first, *others]), path).groups() for path in paths]
    choices = ("|".join(sorted(set(column), key=int)) for column in zip(*numbers))
    return first + "".join(f"({choice}){rest}" for choice, rest in zip(choices, others))


def analyze_placement(
    config: PlacementConfig, say: Callable[[str], None] = lambda text: None
) -> PlacementResult:
    """Predict where a low-rank update helps most, from gradients of the loss on training images.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Moments of the gradient of every kernel, and the gain that a first step should bring.

    Raises:
        BadConfig: a training part of one image, or no kernel whose path fits ``config.at``.
        MedvfmError: settings, data or weights that do not fit.
        NonFiniteLoss: a gradient that is not finite.
    """
    with ProgressDisplay(title="analyze") as display:
        run = resolve(config.training(), display=display)
    images = min(config.cases, len(run.data.train))
    if images < 2:
        raise BadConfig("The training part has one image that can be used; a spread needs two at least.")
    if images < config.cases:
        say(f"note: the training part has {images} images or slices, fewer than --cases {config.cases}")
    start = time.monotonic()
    found = moments(_gradients(run, config.at, images, say))
    seconds = time.monotonic() - start
    places = sorted((place(path, of, config.rank) for path, of in found.items()), key=lambda one: -one.score)
    groups = grouped(places)
    chosen = [] if config.budget is None else within_budget(groups, config.budget)
    name = run.data.source.dataset.name
    return PlacementResult(config.model, name, images, seconds, tuple(places), tuple(groups), tuple(chosen))


class SimilarityResult(NamedTuple):
    """How alike models are.

    Attributes:
        models: as they were named.
        data: its name.
        images: pictures that all models saw.
        alignment: models' names -> names -> debiased centred kernel alignment; NaN where features are constant.
    """

    models: tuple[str, ...]
    data: str
    images: int
    alignment: dict[str, dict[str, float]]


def analyze_similarity(
    config: SimilarityConfig, say: Callable[[str], None] = lambda text: None
) -> SimilarityResult:
    """Compare what models see, by the mean feature of each picture.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        One number for each pair of models.

    Raises:
        BadConfig: fewer than four pictures.
        MedvfmError: settings, data or weights that do not fit.
    """
    source = open_split(
        config.data, seed=config.seed, val=config.val_fraction, test=config.test_fraction, offline=config.offline,
        allow_geometry_mismatch=config.allow_geometry_mismatch, follow_links=config.follow_links,
    )  # fmt: skip
    with ProgressDisplay(title="analyze") as display:
        bad = check_split(source, skip_bad=config.skip_bad, track=display.track, say=say).bad_cases()
    cases = [case for case in source.split.train if case not in bad]
    wanted = min(config.cases, len(cases))
    if wanted < 4:
        raise BadConfig(
            f"The training part of {source.dataset.name} has {counted(wanted, 'case')}; 4 are needed."
        )
    if wanted < config.cases:
        say(f"note: the training part has {wanted} cases, fewer than --cases {config.cases}")
    chosen = [cases[int((i + 0.5) * len(cases) / wanted)] for i in range(wanted)]
    pictures = [picture for case in chosen for picture, _ in pictures_of(source.dataset, case, slices=1)]
    encoders, seen = {name: _encoder(name, config.offline) for name in config.models}, {}
    for name, encoder in encoders.items():
        say(f"{name}: {len(pictures)} pictures")
        seen[name] = np.stack([encoder.mean(picture) for picture in pictures])
    alignment = {a: {b: debiased_cka(seen[a], seen[b]) for b in seen} for a in seen}
    return SimilarityResult(config.models, source.dataset.name, len(pictures), alignment)


def _encoder(name: str, offline: bool) -> DenseEncoder:
    if not Path(name).is_dir():
        base = load_encoder(name, offline=offline)
        return DenseEncoder(base.model, base.params)
    teacher = open_teacher(name, dtype="float32", weights=None, offline=offline)
    return DenseEncoder(teacher, teacher.params)


def _gradients(run: Run, at: str, images: int, say: Callable[[str], None]) -> Iterator[dict[str, NDArray]]:
    """Of every image, the gradient of each kernel whose path fits."""
    assembled = run.assembled
    (part,) = assembled.delta  # of the system "full": every parameter as a change from its value
    paths = {
        f"{module}/{name}": (module, name)
        for module, arrays in assembled.delta[part].items()
        for name, array in arrays.items()
        if name == "kernel" and array.ndim >= 2 and re.fullmatch(at, f"{module}/{name}")
    }
    if not paths:
        raise BadConfig(f"at is {at!r}, and {assembled.base.model.spec.name} has no kernel of such a path.")
    loss = make_loss(assembled.adapted, objective=assembled.objective, cached=False, training=False)
    gradient = jax.jit(jax.grad(lambda delta, *rest: loss(rest[0], delta, *rest[1:])[0]))
    loader, key = run.data.loader("none", (0, 1)), jax.random.key(run.config.seed)
    for number in range(images):
        found = gradient(
            assembled.delta, assembled.base.params, next(loader), jax.random.fold_in(key, number)
        )
        say(f"gradient {number + 1} of {images}")
        arrays = {path: np.asarray(found[part][module][name]) for path, (module, name) in paths.items()}
        for path, array in arrays.items():
            if not np.isfinite(array).all():
                raise NonFiniteLoss(
                    f"The gradient of {path} on image {number + 1} is not finite; check the data (medvfm check) and "
                    "the weights."
                )
        yield arrays
