"""A SAM-like model with the module paths of the real ones, fused or head-major, and tiny."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax import Array

from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.mask_decoder import TwoWayTransformer
from medvfm_jax.types import ModelSpec, Prediction, Prompts

DIM, HEAD_DIM, SIDE = 8, 2, 16
KEY = jax.random.key(0)
IMAGE = jax.random.normal(KEY, (SIDE, SIDE, 3))
BOX = Prompts(jnp.array([[[2.0, 3.0], [9.0, 12.0]]]), jnp.array([[2, 3]]))


class Attention(nn.Module):
    layout: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.LayerNorm(name="norm")(x) if self.layout == "head_major" else x
        order = "(three h d)" if self.layout == "fused" else "(h three d)"
        qkv = nn.Dense(3 * DIM, name="qkv")(x)
        q, k, v = rearrange(qkv, f"a b {order} -> three h (a b) d", three=3, d=HEAD_DIM)
        out = jnp.einsum("hnm,hmd->hnd", nn.softmax(jnp.einsum("hnd,hmd->hnm", q, k)), v)
        out = rearrange(out, "h (a b) d -> a b (h d)", a=x.shape[0])
        return nn.Dense(DIM, name="proj")(out)


class Mlp(nn.Module):
    layout: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.LayerNorm(name="norm")(x) if self.layout == "head_major" else x
        return nn.Dense(DIM, name="fc2")(nn.gelu(nn.Dense(2 * DIM, name="fc1")(x)))


class Block(nn.Module):
    layout: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fused = self.layout == "fused"
        x = x + Attention(self.layout, name="attn")(nn.LayerNorm(name="norm1")(x) if fused else x)
        return x + Mlp(self.layout, name="mlp")(nn.LayerNorm(name="norm2")(x) if fused else x)


class FoldedNorm(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, var = (self.param(name, ones, (DIM,)) for name in ("scale", "var"))
        bias, mean = (self.param(name, zeros, (DIM,)) for name in ("bias", "mean"))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


class Encoder(nn.Module):
    layout: str

    @nn.compact
    def __call__(self, image: Array) -> Array:
        x = nn.Conv(DIM, (4, 4), 4, "VALID", name="patch_embed")(image)
        x = FoldedNorm(name="bn")(x)
        for i in range(2):
            name = f"blocks_{i}" if self.layout == "fused" else f"layers_{i + 1}"
            x = Block(self.layout, name=name)(x)
        return nn.Conv(DIM, (1, 1), use_bias=False, name="neck_0")(x)


class PromptEncoder(nn.Module):
    @nn.compact
    def __call__(self, prompts: Prompts) -> Array:
        name = "positional_encoding_gaussian_matrix"
        matrix = self.param(name, nn.initializers.normal(), (2, DIM // 2))
        kinds = self.param("embedding", nn.initializers.normal(), (4, DIM))
        angle = prompts.points / SIDE @ matrix
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1) + kinds[prompts.labels]


class Hypernetwork(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(DIM, name="layers_2")(nn.relu(nn.Dense(DIM, name="layers_0")(x)))


class Decoder(nn.Module):
    attention: bool

    @nn.compact
    def __call__(self, embedding: Array, sparse: Array, multimask: bool) -> Prediction:
        tokens = self.param("mask_tokens", nn.initializers.normal(), (4, DIM))
        tokens = repeat(tokens, "m c -> q m c", q=sparse.shape[0]) + sparse.mean(1, keepdims=True)
        if self.attention:
            image = rearrange(embedding, "h w c -> 1 (h w) c")
            tokens, _ = TwoWayTransformer(1, 2, DIM, name="transformer")(tokens, image, jnp.ones_like(image))
            embedding = nn.Dense(DIM, name="output_upscaling_3")(embedding)
        weights = [Hypernetwork(name=f"output_hypernetworks_mlps_{m}")(tokens[:, m]) for m in range(4)]
        logits = jnp.einsum("hwc,mqc->qmhw", embedding, jnp.stack(weights))
        kept = slice(1, None) if multimask else slice(0, 1)
        return Prediction(logits[:, kept], logits.mean((-1, -2))[:, kept])


class Sam(nn.Module):
    layout: str
    attention: bool

    def setup(self) -> None:
        self.image_encoder = Encoder(self.layout)
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = Decoder(self.attention)

    def encode(self, image: Array) -> Array:
        return self.image_encoder(image)

    def decode(self, embedding: Array, prompts: Prompts, multimask: bool = False) -> Prediction:
        return self.mask_decoder(embedding, self.prompt_encoder(prompts), multimask)

    def __call__(self, image: Array, prompts: Prompts, multimask: bool = False) -> Prediction:
        return self.decode(self.encode(image), prompts, multimask)


@functools.cache
def toy_sam(layout: str = "fused", attention: bool = False) -> tuple[Model, dict]:
    """The model record and its parameters; attention: SAM's transformer and last map in the decoder."""
    root = Sam(layout, attention)
    grid = SIDE // 4
    spec = ModelSpec("toy", SIDE, (grid, grid, DIM), grid, qkv_layout=layout, head_dim=HEAD_DIM)

    def encode(params, image, **kw):
        return root.apply(params, image, method="encode", **kw)

    def decode(params, embedding, prompts, multimask=False, **kw):
        return root.apply(params, embedding, prompts, multimask, method="decode", **kw)

    def apply(params, image, prompts, multimask=False, **kw):
        return root.apply(params, image, prompts, multimask, **kw)

    init = jax.jit(lambda key: root.init(key, IMAGE, BOX))
    return Model(encode, decode, apply, init, spec), init(KEY)
