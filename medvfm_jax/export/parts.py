"""What becomes one file: a function of arrays with its weights in it, and what goes in and comes out."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.models.backend import compiling_for
from medvfm_jax.types import ModelSpec, Prompts

# No backend of JAX: whole convolutions and plain attention, which other runtimes have operators for.
PORTABLE = "portable"
IMAGES, PROMPTS = "images", "prompts"  # symbols of sizes that may be left open

Shape = tuple[int | str, ...]


class Tensor(NamedTuple):
    """An input or an output of a file; a size is a number or the name of one that is left open."""

    name: str
    shape: Shape
    dtype: str
    meaning: str

    def concrete(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape with numbers for what is left open."""
        return tuple(sizes[n] if isinstance(n, str) else n for n in self.shape)


class Part(NamedTuple):
    """A function that becomes one file.

    function: arrays as ``inputs`` says -> tuple of arrays as ``outputs`` says.
    """

    name: str
    function: Callable[..., tuple[Array, ...]]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of sizes that are left open."""
        return tuple(dict.fromkeys(n for tensor in self.inputs for n in tensor.shape if isinstance(n, str)))

    def shapes(self) -> list[jax.ShapeDtypeStruct]:
        """Of the inputs, as JAX traces them."""
        from jax import export

        found = (
            dict(zip(self.symbols, export.symbolic_shape(", ".join(self.symbols)))) if self.symbols else {}
        )
        return [
            jax.ShapeDtypeStruct(tuple(found.get(n, n) for n in tensor.shape), np.dtype(tensor.dtype))
            for tensor in self.inputs
        ]

    def portable(self, *inputs: Any) -> tuple[Array, ...]:
        """The function as it is traced for other runtimes."""
        with compiling_for(PORTABLE):
            return self.function(*inputs)


def _many(batch: int | None) -> int | str:
    """Images at once, or the name of a size that is left open."""
    return IMAGES if batch is None else batch


def _images(spec: ModelSpec, batch: int | None) -> Tensor:
    return Tensor("image", (_many(batch), *spec.input_shape), "float32", "images as `prepare` gives them")


def encoder_part(encode: Callable[[Array], Array], spec: ModelSpec, batch: int | None) -> Part:
    """Images to embeddings.

    Args:
        encode: image (S, S, 3) -> embedding (h, w, c), its weights within.
        spec: of the model.
        batch: images at once; None leaves it open.

    Returns:
        A part with the input ``image`` and the output ``embedding``.
    """
    return Part(
        "encoder",
        lambda image: (jax.vmap(encode)(image),),
        (_images(spec, batch),),
        (
            Tensor(
                "embedding",
                (_many(batch), *spec.embedding),
                "float32",
                "what the decoder is given, one image at a time",
            ),
        ),
    )


def decoder_part(
    decode: Callable[..., Any], spec: ModelSpec, prompts: int | None, slots: int, masks: int
) -> Part:
    """One embedding and prompts to masks.

    Args:
        decode: (embedding, ``Prompts``) -> ``Prediction``, its weights within.
        spec: of the model.
        prompts: asked at once; None leaves it open.
        slots: points of a prompt, corners of a box included.
        masks: that are given for a prompt.

    Returns:
        A part with the inputs ``embedding``, ``points``, ``labels`` and the outputs ``logits``, ``iou``.
    """
    many = PROMPTS if prompts is None else prompts

    def function(embedding: Array, points: Array, labels: Array) -> tuple[Array, ...]:
        found = decode(embedding, Prompts(points, labels))
        return found.logits, found.iou

    return Part(
        "decoder",
        function,
        (
            Tensor("embedding", spec.embedding, "float32", "of one image"),
            Tensor("points", (many, slots, 2), "float32", "x, y in pixels of the prepared image"),
            Tensor(
                "labels",
                (many, slots),
                "int32",
                "1 inside, 0 outside, 2 and 3 corners of a box, -1 beside points without a box, -2 an unused slot",
            ),
        ),
        (
            Tensor("logits", (many, masks, *spec.logits_shape), "float32", "above 0 inside the object"),
            Tensor(
                "iou", (many, masks), "float32", "the model's own estimate of the overlap with the object"
            ),
        ),
    )


def whole_part(apply: Callable[[Array], Array], spec: ModelSpec, batch: int | None) -> Part:
    """Images to classes, of a model that takes no prompts.

    Args:
        apply: image (S, S, 3) -> logits (C, h, w), its weights within.
        spec: of the model.
        batch: images at once; None leaves it open.

    Returns:
        A part with the input ``image`` and the output ``logits``.
    """
    shape = _many(batch), spec.classes, *spec.logits_shape
    return Part(
        "model",
        lambda image: (jax.vmap(apply)(image),),
        (_images(spec, batch),),
        (Tensor("logits", shape, "float32", "of the classes, the largest one counts"),),
    )


def expected(part: Part, inputs: Sequence[NDArray]) -> list[NDArray]:
    """What JAX gives for these inputs, computed as the package computes: by the formulations of this backend."""
    return [np.asarray(array) for array in jax.jit(part.function)(*inputs)]
