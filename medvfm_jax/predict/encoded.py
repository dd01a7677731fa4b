"""A promptable model in its two halves: a picture is encoded once, and its embedding decoded for many prompts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpy.typing import NDArray

from medvfm_jax import traces
from medvfm_jax.images import Frame, preprocess
from medvfm_jax.images.frame import Limits
from medvfm_jax.predict.ready import Ready
from medvfm_jax.types import Delta, ModelSpec, Params, Prediction, Prompts

if TYPE_CHECKING:
    from medvfm_jax.export.frozen_encoder import FrozenEncoder  # imports flax


class Encoded(NamedTuple):
    """A picture as a model has encoded it.

    embedding: (h, w, c), on the device.  frame: how the picture lies in the model's input.
    """

    embedding: Array
    frame: Frame


class Halves:
    """Encoder and decoder of a promptable model with its delta, each compiled once per shape of its inputs.

    say: told when a program has to be compiled first.  encoder: encodes outside JAX.
    """

    def __init__(
        self,
        ready: Ready,
        say: Callable[[str], None] = lambda text: None,
        encoder: "FrozenEncoder | None" = None,
    ):
        self.spec: ModelSpec = ready.spec
        self._weights, self._words, self._say = (ready.params, jax.device_put(ready.delta)), ready.words, say
        self._adapted, self._encoder = ready.adapted, encoder
        self._programs: dict[Any, Callable[..., Any]] = {}

    def encode(self, picture: NDArray, limits: Limits | None = None) -> Encoded:
        """Picture (H, W, C) -> its embedding; limits: see ``images.preprocess``."""
        prepared, frame = preprocess(self.spec, picture, limits)
        if self._encoder is not None:
            return Encoded(jnp.asarray(self._encoder.encode(prepared)), frame)

        def encode(params: Params, delta: Delta, image: Array) -> dict[str, Array]:
            return {"embedding": self._adapted().encode(params, delta, image)}

        return Encoded(self._run("encode", encode, prepared)["embedding"], frame)

    def decode(self, encoded: Encoded, prompts: Prompts, *, multimask: bool = False) -> Prediction:
        """Embedding and prompts in the model's frame -> Prediction; one program per shape of the prompts."""
        given = {name: value for name, value in prompts._asdict().items() if value is not None}
        options = {"multimask": True} if multimask else {}

        def decode(
            params: Params, delta: Delta, embedding: Array, given: dict[str, Array]
        ) -> dict[str, Array]:
            found = self._adapted().decode(params, delta, embedding, Prompts(**given), **options)
            present = {"logits": found.logits, "iou": found.iou, "object_score": found.object_score}
            return {name: value for name, value in present.items() if value is not None}

        name = "decode three" if multimask else "decode"
        return Prediction(**self._run(name, decode, encoded.embedding, given))

    def _run(self, name: str, function: Callable[..., Any], *inputs: Any) -> dict[str, Array]:
        key = name, str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), inputs))
        if key not in self._programs:
            self._programs[key] = traces.program(
                [name, *self._words] if self._words else None,
                function,
                *self._weights,
                *inputs,
                announce=lambda: self._say(f"compiling {self.spec.name}: {name.split()[0]} ..."),
            )
        return self._programs[key](*self._weights, *inputs)
