"""A loss that keeps experts in use: adapters note it where they run, training adds it to that of the masks."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import Array

from medvfm_jax.adapters.pyramid_taps import TAPS
from medvfm_jax.adapters.training_options import parts_of

BALANCE = "balance"


def load_balance(shares: Array) -> Array:
    """E times the sum over experts of f_e P_e: 1 where all are used alike, E where one gets everything.

    f_e is the share of tokens whose largest share is that of expert e, without a gradient; P_e the mean share.

    Args:
        shares: of the experts for each token, (..., E), each row adds up to 1.

    Returns:
        The scalar.

    References:
        Fedus et al. 2022 (Switch Transformers), eq. 4-6, https://arxiv.org/abs/2101.03961
    """
    experts = shares.shape[-1]
    flat = shares.reshape(-1, experts)
    used = jax.lax.stop_gradient(jax.nn.one_hot(flat.argmax(-1), experts, dtype=flat.dtype).mean(0))
    return experts * (used * flat.mean(0)).sum()


def note_balance(module: nn.Module, value: Array) -> None:
    """Leave a value where ``with_balance`` finds it; nothing where nobody looks."""
    module.sow(TAPS, BALANCE, value)


def is_balanced(config: Mapping[str, Any] | None) -> bool:
    """Whether a training loss has a term of the adapter's.

    Args:
        config: of the adapter, None for a custom one.

    Returns:
        True where a part has a balance above 0.
    """
    return any(part.get("balance", 0) > 0 for _, part in parts_of(config))


def with_balance(predict: Callable[..., Any]) -> Callable[..., tuple[Any, Array]]:
    """A function of an adapted model that also gives the mean of the noted values.

    Args:
        predict: passes keywords on to Linen's ``apply``.

    Returns:
        The same inputs -> (its output, mean over the places where a value was noted; 0 if there is none).
    """

    def noted(*inputs: Any, **kw: Any) -> tuple[Any, Array]:
        out, state = predict(*inputs, mutable=[TAPS], **kw)
        flat = flatten_dict(dict(state.get(TAPS, {})))
        found = [jnp.ravel(v) for keys, values in flat.items() if keys[-1] == BALANCE for v in values]
        return out, jnp.concatenate(found).mean() if found else jnp.zeros(())

    return noted
