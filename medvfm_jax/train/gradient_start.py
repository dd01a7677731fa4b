"""The start of a LoRA-GA delta: gradients of frozen kernels for the first batch of a run."""

from collections.abc import Mapping
from typing import Any

import jax

from medvfm_jax.adapters.lora_ga import start_from_gradients
from medvfm_jax.adapters.parameter_paths import fold, node_at
from medvfm_jax.adapters.training_options import parts_of
from medvfm_jax.train.loop import Loader
from medvfm_jax.train.step import LossFn, make_gradient
from medvfm_jax.types import Delta, Params


def with_gradient_start(
    adapter: Mapping[str, Any] | None,
    params: Params,
    delta: Delta,
    loss: LossFn,
    loader: Loader,
    accumulate: int = 1,
) -> Delta:
    """The delta with the constants of its LoRA-GA parts filled in; the same delta where there are none.

    The loader gives its first batch and is put back to it.  loss, accumulate: those of the training step.
    """
    parts = [(chain, part) for chain, part in parts_of(adapter) if part["kind"] == "lora_ga"]
    if not parts:
        return delta
    position = loader.get_state()
    batch = next(loader)
    loader.set_state(position)
    for chain, part in parts:
        inner = part_of(delta, chain)
        kernels = {path: {"kernel": node_at(params["params"], path)["kernel"]} for path in inner}

        def of_kernels(params: Params, kernels: Delta, batch: Any, key: Any, delta: Delta = delta) -> Any:
            return loss(fold(params, kernels, lambda _, new: new), delta, batch, key)

        gradient = jax.jit(make_gradient(of_kernels, accumulate))(params, kernels, batch, jax.random.key(0))[
            1
        ]
        started = start_from_gradients(part, inner, {path: g["kernel"] for path, g in gradient.items()})
        delta = replaced(delta, chain, started)
    return delta


def part_of(delta: Delta, chain: tuple[str, ...]) -> Delta:
    """The delta of a part of a chain."""
    for name in chain:
        delta = delta[name]
    return delta


def replaced(delta: Delta, chain: tuple[str, ...], inner: Delta) -> Delta:
    """The delta with another one in place of a part of its chain."""
    if not chain:
        return inner
    return {**delta, chain[0]: replaced(delta[chain[0]], chain[1:], inner)}
