"""Second moments of what modules take, sum of x x^T over tokens, by one backward pass of any function of the model.

A frozen module's output passes through ``_observed`` unchanged; on the way back the "gradient" of a matrix that has no
effect is the moment of the module's input.  So moments add up over ``vmap``, ``nn.scan``
and ``nn.remat`` as gradients do.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.lora_kernels import flatten_features
from medvfm_jax.adapters.parameter_paths import attach
from medvfm_jax.adapters.sites import path_of
from medvfm_jax.types import Params

_MOMENT = "moment"


def input_moments(
    loss: Callable[..., tuple[Array, Any]], params: Params, shapes: Mapping[str, tuple[int, ...]], *rest: Any
) -> dict[str, Array]:
    """Moments of the inputs of chosen modules, while a loss is computed.

    Args:
        loss: (params, *rest) -> (scalar, anything) of one Linen root module.
        params: the frozen parameters.
        shapes: {path of a module: (..., width) of its input behind the axes of stacked parameters}.
        *rest: further arguments of the loss.

    Returns:
        {path: (..., width, width)}: the sum over images, tokens and calls; 0 for modules that do not reach the loss.
    """

    def observing(moments: Mapping[str, Array]) -> Array:
        attached, slots = attach(params, {path: {_MOMENT: moment} for path, moment in moments.items()})

        def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
            y, slot = call(*args, **kwargs), slots.get(path_of(context))
            if slot is None:
                return y
            moment = context.module.get_variable("params", slot)[_MOMENT]
            return _observed(y, flatten_features(args[0], moment.shape[-1]), moment)

        with nn.intercept_methods(intercept):
            return loss(attached, *rest)[0]

    zeros = {path: jnp.zeros((*shape, shape[-1]), jnp.float32) for path, shape in shapes.items()}
    return jax.grad(observing)(zeros)


@jax.custom_vjp
def _observed(y: Array, x: Array, moment: Array) -> Array:
    return y


def _forward(y: Array, x: Array, moment: Array) -> tuple[Array, Array]:
    return y, x


def _backward(x: Array, g: Array) -> tuple[Array, Array, Array]:
    tokens = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    return g, jnp.zeros_like(x), tokens.T @ tokens


_observed.defvjp(_forward, _backward)
