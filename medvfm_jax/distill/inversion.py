"""What a picture that is made from a model alone must fulfil: statistics of its norms, smoothness, difference."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.types import MedvfmError, ModelSpec, Params

NORM = {"scale", "bias", "mean", "var"}  # arrays of a batch norm with fixed statistics
_EPSILON = 1e-5  # that batch norms add to their variance


class NotInvertible(MedvfmError, ValueError):
    """A model that pictures cannot be made from."""


def batch_norms(params: Params, part: str = "image_encoder") -> dict[str, Mapping[str, Array]]:
    """Paths of the batch norms of one part of a model, and their arrays, called or not.

    Args:
        params: {"params": nested dict}.
        part: name of the part.

    Returns:
        {path of the module: {"scale", "bias", "mean", "var"}}, in order; {} for a model without them.
    """
    found: dict[str, Mapping[str, Array]] = {}

    def visit(path: str, tree: Mapping[str, object]) -> None:
        if set(tree) == NORM:
            found[path] = tree
            return
        for name, child in tree.items():
            if isinstance(child, Mapping):
                visit(f"{path}/{name}", child)

    if part in params["params"]:
        visit(part, params["params"][part])
    return found


def moments(y: Array) -> Array:
    """Mean and mean square of each channel over the positions of one picture.

    Args:
        y: map (h, w, c).

    Returns:
        (2, c) float32.
    """
    y = y.astype(jnp.float32)
    return jnp.stack([y.mean((0, 1)), (y**2).mean((0, 1))])


def statistics_loss(outputs: Mapping[str, Array], norms: Mapping[str, Mapping[str, Array]]) -> Array:
    """How far the maps of a batch of pictures are from those that batch norms saw in training.

    Mean over norms of ‖m - β‖ / ‖γ‖ + ‖v - γ²‖ / ‖γ²‖, with mean m and variance v of each channel of the norm's output
    over the batch and all positions. In training the output of a norm has the mean β and the variance
    γ² σ² / (σ² + ε). Looked at behind the norm, a channel weighs by its scale, so that dead channels cannot dominate;
    relative to the scale, all norms weigh alike.

    Args:
        outputs: {path: ``moments`` of the norm's output of each picture, (B, 2, c)}.
        norms: {path: its arrays}, as ``batch_norms`` gives them.

    Returns:
        Scalar, 0 where all statistics are those of the training.

    References:
        https://arxiv.org/abs/1912.08795 (DeepInversion, equation 4; there ‖μ(x) - μ‖ + ‖σ²(x) - σ²‖ before the norm,
        summed over norms).
    """
    terms = []
    for path, arrays in norms.items():
        mean, square = outputs[path].mean(0)
        scale = jnp.asarray(arrays["scale"], jnp.float32)
        expected = scale**2 * arrays["var"] / (arrays["var"] + _EPSILON)
        off = _norm(mean - arrays["bias"]) / _norm(scale)
        terms.append(off + _norm(square - mean**2 - expected) / _norm(expected))
    return jnp.stack(terms).mean()


def _norm(x: Array) -> Array:
    """Length of a vector, with a gradient at 0."""
    return jnp.sqrt(jnp.sum(x**2) + 1e-12)


def total_variation(picture: Array) -> Array:
    """Mean squared difference of neighbouring pixels, down and to the right.

    Args:
        picture: (h, w, c).

    Returns:
        Scalar, 0 for an even picture.
    """
    down = picture[1:] - picture[:-1]
    right = picture[:, 1:] - picture[:, :-1]
    return jnp.mean(down**2) + jnp.mean(right**2)


def likeness(embeddings: Array) -> Array:
    """Mean cosine of two pictures' embeddings.

    Args:
        embeddings: mean over positions for each picture, (B, c).

    Returns:
        Scalar in [-1, 1]; 0 for a single picture.

    References:
        https://arxiv.org/abs/2204.12997 (DearKD: pictures of one class are pushed apart. Our reading of the abstract;
        the loss on what each picture must show is what keeps it within the class's boundary).
    """
    count = len(embeddings)
    if count < 2:
        return jnp.zeros(())
    units = embeddings / jnp.maximum(jnp.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)
    cosines = units @ units.T
    return (cosines.sum() - jnp.trace(cosines)) / (count * (count - 1))


def as_input(spec: ModelSpec, unit: Array) -> Array:
    """A picture with numbers from 0 to 1 as the model takes it; differentiable, as ``images.preprocess`` does it.

    Args:
        spec: of the model.
        unit: (S, S, 3) of the model's own size.

    Returns:
        (S, S, 3).

    Raises:
        NotInvertible: a model that scales its input in another way.
    """
    if spec.normalise == "unit":
        return unit
    if spec.normalise == "minmax":
        return (unit - unit.min()) / jnp.maximum(unit.max() - unit.min(), 1e-8)
    if spec.normalise in ("mean_std_255", "mean_std_unit"):
        factor = 255.0 if spec.normalise == "mean_std_255" else 1.0
        return (unit * factor - jnp.asarray(spec.mean)) / jnp.asarray(spec.std)
    raise NotInvertible(
        f"Pictures are made for models that scale their input by itself or by a mean; {spec.name} takes "
        f"{spec.normalise.replace('_', '-')}."
    )


def draw_objects(
    rng: np.random.Generator, size: int, count: int, classes: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Ellipses of random place, size, direction and class, apart from each other: what a picture is to show.

    Args:
        rng: random numbers.
        size: side in pixels, at least 16.
        count: at most so many.
        classes: numbers to choose from.

    Returns:
        (class of each pixel, number of the object at each pixel from 1), both (size, size), 0 elsewhere. At least one
        object.
    """
    labels, objects = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint16)
    for _ in range(8 * count):
        if objects.max() == count:
            break
        a, b = rng.uniform(size / 16, size / 5, 2)
        y, x = rng.uniform(max(a, b), size - max(a, b), 2)
        angle = rng.uniform(0, np.pi)
        reach = max(a, b) + 2
        top, left = (max(int(at - reach), 0) for at in (y, x))
        window = np.s_[top : int(y + reach) + 1, left : int(x + reach) + 1]
        rows, columns = np.indices(objects[window].shape) + 0.5
        down, right = rows + top - y, columns + left - x
        u = down * np.cos(angle) + right * np.sin(angle)
        v = right * np.cos(angle) - down * np.sin(angle)
        inside = (u / a) ** 2 + (v / b) ** 2 < 1
        near = (u / (a + 2)) ** 2 + (v / (b + 2)) ** 2 < 1
        if not objects[window][near].any():
            objects[window][inside] = objects.max() + 1
            labels[window][inside] = rng.choice(classes)
    return labels, objects
