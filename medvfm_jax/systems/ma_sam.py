"""MA-SAM: FacT on queries and values, convolutions over slices in every block, a decoder as fine as the image."""

from typing import Any

from medvfm_jax.systems.places import DECODER_AND_PROMPT_ENCODER, VIT_BLOCK, on_qv
from medvfm_jax.systems.record import Parts, System, prompt_free_on_request
from medvfm_jax.types import ModelSpec

DEPTH = 5  # slices of a slab unless --window says otherwise
STREAM = r"image_encoder/(.*/)?stream"  # between attention and MLP of a block of SAM
LOCAL_CONVOLUTION = r"image_encoder/(.*/)?local_conv"  # the same place in TinyViT


def _parts(spec: ModelSpec) -> Parts:
    fact = {"kind": "fact", "rank": 32, "form": "tt", "dropout": 0.1, **on_qv(spec)}
    first = {"kind": "depth_convolution", "at": VIT_BLOCK, "width": 384}
    second = first | {"at": STREAM}
    if spec.qkv_layout == "head_major":
        # The first stage of TinyViT has blocks of convolutions, without attention; they are left alone.
        first = first | {"at": r"image_encoder/layers_[1-9]\d*/blocks_\d+"}
        second = first | {"at": LOCAL_CONVOLUTION, "where": "after"}
    decoder = (
        {} if spec.task == "features" else {"decoder": {"kind": "whole", "at": DECODER_AND_PROMPT_ENCODER}}
    )
    return {**decoder, "fact": fact, "before_attention": first, "before_mlp": second}


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any]:
    flat = prompt_free_on_request(spec, prompt, classes)
    fine = None if flat is None else {"kind": "deep_upscaling", "of": flat}
    return {"kind": "slab", "depth": DEPTH, "of": fine}


SYSTEM = System(
    description="on slabs of volumes: FacT of rank 32 on q and v, bottlenecks of 384 with a convolution over slices "
    "before attention and before the MLP of every block; mask decoder with four doublings and prompt encoder tuned "
    "(Chen et al. 2024, MA-SAM)",
    source="https://arxiv.org/abs/2309.08842",
    adapter=_parts,
    transform=_transform,
    prompts="none",
    learning_rate=8e-4,
    differences="The decoder doubles its map until the logits are as fine as the image, four times for SAM as "
    "published and twice for LiteMedSAM. Mask tokens of classes start from SAM's, where the release draws them at "
    "random. Dropout acts between u and the core of FacT, in the release between core and v.",
)
