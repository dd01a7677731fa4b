"""A toy vision transformer for the tests, in every Linen style an adapter has to cope with; un-batched."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from medvfm_jax.adapters import Adapter, lora, scale_shift, tune
from medvfm_jax.adapters import chain as chained

Style = Literal["loop", "remat", "scan", "remat_scan"]
KEY = jax.random.key(0)
IMAGE = jax.random.normal(KEY, (8, 8, 3))
BLOCK = r"blocks(_\d+)?"
DIM = 12


class Attention(nn.Module):
    """Self-attention x (tokens, dim) -> (tokens, dim), written with setup()."""

    dim: int
    heads: int = 2

    def setup(self) -> None:
        self.qkv = nn.Dense(3 * self.dim)
        self.out = nn.DenseGeneral(self.dim, axis=(-2, -1))

    def __call__(self, x: Array) -> Array:
        q, k, v = rearrange(self.qkv(x), "t (three h d) -> three t h d", three=3, h=self.heads)
        weights = nn.softmax(jnp.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5)
        return self.out(jnp.einsum("hqk,khd->qhd", weights, v))


class Block(nn.Module):
    """Transformer block x (tokens, dim) -> (x, None), a scan body, written @compact."""

    dim: int

    @nn.compact
    def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
        x = x + Attention(self.dim, name="attn")(nn.LayerNorm(name="norm1")(x))
        hidden = nn.gelu(nn.Dense(2 * self.dim, name="fc1")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(self.dim, name="fc2")(hidden), None


class ToyViT(nn.Module):
    """Classify an image (8, 8, 3) -> logits (classes,)."""

    dim: int = DIM
    depth: int = 2
    classes: int = 4
    style: Style = "loop"

    @nn.compact
    def __call__(self, image: Array) -> Array:
        grid = nn.Conv(self.dim, (4, 4), strides=4, name="patch")(image)
        grid = nn.Conv(self.dim, (1, 1), name="pointwise")(grid)
        grid = nn.Conv(self.dim, (3, 3), name="conv3x3")(grid)
        x = rearrange(grid, "h w d -> (h w) d")
        block = nn.remat(Block, prevent_cse="scan" not in self.style) if "remat" in self.style else Block
        if "scan" in self.style:
            axes = {"params": 0, "taps": 0}
            layers = nn.scan(block, variable_axes=axes, split_rngs={"params": True}, length=self.depth)
            x, _ = layers(self.dim, name="blocks")(x, None)
        else:
            for i in range(self.depth):
                x, _ = block(self.dim, name=f"blocks_{i}")(x)
        return nn.Dense(self.classes, name="head")(nn.LayerNorm(name="norm")(x).mean(axis=0))


@functools.cache
def toy(style: Style = "loop") -> tuple[nn.Module, dict]:
    """The model and its parameters."""
    vit = ToyViT(style=style)
    return vit, jax.jit(vit.init)(KEY, IMAGE)


def example_chain() -> Adapter:
    """A chain of one parameter adapter and two module adapters that share sites."""
    low_rank = lora(2, 4.0, r".*/qkv", slices="qv", layout="fused")
    return chained(tuned=tune("head/.*"), lora=low_rank, ssf=scale_shift(r".*/(qkv|fc1)"))


def perturbed(delta: dict, scale: float = 0.3) -> dict:
    """Move every array away from its initial value, the same way every time."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda d: d + scale * rng.normal(size=d.shape).astype(d.dtype), delta)


def init_delta(adapter: Adapter, vit: nn.Module, params: dict) -> dict:
    return adapter.init(KEY, vit.apply, params, IMAGE)


def stack_layers(tree: dict) -> dict:
    """Turn {"blocks_0...": x, "blocks_1...": x} into {"blocks...": (2, *x)}."""
    stacked = {k: v for k, v in tree.items() if not k.startswith("blocks_")}
    for key in (k for k in tree if k.startswith("blocks_0")):
        layers = [tree[key.replace("blocks_0", f"blocks_{i}")] for i in range(2)]
        stacked[key.replace("blocks_0", "blocks")] = jax.tree.map(lambda *a: jnp.stack(a), *layers)
    return stacked
