"""The start of an EVA delta: directions of the inputs of its layers in the first batches of a run."""

from collections.abc import Mapping
from typing import Any

import jax

from medvfm_jax.adapters.eva import input_widths, start_from_inputs
from medvfm_jax.adapters.input_moments import input_moments
from medvfm_jax.adapters.training_options import parts_of
from medvfm_jax.train.gradient_start import part_of, replaced
from medvfm_jax.train.loop import Loader
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import Delta, Params


def with_input_start(
    adapter: Mapping[str, Any] | None, params: Params, delta: Delta, loss: LossFn, loader: Loader
) -> Delta:
    """The delta with the first factors of its EVA parts in place; the same delta where there are none.

    The loader gives its first batches and is put back to them.
    """
    parts = [(chain, part) for chain, part in parts_of(adapter) if part["kind"] == "eva"]
    if not parts:
        return delta
    start, position = delta, loader.get_state()
    for chain, part in parts:
        inner = part_of(start, chain)
        widths = input_widths(inner)

        @jax.jit
        def moments(params: Params, batch: Any, widths: Any = widths) -> Any:
            return input_moments(loss, params, widths, start, batch, jax.random.key(0))

        loader.set_state(position)
        total = moments(params, next(loader))
        for _ in range(part.get("batches", 4) - 1):
            total = jax.tree.map(lambda a, b: a + b, total, moments(params, next(loader)))
        delta = replaced(delta, chain, start_from_inputs(inner, total))
    loader.set_state(position)
    return delta
