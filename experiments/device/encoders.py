r"""How fast are SAM's encoders, and what share of the card's peak is that?

python -m experiments.device.encoders --models sam-b sam-l sam-h --batches 1 8 32

Random weights, bfloat16, whole batches. PyTorch with the settings of segment-anything-fast (bfloat16, scaled dot
product attention, `torch.compile`) is beside it where torch with CUDA and transformers are installed (`--torch`), in
turns in the same process.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.device.measure import (
    card,
    finish,
    in_turns,
    need_accelerator,
    peak_bytes,
    share_of_peak,
    spread,
)
from medvfm_jax.bench.rows import subject
from medvfm_jax.plan.flops import forward_flops


@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings."""

    models: tuple[str, ...] = ("sam-b", "sam-l", "sam-h")
    """Models whose encoder is measured."""
    batches: tuple[int, ...] = (1, 8, 32)
    """Images at once."""
    dtype: str = "bfloat16"
    """Number format of the computation."""
    rounds: int = 10
    """Turns."""
    torch: bool = False
    """Measure PyTorch too."""
    out: Path | None = None
    """File of the result; by default in experiments/results, with the card's name."""


def run(plan: Plan) -> dict[str, Any]:
    """Measure, write."""
    about, chip = card()
    rows: dict[str, Any] = {}
    for name in plan.models:
        given = subject(name, plan.dtype)
        shape = given.spec.input_shape
        flop = forward_flops(given.model.encode, given.params, jax.ShapeDtypeStruct(shape, jnp.float32))
        encode = jax.jit(jax.vmap(given.model.encode, in_axes=(None, 0)))
        for batch in plan.batches:
            images = jax.device_put(np.random.default_rng(0).standard_normal((batch, *shape), np.float32))
            calls: dict[str, Callable[[], Any]] = {"jax": partial(encode, given.params, images)}
            if plan.torch:
                calls["torch"] = _torch(name, batch, shape[0])
            times = dict(zip(calls, map(spread, in_turns(list(calls.values()), plan.rounds))))
            rows[f"{name}, {batch}"] = {
                peer: one
                | {
                    "images_per_second": batch / one["median"],
                    "share_of_peak": share_of_peak(flop * batch, one["median"], chip),
                }
                for peer, one in times.items()
            } | {"flop_per_image": flop, "peak_bytes_so_far": peak_bytes()}
    record = {"card": about, "dtype": plan.dtype, "encoders": rows}
    finish("encoders", record, plan.out)
    return record


def _torch(name: str, batch: int, side: int) -> Callable[[], Any]:
    """The encoder of transformers, bfloat16, compiled; a call waits for the device."""
    import torch
    from transformers import SamConfig, SamModel, SamVisionConfig

    widths = {"sam-b": (768, 12, 12, (2, 5, 8, 11)), "sam-l": (1024, 24, 16, (5, 11, 17, 23)),
              "sam-h": (1280, 32, 16, (7, 15, 23, 31))}  # fmt: skip
    width, depth, heads, everywhere = widths[name]
    vision = SamVisionConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, global_attn_indexes=list(everywhere),
        image_size=side, mlp_dim=4 * width, num_pos_feats=128,
    )  # fmt: skip
    model = SamModel._from_config(SamConfig(vision_config=vision.to_dict()), attn_implementation="sdpa")
    encoder = torch.compile(model.vision_encoder.to("cuda", torch.bfloat16).eval(), mode="max-autotune")
    images = torch.randn(batch, 3, side, side, device="cuda", dtype=torch.bfloat16)

    def call() -> int:
        with torch.inference_mode():
            encoder(images)
        torch.cuda.synchronize()
        return 0

    return call


if __name__ == "__main__":
    plan = tyro.cli(Plan)
    need_accelerator()
    run(plan)
