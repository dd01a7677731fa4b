"""Medical SAM Adapter on volumes: the adapters of Med-SA and attention among the slices of a slab (SD-Trans)."""

from typing import Any

from medvfm_jax.systems import med_sa
from medvfm_jax.systems.places import ATTENTION, tuned_decoder
from medvfm_jax.systems.record import Parts, System, prompt_free_on_request
from medvfm_jax.types import ModelSpec

DEPTH = 5  # slices of a slab unless --window says otherwise


def _parts(spec: ModelSpec) -> Parts:
    depth = {"kind": "depth_attention", "at": ATTENTION, "ratio": 0.25}
    depth |= {"head_dim": spec.head_dim, "layout": spec.qkv_layout}
    space = med_sa.SYSTEM.adapter(spec)
    # Depth comes after space: it is added to what space has made of the attention, and is not adapted by it.
    return {**tuned_decoder(spec), "space": space["space"], "depth": depth, "mlp": space["mlp"]}


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any]:
    return {"kind": "slab", "depth": DEPTH, "of": prompt_free_on_request(spec, prompt, classes)}


SYSTEM = System(
    description="Med-SA on slabs of volumes: attention among slices with the frozen weights and a bottleneck, summed "
    "with Med-SA's adapters (Wu et al. 2023, SD-Trans)",
    source="https://arxiv.org/abs/2304.12620",
    adapter=_parts,
    transform=_transform,
    prompts="none",
    learning_rate=5e-4,
    differences="Prompt-free, with one output per class. The depth bottleneck has no residual, so that training starts "
    "from the model of slices; attention over depth is along one axis as in the paper (the release folds the slices "
    "into a small grid). Relative positions act within slices only: the release drops them in both branches.",
)
