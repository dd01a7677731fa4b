"""Every algorithm on one tiny problem, with the parts a round may be combined with, for the property tests.

The delta has a body, a normalisation scale and a low-rank site, so that every algorithm can work on it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.random import define_prng_impl
from jax.flatten_util import ravel_pytree

from medvfm_jax.federated import algorithms as alg
from medvfm_jax.federated.algorithms.personalise import ditto, fedbn, fedper, fedrep
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.core.records import Algorithm, Codec, Shard, Tree
from medvfm_jax.federated.core.robust import (
    coordinate_median,
    geometric_median,
    multi_krum,
    robust,
    trimmed_mean,
)

N, STEPS, BATCH, WIDTH, RANK = 8, 2, 2, 3, 2
SGD = optax.sgd(0.05)


def delta() -> Tree:
    rng = np.random.default_rng(1)
    return {
        "site": {"a": jnp.asarray(rng.normal(size=(WIDTH, RANK))), "b": jnp.zeros((RANK, 2))},
        "norm": {"scale": jnp.zeros(WIDTH)},
    }


def data() -> Shard:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(N, STEPS, BATCH, WIDTH)), rng.normal(size=(N, STEPS, BATCH, 2))
    return Shard((jnp.asarray(x), jnp.asarray(y)), jnp.arange(1.0, N + 1), jnp.linspace(0.5, 1.5, N))


def outputs(delta: Tree, x: jax.Array, base: Tree | None = None) -> jax.Array:
    """x (batch, WIDTH) -> (batch, 2): a frozen weight, plus a @ b, plus the dense increment of some algorithms."""
    weight = jnp.ones((WIDTH, 2)) if base is None else 1 + base["site/ab"]
    x = x * (1 + delta["norm"]["scale"])
    return x @ weight + (x @ delta["site"]["a"]) @ delta["site"]["b"]


def loss(delta: Tree, batch: tuple, key: jax.Array) -> jax.Array:
    """Least squares with a little noise from the key, so that a wrong random stream is seen."""
    return loss_on_base(delta, None, batch, key)


def loss_on_base(delta: Tree, base: Tree | None, batch: tuple, key: jax.Array) -> jax.Array:
    x, y = batch
    noise = 0.1 * jax.random.uniform(key, (), y.dtype)
    return ((outputs(delta, x, base) - y + noise) ** 2).mean()


def loss_of_pair(pair: tuple[Tree, Tree], batch: tuple, key: jax.Array) -> jax.Array:
    """Of what the algorithms train that change the base."""
    return loss_on_base(*pair, batch, key)


def quiet_loss(delta: Tree, batch: tuple, key: jax.Array) -> jax.Array:
    del key
    return ((outputs(delta, batch[0]) - batch[1]) ** 2).mean()


RANKS = [1, 2, 2, 1, 2, 2, 1, 2]
HEAD = "site/.*"
PUBLIC = np.random.default_rng(3).normal(size=(2, BATCH, WIDTH))

AVERAGING: dict[str, Callable[[], Algorithm]] = {
    "fedavg": lambda: alg.fedavg(gradient_of(loss), optax.adam(0.05)),
    "fedprox": lambda: alg.fedprox(gradient_of(loss), SGD, 0.1),
    "fedsharp": lambda: alg.fedsharp(gradient_of(loss), SGD),
    "fedavgm": lambda: alg.fedavgm(gradient_of(loss), SGD),
    "fedadagrad": lambda: alg.fedadagrad(gradient_of(loss), SGD),
    "fedyogi": lambda: alg.fedyogi(gradient_of(loss), SGD),
    "fedadam": lambda: alg.fedadam(gradient_of(loss), SGD),
    "scaffold": lambda: alg.scaffold(gradient_of(loss), 0.05),
    "fednova": lambda: alg.fednova(gradient_of(loss), 0.05, momentum=0.5),
    "feddyn": lambda: alg.feddyn(gradient_of(loss), SGD),
    "moon": lambda: alg.moon(gradient_of(loss), lambda d, batch: outputs(d, batch[0]), SGD),
    "qfedavg": lambda: alg.qfedavg(gradient_of(loss), 0.05),
    "fedper": lambda: fedper(gradient_of(loss), SGD, HEAD),
    "fedbn": lambda: fedbn(gradient_of(loss), SGD),
    "fedrep": lambda: fedrep(gradient_of(loss), SGD, HEAD, 1),
    "ditto": lambda: ditto(gradient_of(loss), SGD, 0.5),
    "fedit": lambda: alg.fedit(gradient_of(loss), SGD),
    "ffa_lora": lambda: alg.ffa_lora(gradient_of(loss), SGD),
    "rolora": lambda: alg.rolora(gradient_of(loss), SGD),
    "fedsa_lora": lambda: alg.fedsa_lora(gradient_of(loss), SGD),
    "iat": lambda: alg.iat(gradient_of(loss), SGD, 0.5),
    "hetlora": lambda: alg.hetlora(gradient_of(loss), SGD, RANKS, prune=0.5, penalty=0.01),
}
LOOKING: dict[str, Callable[[], Algorithm]] = {
    "feddf": lambda: alg.feddf(gradient_of(loss), SGD, outputs, jnp.asarray(PUBLIC), optax.sgd(0.1)),
    "median": lambda: robust(alg.fedavg(gradient_of(loss), SGD), coordinate_median),
    "trimmed": lambda: robust(alg.fedavg(gradient_of(loss), SGD), trimmed_mean()),
    "multi_krum": lambda: robust(alg.fedavg(gradient_of(loss), SGD), multi_krum(1, 3)),
    "rfa": lambda: robust(alg.fedavg(gradient_of(loss), SGD), geometric_median()),
    "flora": lambda: alg.flora(gradient_of(loss_of_pair), SGD, N, RANKS),
    "flexlora": lambda: alg.flexlora(gradient_of(loss), SGD, RANKS),
    "fedex_lora": lambda: alg.fedex_lora(gradient_of(loss_of_pair), SGD, N),
    "lora_fair": lambda: alg.lora_fair(gradient_of(loss), SGD),
    "pcgrad": lambda: alg.pcgrad(gradient_of(loss), SGD),
    "cagrad": lambda: alg.cagrad(gradient_of(loss), SGD),
    "mgda": lambda: alg.mgda(gradient_of(loss), SGD),
    "nash_mtl": lambda: alg.nash_mtl(gradient_of(loss), SGD),
    "imtl_g": lambda: alg.imtl_g(gradient_of(loss), SGD),
    "famo": lambda: alg.famo(gradient_of(loss), SGD, N),
    "dwa": lambda: alg.dwa(gradient_of(loss), SGD, N),
    "uncertainty": lambda: alg.uncertainty(gradient_of(loss), SGD, N),
    "grad_norm": lambda: alg.grad_norm(gradient_of(loss), SGD, N),
    "clustered": lambda: alg.clustered(gradient_of(loss), SGD, N, 0.9, 0.0),
    "fedhca2": lambda: alg.fedhca2(gradient_of(loss), SGD, N, decoders=r".*/b"),
    "fedbone": lambda: alg.fedbone(gradient_of(loss), SGD, HEAD),
    "mat_fl": lambda: alg.mat_fl(gradient_of(loss), SGD, N, HEAD),
    "matu": lambda: alg.matu(gradient_of(loss), SGD, N),
    "mocha": lambda: alg.mocha(gradient_of(loss), SGD, N),
}
EVERY = AVERAGING | LOOKING


def switchable_rounding(step: float = 1e-3) -> Codec:
    """Round to multiples of ``step`` at random, keeping the error, for clients whose state says so.

    The switch is data, so that one compiled round serves with and without compression.
    """

    def init(update: Tree) -> Tree:
        size = sum(math.prod(x.shape) for x in jax.tree.leaves(update))
        return {"on": jnp.asarray(True), "error": jnp.zeros(size)}

    def encode(key: jax.Array, state: Tree, update: Tree) -> tuple[Tree, Tree]:
        flat, restore = ravel_pytree(update)
        wanted = flat + state["error"]
        rounded = step * jnp.floor(wanted / step + jax.random.uniform(key, wanted.shape, wanted.dtype))
        sent = jnp.where(state["on"], rounded, wanted)
        return restore(sent), state | {"error": wanted - sent}

    return Codec(init, encode, lambda message, like: message)


def cheap_key(seed: int) -> jax.Array:
    """A typed key of a small hash: threefry is most of the compile time of rounds as tiny as these."""
    return jax.random.key(seed, impl=_HASH)


def _mix(x: jax.Array) -> jax.Array:
    """Scramble uint32 (murmur3's finaliser)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def _numbers(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    count = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return _mix(key[0] + jnp.uint32(0x9E3779B9) * (count + 1))


def _bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    if bit_width == 64:
        high, low = (x.astype(jnp.uint64) for x in _numbers(key, (2, *shape)))
        return (high << 32) | low
    return _numbers(key, shape).astype(jnp.dtype(f"uint{bit_width}"))


_HASH = define_prng_impl(
    key_shape=(1,),
    seed=lambda seed: _mix(jnp.asarray(seed).astype(jnp.uint32))[None],
    split=lambda key, shape: _numbers(key, shape)[..., None],
    random_bits=_bits,
    fold_in=lambda key, data: _mix(key ^ _mix(data.astype(jnp.uint32) + jnp.uint32(0x7F4A7C15))),
    name="small_hash",
    tag="hash",
)
