"""3DMedSAM: patches of volumes, bottlenecks and a multi-scale decoder in three dimensions, on slabs."""

from typing import Any

from medvfm_jax.systems.places import PATCHES, SECOND_DECODER, VIT_BLOCK
from medvfm_jax.systems.record import Parts, System, prompt_free_on_request
from medvfm_jax.types import ModelSpec

DEPTH = 8  # slices of a slab unless --window says otherwise


def _parts(spec: ModelSpec) -> Parts:
    return {
        "decoder": {"kind": "whole", "at": SECOND_DECODER},
        "patches": {"kind": "slice_embedding", "at": PATCHES},
        "blocks": {"kind": "volume_bottleneck", "at": VIT_BLOCK, "ratio": 0.5},
    }


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any]:
    flat = prompt_free_on_request(spec, prompt, classes)
    return {"kind": "slab", "depth": DEPTH, "of": flat and {"kind": "volume_decoder", "of": flat}}


SYSTEM = System(
    description="on slabs of volumes: patches that mix slices, bottlenecks of half the width with a 3-D convolution "
    "before every block, and a new multi-scale 3-D decoder over four maps of the encoder (after Lin et al. 2025, "
    "3DMedSAM)",
    source="https://arxiv.org/abs/2306.13465",
    adapter=_parts,
    transform=_transform,
    prompts="none",
    learning_rate=5e-4,
    differences="Interpretation: of 3DMedSAM (Biocybernetics and Biomedical Engineering 45(1), 2025) only the "
    "abstract was read, so patches and bottlenecks are those of 3DSAM-adapter, which is linked; layout of the decoder, "
    "prompt-free training and slabs whose attention stays within slices are ours.",
)
