"""CLIP models by name."""

from collections.abc import Mapping
from functools import partial

from medvfm_jax.models.clip.hf_port_table import HF_CLIP
from medvfm_jax.models.clip.port_table import CLIP
from medvfm_jax.models.clip.root import VARIANTS, build_clip, spec_of
from medvfm_jax.models.entry import ModelEntry

ENTRIES: Mapping[str, ModelEntry] = {
    name: ModelEntry(
        "clip",
        spec_of(name, config, config.image.pretrain_size),
        partial(build_clip, name),
        ("image_size", "scan_blocks", "remat", "dtype"),
        (CLIP, HF_CLIP),
        start="fixed" if name.endswith("-test") else "published",
        heads=config.image.heads,
        source="https://arxiv.org/abs/2103.00020",
        differences="Images are stretched to a square; CLIP resizes bicubically and cuts out the middle.",
    )
    for name, config in VARIANTS.items()
}
