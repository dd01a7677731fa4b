"""The problem that all contenders of `federated_rounds` solve, in NumPy alone: data, cohorts, initial weights, turns.

Shapes and settings are those of the CIFAR-10 benchmark of pfl-research (Granqvist et al. 2024): 1000 clients with
50 images of 32 x 32 x 3 each, a cohort of 50 per round, five local steps of SGD (0.1) on batches of 10 in a fixed
order, server rate 1.  The pixels are synthetic, of mean 0 and variance 1: a coarse pattern of the class,
twice as much coarse noise, and a little noise of every pixel, without which pooling would choose among equals.

Everybody trains the same cohorts from the same weights.  Weights are stored channels-last: convolutions
(h, w, in, out), dense (in, out).
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

CLASSES, SIDE, CHANNELS, STEPS, BATCH, RATE = 10, 32, 3, 5, 10, 0.1
TEST_IMAGES = 1000
HIDDEN = 128
FLAT = (14, 14, 64)  # what the last pooling leaves, channels last


class Problem(NamedTuple):
    """model: "cnn" or "linear".  dropout: the CNN's 0.25 and 0.5, or none, for comparing weights."""

    folder: Path
    model: str = "cnn"
    dropout: bool = True
    cohort: int = 50
    threads: int = 2


class Images(NamedTuple):
    """images (clients, 50, 32, 32, 3) float32 and labels (clients, 50) int32; test (1000, ...) likewise."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def write(folder: Path, clients: int) -> None:
    """Draw the images and the initial weights of both models into `folder`."""
    rng = np.random.default_rng(0)
    patterns = _coarse(rng, CLASSES)
    samples = STEPS * BATCH
    for name, n in (("", clients * samples), ("test_", TEST_IMAGES)):
        labels = rng.integers(0, CLASSES, n).astype(np.int32)
        images = _coarse(rng, n) + 0.5 * patterns[labels]
        images += 0.2 * rng.standard_normal(images.shape, np.float32)
        images /= np.sqrt(1.29, dtype=np.float32)
        np.save(
            folder / f"{name}images.npy",
            images if name else images.reshape(clients, samples, *images.shape[1:]),
        )
        np.save(folder / f"{name}labels.npy", labels if name else labels.reshape(clients, samples))
    for model in ("cnn", "linear"):
        np.savez(folder / f"{model}.npz", **_draw(rng, model))


def read(folder: Path) -> Images:
    """Map the images into memory."""
    names = [f"{name}.npy" for name in Images._fields]
    return Images(*(np.load(folder / name, mmap_mode="r") for name in names))


def weights(problem: Problem) -> dict[str, np.ndarray]:
    """Initial weights: {layer}_w and {layer}_b."""
    with np.load(problem.folder / f"{problem.model}.npz") as file:
        return dict(file)


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Weights of each layer; a bias has the last size."""
    if model == "linear":
        return {"output": (SIDE * SIDE * CHANNELS, CLASSES)}
    dense = (int(np.prod(FLAT)), HIDDEN)
    return {
        "conv1": (3, 3, CHANNELS, 32),
        "conv2": (3, 3, 32, 64),
        "hidden": dense,
        "output": (HIDDEN, CLASSES),
    }


def gflop_of_round(model: str, cohort: int) -> float:
    """Products of one round, forward and backward, in 10^9; the first layer has no gradient of its input."""
    positions = {"conv1": 30 * 30, "conv2": 28 * 28}
    total = 0
    for i, (layer, shape) in enumerate(shapes(model).items()):
        total += (2 if i == 0 else 3) * 2 * int(np.prod(shape)) * positions.get(layer, 1)
    return total * cohort * STEPS * BATCH / 1e9


def chosen(number: int, clients: int, cohort: int) -> np.ndarray:
    """Clients (cohort,) of a round, without repetition."""
    return np.random.default_rng((1, number)).choice(clients, cohort, replace=False)


def turns(
    evaluate: Callable[[], float], outputs: Callable[[], dict[str, np.ndarray]], facts: dict | None = None
) -> Iterator[None]:
    """Yield once for each round to run, as the benchmark asks for them on standard input; answer with seconds.

    A request is {"rounds": n, "evaluate": bool, "save": path or null}; evaluation and saving are not timed.  The
    first answer, before any request, says that everything is loaded, and whatever `facts` hold.
    """
    answer(facts or {})
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        for _ in range(request["rounds"]):
            yield
        facts = {"seconds": time.perf_counter() - start}
        if request.get("evaluate"):
            facts["test_loss"] = evaluate()
        if request.get("save"):
            np.savez(request["save"], **outputs())
        answer(facts)


ANSWER = "ANSWER "  # other lines on standard output are the frameworks' own


def answer(facts: dict) -> None:
    """Send facts to the benchmark."""
    print(ANSWER + json.dumps(facts), flush=True)


def from_command_line() -> Problem:
    """The problem that the benchmark gave this process as JSON."""
    given = json.loads(sys.argv[1])
    return Problem(**given | {"folder": Path(given["folder"])})


def options() -> dict:
    """Further options of a contender, as JSON."""
    return json.loads(sys.argv[2])


def _coarse(rng: np.random.Generator, n: int) -> np.ndarray:
    """n images of blocks of 4 x 4 pixels."""
    blocks = rng.standard_normal((n, SIDE // 4, SIDE // 4, CHANNELS), np.float32)
    return blocks.repeat(4, axis=1).repeat(4, axis=2)


def _draw(rng: np.random.Generator, model: str) -> dict[str, np.ndarray]:
    """Glorot-uniform weights, zero biases."""
    drawn = {}
    for layer, shape in shapes(model).items():
        field = int(np.prod(shape[:-2]))
        bound = np.sqrt(6 / (field * (shape[-2] + shape[-1])))
        drawn[f"{layer}_w"] = rng.uniform(-bound, bound, shape).astype(np.float32)
        drawn[f"{layer}_b"] = np.zeros(shape[-1], np.float32)
    return drawn
