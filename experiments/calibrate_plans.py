"""The estimate of `medvfm plan` for programs whose throughput on TPUs is published: layers of MaxText's decoders.

    python -m experiments.calibrate_plans      # needs libtpu, no TPU; a minute per model

MaxText reports 120 and 132 TFLOP/s per chip, 61.1 and 66.9 % of the peak, for its models of 16 and 32 billion
parameters on v5e-256, trained with everything computed again (its `MaxText/configs/v5e/README.md`, `16b.sh`,
`32b.sh`; sizes by `global_parameter_scale`).  Here the products, norms and activations of one layer are compiled for
one v5e with the tokens of one chip, forward, again and backward.  Attention is added as kernels are in a plan, at its
products' bound and at a third of that; collectives are those of weights in bfloat16, gathered twice and gradients
scattered, after everything else or wholly hidden.  Embeddings, logits, the optimiser and the input are not in it.
"""

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from medvfm_jax.plan.chips import CHIPS
from medvfm_jax.plan.flops import Flops
from medvfm_jax.plan.hlo import Collective, Program, analyse
from medvfm_jax.plan.step_plan import estimate
from medvfm_jax.plan.topologies import devices_of

CHIPS_OF_THE_SLICE, SEQUENCE = 256, 2048


@dataclass(frozen=True)
class Decoder:
    """One layer and what a chip works on; published: share of the peak."""

    width: int
    heads: int
    mlp: int
    sequences: int
    published: float
    head: int = 128

    @property
    def weights(self) -> int:
        """Numbers in the matrices of a layer."""
        return 4 * self.width * self.heads * self.head + 3 * self.width * self.mlp

    @property
    def attention(self) -> int:
        """FLOPs of the two products of attention, forward, all pairs of tokens, as MaxText counts them."""
        return 4 * self.sequences * SEQUENCE**2 * self.heads * self.head


MODELS = {"16B": Decoder(4096, 64, 28672, 6, 0.611), "32B": Decoder(8192, 64, 28672, 4, 0.6686)}


def layer(weights: dict[str, Any], x: Any) -> Any:
    """x (tokens, width) -> same; in place of attention the sum of queries, keys and values, which reads the same."""
    y = _norm(x, weights["norm1"])
    mixed = y @ weights["q"] + y @ weights["k"] + y @ weights["v"]
    x = x + mixed @ weights["o"]
    y = _norm(x, weights["norm2"])
    return x + (jax.nn.silu(y @ weights["gate"]) * (y @ weights["up"])) @ weights["down"]


def _norm(x: Any, scale: Any) -> Any:
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype) * scale


def compiled(decoder: Decoder) -> Program:
    """A layer forward and, computed again, backward, for one v5e."""
    wide, inner, tokens = decoder.width, decoder.heads * decoder.head, decoder.sequences * SEQUENCE
    shapes = dict.fromkeys("qkv", (wide, inner)) | {"o": (inner, wide), "down": (decoder.mlp, wide)}
    shapes |= {"gate": (wide, decoder.mlp), "up": (wide, decoder.mlp), "norm1": (wide,), "norm2": (wide,)}
    device = jax.sharding.SingleDeviceSharding(devices_of("v5e:1x1")[0][0])

    def shape(dimensions: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dimensions, jnp.bfloat16, sharding=device)

    def both(weights: Any, x: Any, cotangent: Any) -> Any:
        y, pull = jax.vjp(jax.checkpoint(layer), weights, x)
        return y, pull(cotangent)

    x = shape((tokens, wide))
    return analyse(jax.jit(both).lower({n: shape(s) for n, s in shapes.items()}, x, x).compile().as_text())


def row(decoder: Decoder) -> dict[str, float]:
    """Utilisation of a chip by the estimate: kernels at a third of their bound and after it all collectives; best."""
    chip, tokens = CHIPS["v5e"], decoder.sequences * SEQUENCE
    dense = 6 * decoder.weights * tokens
    program = compiled(decoder)
    products = estimate(Flops(dense, dense * 8 // 6), program, chip, devices=1)
    each = 2 * decoder.weights // CHIPS_OF_THE_SLICE
    moved = (
        Collective("all-gather", CHIPS_OF_THE_SLICE, 2, 2 * each, 2 * each * (CHIPS_OF_THE_SLICE - 1)),
        Collective(
            "reduce-scatter", CHIPS_OF_THE_SLICE, 1, 2 * decoder.weights, each * (CHIPS_OF_THE_SLICE - 1)
        ),
    )
    sent = estimate(Flops(0, 0), Program(moved, 0, 0, 0), chip, CHIPS_OF_THE_SLICE).collectives
    attention = (2 + 2.5) * decoder.attention / chip.flops  # forward twice; backward computes logits again
    useful = (dense + 3 * decoder.attention) / chip.flops
    return {
        "products alone": products.utilisation,
        "low": useful / (products.step + 3 * attention + sent),
        "high": useful / max(products.step + attention, sent),
        "published": decoder.published,
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    print(json.dumps({name: row(decoder) for name, decoder in MODELS.items()}, indent=1))
