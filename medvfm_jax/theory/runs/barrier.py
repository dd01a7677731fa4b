"""The loss along the line between two runs, on training images of both."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.settings.analyze.barrier import BarrierConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.interpolation import Barrier, barrier_between
from medvfm_jax.theory.runs.trained_numbers import TrainedNumbers, open_trained
from medvfm_jax.types import Batch, Params


class BarrierResult(NamedTuple):
    """What was found, and what it cost.

    Attributes:
        model: its name.
        images: of each run.
        places: on the line, from the first run to the second.
        distance: length of the difference of what was trained.
        first: on images of the first run.
        second: on images of the second.
        both: on all of them.
        seconds: compilation included.
    """

    model: str
    images: tuple[int, int]
    places: tuple[float, ...]
    distance: float
    first: Barrier
    second: Barrier
    both: Barrier
    seconds: float


def analyze_barrier(config: BarrierConfig, say: Callable[[str], None] = lambda text: None) -> BarrierResult:
    """How much the loss rises between two runs of one adapter; 0 where their mean is as good as they are.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Barriers on images of either run and of both.

    Raises:
        BadConfig: a run of another command, runs of other models, adapters, prompts or losses, or changed data.
        NoLine: a loss that is not finite.
        MedvfmError: data or weights that cannot be read.
    """
    start = time.monotonic()
    ends = [open_trained(run, config.cases, say, offline=config.offline) for run in config.runs]
    _check(config, *ends)
    places = tuple(np.linspace(0, 1, config.points).tolist())
    say(
        f"{config.points} places between {config.runs[0]} and {config.runs[1]}, {len(ends[0].batches)} images of each"
    )
    found = [_losses(opened, ends, places) for opened in ends]
    return BarrierResult(
        ends[0].model,
        (len(ends[0].batches), len(ends[1].batches)),
        places,
        float(jnp.linalg.norm(ends[1].delta - ends[0].delta)),
        barrier_between(found[0], places),
        barrier_between(found[1], places),
        barrier_between(np.concatenate(found), places),
        time.monotonic() - start,
    )


def _check(config: BarrierConfig, first: TrainedNumbers, second: TrainedNumbers) -> None:
    for what, one, other in (
        ("model", first.model, second.model),
        ("what is trained", dict(first.paths), dict(second.paths)),
        ("what is asked of the model", first.asked, second.asked),
    ):
        if one != other:
            shown = f": {one} and {other}" if isinstance(one, str) else ""
            raise BadConfig(
                f"{config.runs[0]} and {config.runs[1]} differ in {what}{shown}; there is no line between them. Give "
                "two runs of one model, adapter and objective."
            )


def _losses(opened: TrainedNumbers, ends: list[TrainedNumbers], places: tuple[float, ...]) -> np.ndarray:
    @jax.jit
    def loss(params: Params, at: Array, image: Batch) -> Array:
        return opened.rate(opened.predict(params, at, image), image)

    a, b = (end.delta for end in ends)
    return np.array(
        [[float(loss(opened.params, a + t * (b - a), image)) for t in places] for image in opened.batches]
    )
