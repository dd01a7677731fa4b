"""Gradients of a model on training images, one after the other, and where they say that adapters help."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.analyze import PlacementConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.gradient_moments import moments
from medvfm_jax.theory.placement import Place, alike, grouped, place, within_budget
from medvfm_jax.train.loop import NonFiniteLoss
from medvfm_jax.train.task import make_loss
from medvfm_jax.train.training import Run, resolve
from medvfm_jax.types import Delta


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

    @jax.jit
    def gradient(delta: Delta, *rest: Any) -> dict[str, Array]:
        found = jax.grad(lambda at: loss(rest[0], at, *rest[1:])[0])(delta)
        # What is not returned is not computed: nothing of the encoder's, say, where only the decoder is looked at.
        return {path: found[part][module][name] for path, (module, name) in paths.items()}

    loader, key = run.data.loader("none", (0, 1)), jax.random.key(run.config.seed)
    for number in range(images):
        found = gradient(
            assembled.delta, assembled.base.params, next(loader), jax.random.fold_in(key, number)
        )
        say(f"gradient {number + 1} of {images}")
        arrays = {path: np.asarray(array) for path, array in found.items()}
        for path, array in arrays.items():
            if not np.isfinite(array).all():
                raise NonFiniteLoss(
                    f"The gradient of {path} on image {number + 1} is not finite; check the data (medvfm check) and "
                    "the weights."
                )
        yield arrays
