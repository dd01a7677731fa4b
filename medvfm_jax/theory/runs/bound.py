"""Bounds of the expected error of a run's adapter, from its error on training images."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.settings.analyze.bound import BoundConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.theory.pac_bayes import gaussian_divergence, pac_bayes_bound, sampled_error
from medvfm_jax.theory.runs.trained_numbers import TrainedNumbers, open_trained


class Bounded(NamedTuple):
    """One bound.

    Attributes:
        how: the noise or the rounding.
        error: mean of 1 - Dice over patients, and over draws of the noise.
        information: nats that what was learnt takes beside the start.
        bound: of the expected 1 - Dice; 1 says nothing.
    """

    how: str
    error: float
    information: float
    bound: float


class BoundResult(NamedTuple):
    """What was found, and what it cost.

    Attributes:
        model: its name.
        data: name of the dataset.
        patients: with one image each.
        trained: numbers that are trained.
        distance: length of what training has changed.
        error: mean 1 - Dice of the run itself on these images.
        noisy: a bound for each standard deviation.
        rounded: a bound for each number of bits.
        doubt: probability that any of the bounds does not hold.
        seconds: compilation included.
    """

    model: str
    data: str
    patients: int
    trained: int
    distance: float
    error: float
    noisy: tuple[Bounded, ...]
    rounded: tuple[Bounded, ...]
    doubt: float
    seconds: float


def analyze_bound(config: BoundConfig, say: Callable[[str], None] = lambda text: None) -> BoundResult:
    """PAC-Bayes bounds of a Gaussian around what was trained, and bounds of the rounded adapter.

    Half of the doubt is for all noise together, half for all roundings; of the former half for the draws.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        The bounds, each valid beside all others.

    Raises:
        BadConfig: a run of another command, changed data, or several images of a patient, which are not independent.
        MedvfmError: data or weights that cannot be read.
    """
    start = time.monotonic()
    opened = open_trained(config.run, config.cases, say, offline=config.offline)
    if opened.patients < opened.images:
        raise BadConfig(
            f"{opened.images} training images of {config.run} are of {opened.patients} patients; the bounds are about "
            "independent images. Use them for data with one picture of each patient."
        )
    n, numbers = len(opened.batches), opened.delta.size
    looks = n * (1 + len(config.deviations) * config.draws + len(config.bits))
    say(f"{numbers:,} numbers, {n} patients: {looks} looks at an image")
    error = _error_of(opened)
    moved = np.asarray(opened.delta - opened.start, np.float64)
    share = config.doubt / 2
    noisy = []
    for at, deviation in enumerate(config.deviations):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), at), config.draws)
        draws = [
            opened.delta + deviation * jax.random.normal(k, opened.delta.shape, opened.delta.dtype)
            for k in keys
        ]
        seen = float(np.mean([error(draw) for draw in draws]))
        at_most = sampled_error(seen, config.draws, share / 2 / len(config.deviations))
        nats = gaussian_divergence(numbers, float(moved @ moved), deviation, deviation)
        bound = pac_bayes_bound(at_most, nats, n, share / 2 / len(config.deviations))
        noisy.append(Bounded(f"noise {deviation:g}", seen, nats, bound))
    rounded = []
    for bits in config.bits:
        numbers_of, stored = _rounded(opened, moved, bits)
        seen = error(jnp.asarray(numbers_of, opened.delta.dtype))
        nats = stored * math.log(2)
        bound = pac_bayes_bound(seen, nats, n, share / len(config.bits))
        rounded.append(Bounded(f"{bits} bits", seen, nats, bound))
    return BoundResult(
        opened.model, opened.data, n, numbers, float(np.linalg.norm(moved)), error(opened.delta), tuple(noisy),
        tuple(rounded), config.doubt, time.monotonic() - start,
    )  # fmt: skip


def _error_of(opened: TrainedNumbers) -> Callable[[Array], float]:
    """What is trained -> mean over images of 1 - Dice."""
    return lambda numbers: float(
        np.mean([1 - float(opened.dice(opened.params, numbers, image)) for image in opened.batches])
    )


def _rounded(opened: TrainedNumbers, moved: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """What training changed, each array to whole steps of its own -> (what is trained, bits that say it)."""
    parts, first, most = [], 0, 2 ** (bits - 1) - 1
    for _, size in opened.paths:
        part = moved[first : first + size]
        largest = np.abs(part).max(initial=0.0)
        if bits == 1:
            parts.append(np.where(part < 0, -1, 1) * np.abs(part).mean())
        else:
            step = float(np.float32(largest / most)) or 1.0
            parts.append(np.round(part / step).clip(-most, most) * step)
        first += size
    return np.asarray(opened.start, np.float64) + np.concatenate(parts), bits * len(moved) + 32 * len(parts)
