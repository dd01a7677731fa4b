"""The problem that all contenders of `federated_adapters` solve, in NumPy alone: pictures, frozen weights, adapter.

A picture of 32 x 32 pixels shows a bright disc on noise; each client has a gain and an offset of its own.  A frozen
backbone turns each of its 64 patches of 4 x 4 pixels into 64 features (three dense layers, 11 MFLOP per picture, random
weights); a frozen dense layer with a LoRA of rank 4 and a head of one output say whether the middle of the patch is
in the disc.  The LoRA and the head are trained: 577 numbers.  Local training is five steps of SGD on batches of two,
in a fixed order, and the server replaces its delta by the mean.

Everybody trains the same cohorts from the same weights.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

SIDE, PATCH, FEATURES, WIDE, RANK = 32, 4, 64, 256, 4
STEPS, BATCH, RATE = 5, 2, 0.05
SAMPLES, TEST_PICTURES = STEPS * BATCH, 100
CLIP, NOISE = 0.1, 0.6  # of the private runs: norm of an update, noise multiplier
FROZEN = ("patch", "middle", "last", "dense")


class Problem(NamedTuple):
    """cohort: clients of a round.  cached: embeddings are made once.  private: clipped updates, central noise."""

    folder: Path
    cohort: int
    cached: bool
    private: bool
    personal: bool = False
    threads: int = 1


class Pictures(NamedTuple):
    """pictures (clients, 10, 64, 16) as flat patches and targets (clients, 10, 64); test_ likewise (100, ...)."""

    pictures: np.ndarray
    targets: np.ndarray
    test_pictures: np.ndarray
    test_targets: np.ndarray


def write(folder: Path, clients: int) -> None:
    """Draw pictures and weights into `folder`, and what the backbone makes of the pictures."""
    rng = np.random.default_rng(0)
    for name, n in (("", clients * SAMPLES), ("test_", TEST_PICTURES)):
        centre, radius = rng.uniform(8, 24, (2, n, 1, 1)), rng.uniform(4, 10, (n, 1, 1))
        y, x = np.mgrid[:SIDE, :SIDE] + 0.5
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        gain, offset = rng.uniform(0.7, 1.3, n), rng.normal(0, 0.3, n)
        if not name:
            gain, offset = gain.reshape(clients, -1)[:, :1], offset.reshape(clients, -1)[:, :1]
            gain, offset = (np.broadcast_to(v, (clients, SAMPLES)).ravel() for v in (gain, offset))
        noise = 0.5 * rng.standard_normal((n, SIDE, SIDE))
        pictures = gain[:, None, None] * (inside + noise) + offset[:, None, None]
        targets = inside[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].reshape(n, -1)
        shape = (n,) if name else (clients, SAMPLES)
        np.save(folder / f"{name}pictures.npy", _patches(pictures).astype(np.float32).reshape(*shape, 64, -1))
        np.save(folder / f"{name}targets.npy", targets.astype(np.float32).reshape(*shape, -1))
    np.savez(folder / "weights.npz", **_draw(rng))
    for name in ("", "test_"):
        pictures = np.load(folder / f"{name}pictures.npy")
        flat = pictures.reshape(-1, *pictures.shape[-2:])
        made = np.concatenate([embed(weights(folder), part) for part in np.array_split(flat, 50)])
        np.save(folder / f"{name}embeddings.npy", made.reshape(*pictures.shape[:-1], FEATURES))


def read(folder: Path, cached: bool) -> Pictures:
    """Map pictures, or their embeddings in their place, into memory."""
    what = "embeddings" if cached else "pictures"
    names = (what, "targets", f"test_{what}", "test_targets")
    return Pictures(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def from_command_line() -> Problem:
    """The problem that the benchmark gave this process as JSON."""
    told = json.loads(sys.argv[1])
    return Problem(**told | {"folder": Path(told["folder"])})


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Frozen: patch, middle, last, dense (in, out).  Trained: a, b, head_w, head_b."""
    with np.load(folder / "weights.npz") as file:
        return dict(file)


def embed(frozen: dict[str, np.ndarray], patches: np.ndarray) -> np.ndarray:
    """(n, 64, 16) -> (n, 64, 64)."""
    hidden = gelu(patches @ frozen["patch"])
    return gelu(hidden @ frozen["middle"]) @ frozen["last"]


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form, as in both frameworks."""
    return 0.5 * x * (1 + np.tanh(float(np.sqrt(2 / np.pi)) * (x + 0.044715 * x**3)))


def dice(logits: np.ndarray, targets: np.ndarray) -> float:
    """Over all test patches together."""
    predicted = logits > 0
    return float(2 * (predicted * targets).sum() / (predicted.sum() + targets.sum()))


def gflop_of_round(cohort: int, cached: bool) -> float:
    """Products of a round in 10^9: forward and backward of the adapter, forward of the backbone without a cache."""
    backbone = 0 if cached else PATCH**2 * WIDE + WIDE**2 + WIDE * FEATURES
    adapter = 2 * FEATURES**2 + 3 * RANK * 2 * FEATURES + 3 * FEATURES
    return 2 * 64 * (backbone + adapter) * cohort * SAMPLES / 1e9


def _patches(pictures: np.ndarray) -> np.ndarray:
    n, count = len(pictures), SIDE // PATCH
    tiles = pictures.reshape(n, count, PATCH, count, PATCH).transpose(0, 1, 3, 2, 4)
    return tiles.reshape(n, count * count, PATCH * PATCH)


def _draw(rng: np.random.Generator) -> dict[str, np.ndarray]:
    sizes = {"patch": (PATCH**2, WIDE), "middle": (WIDE, WIDE), "last": (WIDE, FEATURES)}
    sizes |= {"dense": (FEATURES, FEATURES), "a": (FEATURES, RANK)}
    drawn = {
        name: rng.standard_normal(s) * np.sqrt((1 if name == "a" else 2) / s[0]) for name, s in sizes.items()
    }
    drawn |= {"b": np.zeros((RANK, FEATURES)), "head_w": np.zeros((FEATURES, 1)), "head_b": np.zeros(1)}
    return {name: value.astype(np.float32) for name, value in drawn.items()}
