"""A client that really has only FedPFT's proxy, against which the simulated one is tested.

Smaller feed-forward networks inside a transformer: choose neurons, cut them out, put them back.

A feed-forward network is a module with two linear layers, lin1 and lin2 or fc1 and fc2, W1 (d, m) and W2 (m, d); all
plain ViT, SAM and TinyViT blocks of ``models`` have one.  Its m hidden neurons can be cut down to k, which leaves a
model of the same interface with less to store, compute and send.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medvfm_jax.adapters import at as adapt_at
from medvfm_jax.adapters.parameter_paths import fold, node_at
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.models.layers import gelu
from medvfm_jax.types import Params

ENCODER = r"image_encoder/.*"
_NAMES = (("lin1", "lin2"), ("fc1", "fc2"))

ApplyFn = Callable[..., Any]  # (params, *inputs) -> output
Ffn = Mapping[str, Any]  # parameters of one network
Selection = dict[str, Array]  # {path of a feed-forward network: numbers of its kept neurons (k,), ascending}


def find_ffns(params: Params, pattern: str = ENCODER) -> list[str]:
    """Paths of the feed-forward networks that fully match ``pattern``; raises BadFederation if there is none."""
    found: list[str] = []

    def walk(node: Mapping[str, Any], path: str) -> None:
        if _layers(node) and re.fullmatch(pattern, path):
            found.append(path)
        for name, child in node.items():
            if isinstance(child, Mapping):
                walk(child, f"{path}/{name}" if path else name)

    walk(params["params"], "")
    if not found:
        raise BadFederation(f"No feed-forward network (lin1 and lin2, or fc1 and fc2) matches '{pattern}'.")
    return sorted(found)


def select_neurons(params: Params, keep: int | float, pattern: str = ENCODER) -> Selection:
    """Choose the neurons with the largest norm of what goes in and out, |(W1[:, j], W2[j, :])|_2.

    ``keep``: their number in every network, or a fraction below or equal to 1.0.  Source: FedPFT (Peng et al. 2024).
    Raises BadFederation for a number that a network does not have, and for stacked (scanned) blocks.
    """
    selection = {}
    for path in find_ffns(params, pattern):
        first, second = _kernels(node_at(params["params"], path))
        if first.ndim != 2:
            raise BadFederation(f"'{path}' is stacked over blocks: build the model without scan_blocks.")
        neurons = first.shape[1]
        count = round(keep * neurons) if isinstance(keep, float) else keep
        if not 1 <= count <= neurons:
            raise BadFederation(f"'{path}' has {neurons} neurons; {keep} of them cannot be kept.")
        strength = jnp.sqrt((first**2).sum(0) + (second**2).sum(1))
        selection[path] = jnp.sort(jnp.argsort(-strength, stable=True)[:count])
    return selection


def cut(params: Params, selection: Selection) -> Params:
    """Parameters of the proxy: the chosen neurons of every network, everything else as it is (not copied)."""

    def slim(node: Ffn, kept: Array) -> Ffn:
        one, two = _layers(node)
        first = {"kernel": node[one]["kernel"][:, kept], "bias": node[one]["bias"][kept]}
        return {one: first, two: {**node[two], "kernel": node[two]["kernel"][kept]}}

    return fold(params, selection, slim)


def plug_back(params: Params, proxy: Params, selection: Selection) -> Params:
    """Put a proxy's neurons and all its other parameters into the full model; neurons that were cut keep theirs."""

    def whole(small: Ffn, full_and_kept: tuple[Ffn, Array]) -> Ffn:
        full, kept = full_and_kept
        one, two = _layers(full)
        first = {
            "kernel": jnp.asarray(full[one]["kernel"]).at[:, kept].set(small[one]["kernel"]),
            "bias": jnp.asarray(full[one]["bias"]).at[kept].set(small[one]["bias"]),
        }
        second = {**small[two], "kernel": jnp.asarray(full[two]["kernel"]).at[kept].set(small[two]["kernel"])}
        return {one: first, two: second}

    full = {path: (node_at(params["params"], path), kept) for path, kept in selection.items()}
    return fold(proxy, full, whole)


def proxy_apply(apply_fn: ApplyFn, selection: Selection) -> ApplyFn:
    """Let ``apply_fn`` of the full model run with the parameters of a proxy: ``applied(params, *inputs)``.

    Linen checks the width of a layer against the model's configuration, so the networks are computed here, from their
    parameters, whatever their width.  Adapters of ``lin1`` and so on therefore see nothing; those of attention do.
    """
    pattern = "|".join(re.escape(path) for path in selection)
    adapter = adapt_at(
        pattern, "around", lambda key, site: {}, lambda delta, call, x: _forward(call.module, x)
    )
    adapted = adapter.wrap(apply_fn, strict=False)
    slots: dict[str, dict] = {path: {} for path in selection}
    return lambda params, *inputs, **kw: adapted(params, slots, *inputs, **kw)


def ffns_of(params: Params, selection: Selection) -> dict[str, Ffn]:
    """Parameters of the selected networks, by path."""
    return {path: node_at(params["params"], path) for path in selection}


def _forward(module: Any, x: Array) -> Array:
    node, dtype = module.variables["params"], x.dtype
    one, two = _layers(node)
    activation = getattr(module, "activation", gelu)
    if "norm" in node:  # TinyViT's network begins with its norm
        exact = x.astype(jnp.promote_types(dtype, jnp.float32))
        exact = exact - exact.mean(
            -1, keepdims=True
        )  # two passes: jax.nn.standardize loses digits of a large mean
        exact = exact * jax.lax.rsqrt(jnp.square(exact).mean(-1, keepdims=True) + 1e-5)
        x = (exact * node["norm"]["scale"] + node["norm"]["bias"]).astype(dtype)
    hidden = activation(x @ node[one]["kernel"].astype(dtype) + node[one]["bias"].astype(dtype))
    return hidden @ node[two]["kernel"].astype(dtype) + node[two]["bias"].astype(dtype)


def _layers(node: Ffn) -> tuple[str, str] | None:
    return next((names for names in _NAMES if set(names) <= set(node)), None)


def _kernels(node: Ffn) -> tuple[Array, Array]:
    one, two = _layers(node)
    return node[one]["kernel"], node[two]["kernel"]
