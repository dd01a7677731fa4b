"""Gradients and second derivatives of each site at the start, the drift they predict, and the drift of real steps."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.analyze import DriftConfig
from medvfm_jax.theory.client_drift import client_drift
from medvfm_jax.theory.runs.site_losses import SiteLosses, site_batches, site_losses
from medvfm_jax.train.training import resolve
from medvfm_jax.types import Batch


class DriftPoint(NamedTuple):
    """At one number of local steps.

    Attributes:
        steps: local steps.
        predicted: norm of the drift over that of the first-order step.
        measured: the same of real steps, None without.
        angle: cosine of predicted and measured drift, None without steps, or with one.
        loss: mean over sites after averaging, None without.
        loss_central: the same after as many steps on all data.
    """

    steps: int
    predicted: float
    measured: float | None
    angle: float | None
    loss: float | None
    loss_central: float | None


class DriftResult(NamedTuple):
    """What was found, and what it cost.

    Attributes:
        model: its name.
        data: name of the dataset.
        sites: names.
        images: of each site.
        trained: numbers that are trained.
        rate: of the steps.
        loss: mean over sites at the start.
        points: by local steps.
        tolerance: asked for.
        most_steps: local steps whose predicted drift is within it.
        seconds: of the prediction, compilation included.
        seconds_simulated: of the real steps; 0 without.
    """

    model: str
    data: str
    sites: tuple[str, ...]
    images: tuple[int, ...]
    trained: int
    rate: float
    loss: float
    points: tuple[DriftPoint, ...]
    tolerance: float
    most_steps: int
    seconds: float
    seconds_simulated: float


class _Losses(NamedTuple):
    """As functions of the flat numbers: sites' mean losses, gradients, products with second derivatives."""

    sites: Sequence[Sequence[Batch]]
    unravel: Callable[[Array], Any]
    of: SiteLosses

    def gradient(self, at: Array, site: int) -> tuple[float, np.ndarray]:
        found = [self.of.value_and_gradient(self.unravel(at), batch) for batch in self.sites[site]]
        loss = float(np.mean([float(value) for value, _ in found]))
        return loss, np.mean([_flat(gradient) for _, gradient in found], 0)

    def product(self, at: Array, site: int, v: np.ndarray) -> np.ndarray:
        along = self.unravel(jnp.asarray(v, at.dtype))
        return np.mean([_flat(self.of.product(self.unravel(at), b, along)) for b in self.sites[site]], 0)

    def value(self, at: Array) -> float:
        tree = self.unravel(at)
        return float(np.mean([np.mean([float(self.of.value(tree, b)) for b in site]) for site in self.sites]))


def _flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def analyze_drift(config: DriftConfig, say: Callable[[str], None] = lambda text: None) -> DriftResult:
    """Predict how far local steps drift, from gradients and second derivatives at the start, and take the steps.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Predicted and measured drift by number of local steps, sites weighted alike.

    Raises:
        BadConfig: fewer than two sites, or a site with one image.
        NoDrift: a mean gradient of 0, or numbers that are not finite.
        MedvfmError: settings, data or weights that do not fit.
    """
    with ProgressDisplay(title="analyze") as display:
        run = resolve(config.training(), display=display)
    start = time.monotonic()
    batches = site_batches(run, config.cases, say)
    delta, unravel = ravel_pytree(jax.tree.map(jnp.asarray, run.assembled.delta))
    losses = _Losses(tuple(batches.values()), unravel, site_losses(run, batches, say))
    sites = range(len(batches))
    values, gradients = zip(*(losses.gradient(delta, site) for site in sites))
    mean = np.mean(gradients, 0)
    say(f"gradients of {len(batches)} sites")
    own = [losses.product(delta, site, gradients[site]) for site in sites]
    whole = np.mean([losses.product(delta, site, mean) for site in sites], 0)
    drift = client_drift(gradients, own, whole)
    rate = config.rate or float(0.01 * np.mean(values) / (mean @ mean))
    seconds = time.monotonic() - start
    say(f"second derivatives of {len(batches)} sites; rate {rate:.3g}")
    start = time.monotonic()
    real = _simulated(losses, delta, rate, max(config.local_steps), say) if config.simulate else None
    points = []
    for steps in sorted(set(config.local_steps)):
        predicted = drift.relative(rate, steps)
        if real is None:
            points.append(DriftPoint(steps, predicted, None, None, None, None))
            continue
        federated, central = real[steps - 1]
        apart = federated - central
        size = float(np.linalg.norm(apart)) / (rate * steps * float(np.linalg.norm(mean)))
        both = float(np.linalg.norm(apart) * np.linalg.norm(drift.direction))
        angle = float(apart @ drift.direction) / both if steps > 1 and both > 0 else None
        after = (losses.value(delta + jnp.asarray(x, delta.dtype)) for x in (federated, central))
        points.append(DriftPoint(steps, predicted, size, angle, *after))
    return DriftResult(
        config.model, run.data.source.dataset.name, tuple(batches), tuple(map(len, batches.values())), delta.size,
        rate, float(np.mean(values)), tuple(points), config.tolerance, drift.most_steps(rate, config.tolerance),
        seconds, time.monotonic() - start if config.simulate else 0.0,
    )  # fmt: skip


def _simulated(
    losses: _Losses, delta: Array, rate: float, steps: int, say: Callable[[str], None]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """After 1, 2, ... steps: mean move of the sites from the start, and the move of steps on all data."""
    sites = range(len(losses.sites))
    apart, together = [np.zeros(delta.size) for _ in sites], np.zeros(delta.size)
    found = []
    for step in range(1, steps + 1):

        def at(move: np.ndarray) -> Array:
            return delta + jnp.asarray(move, delta.dtype)

        for site in sites:
            apart[site] = apart[site] - rate * losses.gradient(at(apart[site]), site)[1]
        here = at(together)
        together = together - rate * np.mean([losses.gradient(here, site)[1] for site in sites], 0)
        found.append((np.mean(apart, 0), together))
        say(f"step {step} of {steps}")
    return found
