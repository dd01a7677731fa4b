"""Gradients of a model at its start on the images of each site, and what they say of training it on all."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax.crosstask import task_affinity
from medvfm_jax.printable import counted
from medvfm_jax.runs.progress import ProgressDisplay
from medvfm_jax.settings.analyze import ConflictConfig
from medvfm_jax.theory.runs.site_losses import site_batches, site_losses
from medvfm_jax.train.loop import NonFiniteLoss
from medvfm_jax.train.training import resolve


class SiteGradient(NamedTuple):
    """One site at the start.

    Attributes:
        site: its name.
        images: that were looked at.
        loss: their mean.
        norm: of their mean gradient.
        agreement: cosine of the mean gradients of one half of them and of the other: how much of the direction is the
            site's and not these images'.
    """

    site: str
    images: int
    loss: float
    norm: float
    agreement: float


class ConflictResult(NamedTuple):
    """How the gradients of sites lie to each other, and what it cost.

    Attributes:
        model: its name.
        data: name of the dataset.
        objective: name of the loss.
        sites: one record each, in order of name.
        cosine: (N, N), of their mean gradients.
        diversity: sum of squared norms over the squared norm of the sum: 1/N if all agree, 1 if orthogonal.
        dissimilarity: B^2, N times as much.
        rate: of the step.
        affinity: (N, N), share of the loss of site j (column) that a step along the gradient of site i (row) takes
            away.
        groups_by_cosine: sites joined by cosines of at least 0.
        groups_by_affinity: the division in which sites get most from the others of their group.
        seconds: that it took, compilation included.
    """

    model: str
    data: str
    objective: str
    sites: tuple[SiteGradient, ...]
    cosine: list[list[float]]
    diversity: float
    dissimilarity: float
    rate: float
    affinity: list[list[float]]
    groups_by_cosine: list[list[str]]
    groups_by_affinity: list[list[str]]
    seconds: float


def analyze_conflict(
    config: ConflictConfig, say: Callable[[str], None] = lambda text: None
) -> ConflictResult:
    """Predict which sites pull a model apart, from gradients of the loss on training images of each.

    Args:
        config: settings.
        say: told what is done.

    Returns:
        Cosines of the sites' gradients, what a step for one does to the loss of another, and groups.

    Raises:
        BadConfig: fewer than two sites, or more than can be grouped, or a site with one image.
        UndefinedAffinity: a site whose gradient is zero.
        MedvfmError: settings, data or weights that do not fit.
        NonFiniteLoss: a loss or a gradient that is not finite.
    """
    with ProgressDisplay(title="analyze") as display:
        run = resolve(config.training(), display=display)
    start = time.monotonic()
    batches = site_batches(run, config.cases, say)
    names, delta = list(batches), run.assembled.delta
    value, value_and_gradient, _ = site_losses(run, batches, say)
    found, gradients = [], []
    for name, images in batches.items():
        losses, halves = zip(*(value_and_gradient(delta, batch) for batch in images))
        halves = [_mean(halves[i::2]) for i in range(2)]
        counts = [len(images[i::2]) for i in range(2)]
        gradient = _mean(halves, [count / len(images) for count in counts])
        loss, norm = float(np.mean(losses)), float(np.sqrt(_product(gradient, gradient)))
        if not np.isfinite([loss, norm]).all():
            raise NonFiniteLoss(
                f"The loss or the gradient of site '{name}' is not finite; check the data (medvfm check) and the "
                "weights."
            )
        lengths = np.sqrt(_product(halves[0], halves[0]) * _product(halves[1], halves[1]))
        agreement = _product(*halves) / lengths if lengths > 0 else 0.0
        found.append(SiteGradient(name, len(images), loss, norm, float(agreement)))
        gradients.append(gradient)
        say(f"{name}: {counted(len(images), 'gradient')}")
    gram = np.array([[_product(a, b) for b in gradients] for a in gradients])
    cosine = task_affinity.cosines(gram)
    before = np.array([site.loss for site in found])
    rate = config.rate or float(0.01 * before.mean() / np.diagonal(gram).mean())
    after = np.empty((len(names), len(names)))
    for i, gradient in enumerate(gradients):
        moved = jax.tree.map(lambda x, g: x - rate * g, delta, gradient)
        after[i] = [np.mean([float(value(moved, batch)) for batch in images]) for images in batches.values()]
        say(f"{names[i]}: losses of {len(names)} sites after its step")
    affinity = task_affinity.lookahead_affinity(before, after)

    def named(groups: list[list[int]]) -> list[list[str]]:
        return [[names[i] for i in group] for group in groups]

    return ConflictResult(
        config.model, run.data.source.dataset.name, run.assembled.objective, tuple(found), cosine.tolist(),
        task_affinity.gradient_diversity(gram), task_affinity.dissimilarity(gram), rate, affinity.tolist(),
        named(task_affinity.clusters(cosine)), named(task_affinity.best_groups(affinity, config.groups)),
        time.monotonic() - start,
    )  # fmt: skip


def _mean(trees: Any, weights: Any = None) -> Any:
    weights = [1 / len(trees)] * len(trees) if weights is None else weights
    return jax.tree.map(lambda *leaves: sum(w * x for w, x in zip(weights, leaves)), *trees)


def _product(a: Any, b: Any) -> float:
    """In float64 and leaf by leaf."""

    def of_leaves(x: NDArray, y: NDArray) -> float:
        return float(np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)))

    return sum(jax.tree.leaves(jax.tree.map(of_leaves, a, b)))
