"""FedPFT: clients adapt a proxy of the foundation model, and what they learn goes back into the full one.

Source: Peng et al. 2024, "FedPFT: Federated Proxy Fine-Tuning of Foundation Models" (IJCAI): the proxy keeps attention
and norms and the strongest neurons of every feed-forward network (``proxy_ffn``).  Before the federation, layers of the
proxy are distilled from those of the full model; during it, neurons are aligned again.
Interpretation: the alignment in a federation is ``realign``, called between rounds as often as wanted: plug in, choose
neurons anew, distil with the neuron term; the full model's embedding of the images may be cached by the caller.

>>> selection = select_neurons(params, 1024)
>>> proxy = distil(model.encode, params, cut(params, selection), selection, images, optax.adam(1e-4))
>>> apply = adapter.wrap(proxy_apply(model.apply, selection))          # clients train deltas of the proxy
>>> params, selection, proxy = realign(params, adapter.merge(proxy, server.delta), selection)
"""

import re

import jax
import jax.numpy as jnp
import optax
from jax import Array

from medvfm_jax.adapters import tap
from medvfm_jax.federated.systems.proxy_ffn import (
    ApplyFn,
    Ffn,
    Selection,
    cut,
    ffns_of,
    plug_back,
    product,
    proxy_apply,
    select_neurons,
    with_ffns,
)
from medvfm_jax.types import Params

BLOCKS = r"image_encoder/(layers_\d+/)?blocks_\d+"


def distil(
    encode: ApplyFn,
    params: Params,
    proxy: Params,
    selection: Selection,
    images: Array,
    optimizer: optax.GradientTransformation,
    alpha: float = 1.0,
    blocks: str = BLOCKS,
) -> Params:
    """Train the proxy's feed-forward networks on ``layer_loss``, one step per batch of images (steps, B, S, S, 3).

    encode(params, image) is that of the full model.  Public images suffice, no label is used.
    """
    small = proxy_apply(encode, selection)
    full = ffns_of(params, selection)

    def loss(ffns: dict[str, Ffn], batch: Array) -> Array:
        now = with_ffns(proxy, ffns)
        return jax.vmap(lambda image: block_error(encode, params, small, now, image, blocks))(
            batch
        ).mean() + alpha * neuron_error(full, ffns)

    def step(carry: tuple, batch: Array) -> tuple[tuple, None]:
        ffns, state = carry
        updates, state = optimizer.update(jax.grad(loss)(ffns, batch), state, ffns)
        return (optax.apply_updates(ffns, updates), state), None

    start = ffns_of(proxy, selection)
    (ffns, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), images)
    return with_ffns(proxy, ffns)


def block_error(
    encode: ApplyFn, params: Params, small: ApplyFn, proxy: Params, image: Array, blocks: str = BLOCKS
) -> Array:
    """Mean over blocks of |proxy's output - full output|^2 / |full output|^2 for one image (S, S, 3)."""
    _, wanted = tap(encode, blocks)(params, image)
    _, found = tap(small, blocks)(proxy, image)
    errors = [_relative(found[path], jax.lax.stop_gradient(y)) for path, y in wanted.items()]
    return jnp.stack(errors).mean()


def neuron_error(full: dict[str, Ffn], proxy: dict[str, Ffn]) -> Array:
    """Mean over networks of |W1'W2' - W1 W2|^2 / |W1 W2|^2, with the proxy's W1', W2'."""
    return jnp.stack([_relative(product(proxy[path]), product(node)) for path, node in full.items()]).mean()


def realign(params: Params, proxy: Params, selection: Selection) -> tuple[Params, Selection, Params]:
    """Plug a trained proxy in and choose as many neurons again -> (full model, selection, proxy).

    Networks keep the numbers of neurons they had.  Follow with ``distil`` to align the new proxy.
    """
    params = plug_back(params, proxy, selection)
    chosen: Selection = {}
    for path, kept in selection.items():
        chosen |= select_neurons(params, len(kept), re.escape(path))
    return params, chosen, cut(params, chosen)


def _relative(x: Array, wanted: Array) -> Array:
    return ((x - wanted) ** 2).sum() / jnp.maximum((wanted**2).sum(), 1e-12)
