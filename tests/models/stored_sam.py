"""A small SAM with weights made of counted numbers, asked in every way; what it answered is in ``stored_sam.json``.

Run as a program it answers anew and replaces the file: only after a change of the numbers that is wanted.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from medvfm_jax.models import build
from medvfm_jax.types import ABSENT, PAD, Prompts

FILE = Path(__file__).with_suffix(".json")
MODELS = ("sam-tiny-test", "lite-tiny-test")
FAINT = 2e-3  # of activations whose variance is about that of an epsilon
_KEPT = 32  # numbers of each answer
_FAINT_KERNELS = ("patch_embed/", "mask_downscaling_0/", "layers_0/self_attn/out_proj/")


def numbers(count: int, seed: int) -> np.ndarray:
    """Uniform in (-1, 1) and the same everywhere: SplitMix64 (Steele et al. 2014) of a counter."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
            seed * 0xD1B5
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 2.0**52 - 1


def weights(model, faint: bool):
    """Parameters of usual size, or ``faint`` ones after which every norm sees a variance like its epsilon."""
    shapes = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    found = {}
    for path, leaf in shapes.items():
        values = numbers(leaf.size, sum(ord(c) * (i + 1) for i, c in enumerate(path))).reshape(leaf.shape)
        name = path.rsplit("/", 1)[1]
        if name == "kernel":
            values *= np.sqrt(3 / np.prod(leaf.shape[:-1]))
            small = any(part in path for part in _FAINT_KERNELS)
        elif name in ("scale", "var"):
            values, small = 1 + 0.3 * values, name == "scale"
            if faint and name == "var":
                values = 2e-5 * values
        else:
            small = "gaussian_matrix" not in name
        found[path] = jnp.asarray(values * (FAINT if faint and small else 1.0), jnp.float32)
    return unflatten_dict(found, sep="/")


def questions(side: int, low: int) -> dict[str, Prompts]:
    """Points with a padding point and a box in one shape; a box with a point and a mask."""
    points = jnp.asarray(side * (0.5 + 0.4 * numbers(12, 1).reshape(2, 3, 2)), jnp.float32)
    mask = jnp.asarray(4 * numbers(low**2, 2).reshape(1, low, low, 1), jnp.float32)
    return {
        "points and box": Prompts(points, jnp.array([[1, 0, PAD], [2, 3, ABSENT]]), None),
        "mask": Prompts(points[:1], jnp.array([[2, 3, 1]]), mask),
    }


@functools.cache
def _compiled(name: str):
    """Compiled once for both sets of weights."""
    model = build(name)

    def forward(params, picture, prompts):
        embedding = model.encode(params, picture)
        found = {"embedding": embedding}
        for kind, asked in prompts.items():
            out = model.decode(params, embedding, asked, multimask=asked.mask is None)
            found |= {f"{kind}/logits": out.logits, f"{kind}/iou": out.iou}
        return found

    return model, jax.jit(forward)


def answers(name: str, faint: bool) -> dict[str, np.ndarray]:
    """{"embedding", "mask/logits", "mask/iou", ...}, every so-and-so-many number of each."""
    model, forward = _compiled(name)
    side = model.spec.input_size
    picture = jnp.asarray(numbers(side * side * 3, 3).reshape(side, side, 3), jnp.float32)
    found = forward(weights(model, faint), picture, questions(side, 4 * model.spec.embedding[0]))
    return {key: _thinned(value) for key, value in found.items()}


def _thinned(values) -> np.ndarray:
    flat = np.asarray(values, np.float64).ravel()
    return flat[:: max(1, -(-len(flat) // _KEPT))]


def case(name: str, faint: bool) -> str:
    """Key of a model with one of its two sets of weights in the file."""
    return f"{name}, {'faint' if faint else 'usual'}"


if __name__ == "__main__":
    record = {
        case(name, faint): {
            key: [float(f"{x:.5g}") for x in values] for key, values in answers(name, faint).items()
        }
        for name in MODELS
        for faint in (False, True)
    }
    FILE.write_text(json.dumps(record) + "\n")
