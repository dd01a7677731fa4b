"""Every file is run, before anybody gets it, on inputs of which JAX's result is known."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.export.bundle import network
from medvfm_jax.export.onnx_graph import CannotExport
from medvfm_jax.export.parts import IMAGES, PROMPTS, Part
from medvfm_jax.images import Query, make_prompts, preprocess
from medvfm_jax.types import ModelSpec


class BeyondBound(CannotExport):
    """A file that gives something else than JAX; error: how much of what ``bound`` allows."""

    def __init__(self, message: str, error: float, bound: float):
        super().__init__(message)
        self.error, self.bound = error, bound


FLOAT_BOUND = 1e-4  # of the error of a file in float32, in units of the larger of 1 and the largest number
_ROUNDS = 3
_OPEN = 3  # images and objects where their number is left open


def scene(spec: ModelSpec, count: int, seed: int = 0) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """A picture of ellipses on a gradient with noise, and the boxes around them.

    Args:
        spec: of the model, for the size.
        count: ellipses.
        seed: of the picture.

    Returns:
        (H, W, 3) and count boxes (4,); wider than high, so that the model's input has padding.
    """
    rng = np.random.default_rng(seed)
    height, width = max(8, 3 * spec.input_size // 4), max(8, spec.input_size)
    y, x = np.mgrid[:height, :width]
    picture = 60 + 60 * x[..., None] / width * np.array([1, 0.8, 0.6])
    boxes = []
    for _ in range(count):
        radii = rng.uniform(0.08, 0.2, 2) * [width, height]
        centre = rng.uniform(radii, np.array([width, height]) - 1 - radii)
        inside = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
        picture[inside] = rng.uniform(120, 240, 3)
        boxes.append(np.concatenate([centre - radii, centre + radii]).astype(np.float32))
    noisy = picture + rng.normal(0, 6, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), boxes


def image_inputs(part: Part, spec: ModelSpec) -> list[NDArray]:
    """Prepared pictures for a part whose input is images.

    Args:
        part: encoder or whole model.
        spec: of the model.

    Returns:
        One array as the part takes it.
    """
    count = part.inputs[0].concrete({IMAGES: _OPEN})[0]
    return [np.stack([preprocess(spec, scene(spec, 4, seed)[0])[0] for seed in range(count)])]


def prompt_inputs(part: Part, spec: ModelSpec, embedding: NDArray) -> list[NDArray]:
    """The embedding of the first of these pictures, and boxes, clicks and absent slots on it.

    Args:
        part: the decoder.
        spec: of the model.
        embedding: (h, w, c).

    Returns:
        Arrays as the part takes them.
    """
    count, slots, _ = part.inputs[1].concrete({PROMPTS: _OPEN})
    picture, boxes = scene(spec, 4)
    frame = preprocess(spec, picture)[1]
    queries: list[Query | None] = []
    for i in range(count):
        box = boxes[i % len(boxes)]
        centre = (box[:2] + box[2:])[None] / 2
        click = Query(None, centre, np.ones(1, np.int32))
        clicked = i % 2 and "point" in spec.prompts
        queries.append(click if clicked else Query(box))
    prompts = make_prompts(frame, queries, slots=slots)
    return [embedding, np.asarray(prompts.points), np.asarray(prompts.labels)]


def measured(
    part: Part,
    file: Path,
    inputs: Sequence[NDArray],
    expected: Sequence[NDArray],
    *,
    bound: float,
    relative: bool,
) -> dict[str, Any]:
    """Run a file and compare.

    Args:
        part: what the file was written from.
        file: to run.
        inputs: of the part.
        expected: what JAX gives for them.
        bound: largest error.
        relative: the error is the root mean square of the difference over that of what is expected; otherwise the
            largest difference over the larger of 1 and the largest number.

    Returns:
        A record: error of each output, bound, bytes, seconds of one thread.

    Raises:
        BeyondBound: the file gives something else.
        CannotExport: it cannot be run, or gives other shapes.
    """
    run = network(file, part_record(part), threads=1)
    try:
        found = run(*inputs)
        seconds = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            run(*inputs)
            seconds.append(time.perf_counter() - start)
    except Exception as error:  # runtimes have exceptions of their own
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CannotExport(f"{file.name} was written but its runtime refuses it: {first:.200}.") from error
    outputs = {}
    for tensor, got, wanted in zip(part.outputs, found, expected, strict=True):
        if got.shape != wanted.shape:
            raise CannotExport(
                f"{file.name} gives {tensor.name} of shape {got.shape}, expected {wanted.shape}."
            )
        difference = np.abs(got.astype(np.float64) - wanted)
        size = float(np.abs(wanted).max())
        rms = float(
            np.sqrt((difference**2).mean() / max(float((wanted.astype(np.float64) ** 2).mean()), 1e-30))
        )
        error = rms if relative else float(difference.max()) / max(1.0, size)
        outputs[tensor.name] = {
            "error": error,
            "largest_difference": float(difference.max()),
            "largest_expected": size,
            "relative_rms": rms,
        }
        if tensor.name == "logits" and part.name == "decoder":
            outputs[tensor.name]["dice_of_masks"] = _dice(got > 0, wanted > 0)
        if not error <= bound:  # NaN too
            raise BeyondBound(
                f"{file.name} is off by {error:.2g} in its {tensor.name}, more than the bound {bound:g}; "
                + (
                    f"raise --int8-bound{' or leave out --int8' if '.int8' in file.name else ''}."
                    if relative
                    else "use --to stablehlo, and please report it."
                ),
                error,
                bound,
            )
    return {
        "file": file.name,
        "outputs": outputs,
        "bound": bound,
        "error_is": "root mean square of the difference over that of JAX's result"
        if relative
        else "largest difference over the larger of 1 and the largest number of JAX's result",
        "inputs": {tensor.name: list(array.shape) for tensor, array in zip(part.inputs, inputs)},
        "bytes": file.stat().st_size,
        "seconds_one_thread": min(seconds),
    }


def part_record(part: Part) -> dict[str, Any]:
    """Inputs and outputs of a part as the card has them.

    Args:
        part: to describe.

    Returns:
        A record that JSON can hold.
    """

    def of(tensors: Sequence[Any]) -> list[dict[str, Any]]:
        return [{**tensor._asdict(), "shape": list(tensor.shape)} for tensor in tensors]

    return {"inputs": of(part.inputs), "outputs": of(part.outputs)}


def _dice(found: NDArray, wanted: NDArray) -> float:
    total = float(found.sum() + wanted.sum())
    return 1.0 if total == 0 else 2 * float((found & wanted).sum()) / total
