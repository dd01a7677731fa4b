"""The loss on a plane around a trained run, on images that it was not trained on."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from medvfm_jax.settings.analyze.landscape import LandscapeConfig
from medvfm_jax.theory.landscape import Landscape, filter_directions, landscape
from medvfm_jax.theory.runs.trained_numbers import open_trained
from medvfm_jax.types import Batch, Params


class LandscapeResult(NamedTuple):
    """What was found, and what it cost.

    Attributes:
        model: its name.
        data: name of the dataset.
        part: that the images are of, "validation" or "training".
        images: that the loss is the mean of.
        trained: numbers.
        seconds: compilation included.
        plane: places and losses.
    """

    model: str
    data: str
    part: str
    images: int
    trained: int
    seconds: float
    plane: Landscape


def analyze_landscape(
    config: LandscapeConfig, say: Callable[[str], None] = lambda text: None
) -> LandscapeResult:
    """The loss of a run on a grid along two random directions, whose filters are as long as those of the delta.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        The plane, with its cost.

    Raises:
        BadConfig: a run of another command, one without validation images, or data that changed since.
        NoLandscape: a delta of which everything is 0, or a loss that is not finite.
        MedvfmError: data or weights that cannot be read.
    """
    start = time.monotonic()
    changes = {} if config.data is None else {"data": config.data}
    opened = open_trained(config.run, config.cases, say, held=config.held, offline=config.offline, **changes)

    @jax.jit
    def loss(params: Params, at: Array, image: Batch) -> Array:
        return opened.rate(opened.predict(params, at, image), image)

    def losses(at: Array) -> NDArray:
        return np.array([float(loss(opened.params, at, image)) for image in opened.batches])

    directions = filter_directions(jax.random.key(config.seed), opened.unravel(opened.delta))
    first, second = (jnp.asarray(ravel_pytree(one)[0]) for one in directions)
    places = np.linspace(-config.reach, config.reach, config.points)
    places[config.points // 2] = 0
    say(f"{config.points**2} places around {config.run}, {len(opened.batches)} images each")
    plane = landscape(losses, opened.delta, first, second, places)
    return LandscapeResult(
        opened.model,
        opened.data,
        "validation" if config.held else "training",
        len(opened.batches),
        opened.delta.size,
        time.monotonic() - start,
        plane,
    )
