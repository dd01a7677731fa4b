"""3DSAM-adapter: SAM's ViT on slabs, attention in cubic windows, bottlenecks and a decoder in three dimensions."""

from typing import Any

from medvfm_jax.systems import three_d_med_sam
from medvfm_jax.systems.places import tuned
from medvfm_jax.systems.record import Parts, System
from medvfm_jax.types import ModelSpec

DEPTH = WINDOW = 8
EVEN, ODD = (rf"image_encoder/blocks_\d*[{digits}]/attn" for digits in ("02468", "13579"))
NORMS_AND_NECK = r"image_encoder/(blocks_\d+/norm[12]|neck_[0-3])/.*"


def _parts(spec: ModelSpec) -> Parts:
    attention = {"kind": "cubic_attention", "head_dim": spec.head_dim, "window": WINDOW}
    parts = three_d_med_sam.SYSTEM.adapter(spec)
    return {
        "norms": tuned(NORMS_AND_NECK),
        **parts,
        "cubes": attention | {"at": EVEN, "shift": 0},
        "shifted": attention | {"at": ODD, "shift": WINDOW // 2},
    }


def _transform(spec: ModelSpec, prompt: str, classes: int) -> dict[str, Any]:
    return three_d_med_sam.SYSTEM.transform(spec, prompt, classes) | {"depth": DEPTH}


SYSTEM = System(
    description="SAM's ViT on slabs of volumes: patches that mix slices, bottlenecks of half the width with a 3-D "
    "convolution before every block, attention in shifted cubic windows of 8 with positions along the depth, norms and "
    "neck tuned, and a new 3-D decoder over four maps of the encoder (Gong et al. 2023, 3DSAM-adapter)",
    source="https://arxiv.org/abs/2306.13465",
    adapter=_parts,
    transform=_transform,
    prompts="none",
    learning_rate=4e-4,
    differences="Interpretation: made from a description, without the release. Without its point prompts for every "
    "level: slabs are segmented without prompts. Slices are resized like pictures, where the publication has cubes "
    "of voxels with half of SAM's positions; the layout of the aggregating decoder and windows that end at the "
    "border are ours. The bottleneck has no ReLU after its last layer, which starts at zero.",
)
