"""The loss around a trained model on a plane of random directions whose sizes are those of what was trained."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from medvfm_jax.types import MedvfmError


class NoLandscape(MedvfmError, ValueError):
    """A plane on which a loss says nothing."""


class Landscape(NamedTuple):
    """The loss on a plane.

    Attributes:
        places: (k,), steps along both directions; 0 is the model itself, 1 as far as what is trained is large.
        losses: (k, k), mean over images at ``centre + places[i] first + places[j] second``.
        errors: (k, k), standard error over images of the difference to the centre; None with a single image.
        curvature: (2,), second derivatives along the directions at the centre, of parabolas through the three middle
            places.
        lowest: (step along the first, step along the second, loss) of the lowest place.
    """

    places: NDArray[np.float64]
    losses: NDArray[np.float64]
    errors: NDArray[np.float64] | None
    curvature: tuple[float, float]
    lowest: tuple[float, float, float]


def filter_directions(key: Array, centre: Mapping[str, Any], count: int = 2) -> list[dict[str, Any]]:
    """Random directions, each filter of which is as long as that of the model.

    A filter is what belongs to one output: a column of an array of two axes or more, whose last axis counts outputs. An
    array of one axis is a filter as a whole. Where the model is 0, so is the direction.

    Args:
        key: random.
        centre: nested dict of arrays.
        count: of directions.

    Returns:
        Nested dicts of the same shapes.

    Raises:
        NoLandscape: a model of which everything is 0, around which no direction has a size.

    References:
        Li et al. 2018, section 4, https://arxiv.org/abs/1712.09913
    """
    leaves, tree = jax.tree.flatten(centre)
    if not any(bool(jnp.abs(leaf).max() > 0) for leaf in leaves if leaf.size):
        raise NoLandscape(
            "All that is trained is 0, so that no direction has a size; give a run after training."
        )

    def one(key: Array) -> dict[str, Any]:
        keys = jax.random.split(key, len(leaves))
        return tree.unflatten([_like(k, leaf) for k, leaf in zip(keys, leaves, strict=True)])

    return [one(k) for k in jax.random.split(key, count)]


def landscape(
    losses: Callable[[Any], ArrayLike], centre: Any, first: Any, second: Any, places: ArrayLike
) -> Landscape:
    """The loss of a model on a grid of the plane through it.

    Args:
        losses: (model) -> (images,), the loss of each image.
        centre: the model, a tree of arrays.
        first: a direction of the same shapes.
        second: another.
        places: (k,), steps along both, ascending, an odd number with 0 in the middle.

    Returns:
        The landscape.

    Raises:
        NoLandscape: places of another kind, or a loss that is not finite at the model itself.

    References:
        Li et al. 2018, https://arxiv.org/abs/1712.09913
    """
    t = np.asarray(places, np.float64)
    middle = len(t) // 2
    if len(t) < 3 or len(t) % 2 == 0 or t[middle] != 0 or (np.diff(t) <= 0).any():
        raise NoLandscape(
            "A plane needs an odd number of places, at least three, ascending and with 0 in the middle."
        )
    each = np.array(
        [
            [
                np.asarray(losses(jax.tree.map(lambda c, f, s: c + a * f + b * s, centre, first, second)))  # noqa: B023
                for b in t
            ]
            for a in t
        ],
        np.float64,
    )
    if not np.isfinite(each[middle, middle]).all():
        raise NoLandscape("The loss of the run itself is not finite; it has diverged.")
    mean, images = each.mean(-1), each.shape[-1]
    errors = None
    if images > 1:
        errors = (each - each[middle, middle]).std(-1, ddof=1) / images**0.5
    along = [
        _second(t[middle - 1 : middle + 2], line[middle - 1 : middle + 2])
        for line in (mean[:, middle], mean[middle])
    ]
    low = np.unravel_index(np.where(np.isfinite(mean), mean, np.inf).argmin(), mean.shape)
    return Landscape(
        t, mean, errors, (along[0], along[1]), (float(t[low[0]]), float(t[low[1]]), float(mean[low]))
    )


def _like(key: Array, leaf: Array) -> Array:
    """A random array whose filters have the norms of those of ``leaf``."""
    drawn = jax.random.normal(key, leaf.shape, leaf.dtype)
    axes = tuple(range(leaf.ndim - 1)) if leaf.ndim > 1 else None
    wanted, found = (jnp.sqrt(jnp.square(x).sum(axes, keepdims=True)) for x in (leaf, drawn))
    return drawn * wanted / jnp.where(found > 0, found, 1)


def _second(t: NDArray, y: NDArray) -> float:
    """Second derivative of the parabola through three points."""
    rising, falling = (y[2] - y[1]) / (t[2] - t[1]), (y[1] - y[0]) / (t[1] - t[0])
    return float(2 * (rising - falling) / (t[2] - t[0]))
