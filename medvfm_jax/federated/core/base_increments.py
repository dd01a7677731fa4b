"""Dense increments of frozen weights as a part of a delta, for FLoRA and FedEx-LoRA, which change the base.

Beside every part of the LoRA kind stands a second one of full rank, "PART_increment": its product a b is what the
algorithm added to the base so far.  It is not trained; with it the delta alone determines the model, and an
adapter with it is built, stored and evaluated as any other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters.lora import lora_scale
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.core.local_training import Gradient, Whole
from medvfm_jax.federated.core.lora_aggregation import Factors, factors_of, leaves_of_pair
from medvfm_jax.federated.core.personal_parts import leaf_name, split_personal
from medvfm_jax.federated.core.records import Algorithm, Tree

_SUFFIX = "_increment"
INCREMENTS = rf"[^/]+{_SUFFIX}/.*"


def adapter_with_increments(config: Mapping[str, Any], delta: Tree) -> dict[str, Any]:
    """Configuration of a chain, and its delta (or shapes) -> the same with the parts of increments.

    Raises BadFederation for an adapter without a part of plain LoRA.
    """
    parts = dict(config.get("parts", {}))
    found = {name: part for name, part in parts.items() if part.get("kind") == "lora"}
    if not found:
        raise BadFederation(
            "This algorithm adds products of low-rank factors to the base weights, so it needs an adapter of the LoRA "
            "kind; choose --preset lora or samed."
        )
    ranks = _full_ranks({name: (f.a.shape[-2], f.b.shape[-1]) for name, f in factors_of(delta).items()})
    for name, part in found.items():
        rank, stabilised = ranks[name], part.get("rank_stabilised", False)
        scale = lora_scale(part["rank"], part["alpha"], stabilised)
        alpha = None if part["alpha"] is None else scale / lora_scale(rank, 1.0, stabilised)
        parts[name + _SUFFIX] = {**part, "rank": rank, "alpha": alpha}
    return {**config, "parts": parts}


def without_increments(delta: Tree) -> Tree:
    """The delta with None for the leaves of increments."""
    return split_personal(delta, INCREMENTS)[0]


def with_increments(delta: Tree, base: Mapping[str, Array]) -> Tree:
    """Fill in the increments ``base``, {"PART/site/ab": dense (..., in, out)}, where the delta has None."""
    ranks = _full_ranks({name: dense.shape[-2:] for name, dense in base.items()})
    leaves: dict[str, Array] = {}
    for name, dense in base.items():
        part, _, site = name.partition("/")
        leaves |= leaves_of_pair(f"{part}{_SUFFIX}/{site}", _factored(dense, ranks[part]))
    return jax.tree.map_with_path(
        lambda path, leaf: leaves.get(leaf_name(path), leaf), delta, is_leaf=lambda x: x is None
    )


def on_increments(make: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
    """Turn make(gradient at pairs (delta, base), ...) into make(gradient at whole deltas, ...)."""

    def made(gradient: Gradient, optimizer: Any, **options: Any) -> Algorithm:
        def at_pair(trained: Tree, batch: Tree, key: Array, whole: Whole) -> Any:
            return gradient(trained, batch, key, lambda part: with_increments(*whole(part)))

        inner = make(at_pair, optimizer, **options)
        return inner._replace(
            init_server=lambda delta: inner.init_server(without_increments(delta)),
            init_client=lambda delta, client_id: inner.init_client(without_increments(delta), client_id),
            model=lambda server, own: with_increments(*inner.model(server, own)),
        )

    made.__doc__ = make.__doc__
    return made


def _full_ranks(sizes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """{"PART/site/ab": (in, out)} -> the rank per part with which a b can be any matrix of any site."""
    ranks: dict[str, int] = {}
    for name, size in sizes.items():
        part = name.partition("/")[0]
        ranks[part] = max(ranks.get(part, 1), min(size))
    return ranks


def _factored(dense: Array, rank: int) -> Factors:
    """Dense (..., in, out) -> factors of ``rank`` with exactly this product, one of them an identity."""
    *axes, width_in, width_out = dense.shape
    one = jnp.broadcast_to(
        jnp.eye(min(width_in, width_out), dtype=dense.dtype), (*axes, *[min(width_in, width_out)] * 2)
    )
    a, b = (dense, one) if width_out <= width_in else (one, dense)
    missing = rank - a.shape[-1]
    none = [(0, 0)] * len(axes)
    return Factors(jnp.pad(a, [*none, (0, 0), (0, missing)]), jnp.pad(b, [*none, (0, missing), (0, 0)]))
