"""The models of `federated_rounds` in plain JAX; the CNN is formulated for per-client weights on XLA's CPU backend.

XLA turns a convolution whose kernels are batched (vmap over clients) into a grouped one, which is slow on CPU, as are
its gradients inside loops.  Here a convolution is products of matrices only, which stay products under vmap:

* the first one multiplies patches;
* the second one, nine tenths of the arithmetic, is Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2016): 36
  products per tile of 4 x 4 results instead of 144.  It is the same function; results differ by rounding, about 1e-5 of
  the largest.  Its 2 x 2 pooling takes place inside the tiles, before they are put together.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.benchmarks.federated_problem import Problem

Weights = dict[str, Array]

# Lavin and Gray 2016, section 4.2: transforms of a tile, of a kernel, of the products.
_TILE = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32) / 24
_RESULT = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32
)


def cross_entropy(weights: Weights, batch: tuple[Array, Array], key: Array | None, problem: Problem) -> Array:
    """Images (n, 32, 32, 3) and labels (n,) -> mean cross-entropy (); key None: no dropout."""
    images, labels = batch
    scores = logits(weights, images, key if problem.dropout else None, problem.model)
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def logits(weights: Weights, images: Array, key: Array | None, model: str) -> Array:
    """Images (n, 32, 32, 3) -> (n, 10)."""
    n = len(images)
    if model == "linear":
        return _dense(images.reshape(n, -1), weights, "output")
    keys = (None, None) if key is None else jax.random.split(key)
    x = jax.nn.relu(patch_convolution(images, weights["conv1_w"]) + weights["conv1_b"])
    x = jax.nn.relu(pooled_convolution(x, weights["conv2_w"]) + weights["conv2_b"])
    x = _dropout(x, 64, keys[0]).reshape(n, -1)
    x = _dropout(jax.nn.relu(_dense(x, weights, "hidden")), 128, keys[1])
    return _dense(x, weights, "output")


def patch_convolution(x: Array, w: Array) -> Array:
    """Images (n, h, w, c), kernel (3, 3, c, d) -> (n, h - 2, w - 2, d) without padding, as one product."""
    rows, columns = x.shape[1] - 2, x.shape[2] - 2
    patches = [x[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    flat = jnp.concatenate(patches, axis=-1).reshape(-1, 9 * x.shape[-1])
    return (flat @ w.reshape(-1, w.shape[-1])).reshape(len(x), rows, columns, -1)


def pooled_convolution(x: Array, w: Array) -> Array:
    """Images (n, 4 t + 2, 4 t + 2, c), kernel (3, 3, c, d) -> largest of 2 x 2 results (n, 2 t, 2 t, d)."""
    n, t, (c, d) = len(x), x.shape[1] // 4, w.shape[-2:]
    # Tiles of 6 x 6 overlap by two: a block of 4 x 4 and the edge of its neighbours.
    blocks = jnp.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0))).reshape(n, t + 1, 4, t + 1, 4, c)
    blocks = blocks.transpose(2, 4, 0, 1, 3, 5)
    rows = jnp.concatenate([blocks[:, :, :, :t], blocks[:2, :, :, 1:]], axis=0)
    tiles = jnp.concatenate([rows[..., :t, :], rows[:, :2, :, :, 1:]], axis=1)
    tiles = np.kron(_TILE, _TILE) @ tiles.reshape(36, -1)
    kernels = np.kron(_KERNEL, _KERNEL) @ w.reshape(9, -1)
    products = jnp.einsum("pic,pcd->pid", tiles.reshape(36, -1, c), kernels.reshape(36, c, d))
    results = np.kron(_RESULT, _RESULT) @ products.reshape(36, -1)
    largest = results.reshape(2, 2, 2, 2, n, t, t, d).max(axis=(1, 3))
    return largest.transpose(2, 3, 0, 4, 1, 5).reshape(n, 2 * t, 2 * t, d)


def _dense(x: Array, weights: Weights, layer: str) -> Array:
    return x @ weights[f"{layer}_w"] + weights[f"{layer}_b"]


def _dropout(x: Array, dropped_of_256: int, key: Array | None) -> Array:
    """Zero each element with probability dropped_of_256 / 256, scale the rest; one random byte per element."""
    if key is None:
        return x
    words = jax.random.bits(key, (x.size // 4,), jnp.uint32)
    kept = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(x.shape) >= dropped_of_256
    return jnp.where(kept, x / (1 - dropped_of_256 / 256), 0)
