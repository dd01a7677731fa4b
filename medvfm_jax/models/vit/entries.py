"""Plain vision transformers by name."""

from collections.abc import Mapping
from functools import partial

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.vit.hf_port_table import (
    HF_DINOV2,
    HF_DINOV2_5,
    HF_DINOV3,
    HF_DINOV3_GATED,
    HF_VIT,
    HF_VIT_5,
)
from medvfm_jax.models.vit.modules import VARIANTS, ViTConfig, build_vit, spec_of
from medvfm_jax.models.vit.port_table import VIT
from medvfm_jax.port_tables import PortTable

_TABLES = (VIT, HF_VIT, HF_VIT_5, HF_DINOV2, HF_DINOV2_5)
_OPTIONS = ("image_size", "scan_blocks", "remat", "dtype", "interpolate_offset")

_SOURCES = {
    "vit": "https://arxiv.org/abs/2010.11929",
    "dinov2": "https://arxiv.org/abs/2304.07193",
    "dinov3": "https://arxiv.org/abs/2508.10104",
}
_REGISTERS = "https://arxiv.org/abs/2309.16588"


def _tables(config: ViTConfig) -> tuple[PortTable, ...]:
    if config.rope:
        return (HF_DINOV3_GATED if config.gated else HF_DINOV3,)
    return _TABLES


def _options(config: ViTConfig) -> tuple[str, ...]:
    return _OPTIONS if config.rope == 0 else tuple(o for o in _OPTIONS if o != "interpolate_offset")


def _source(name: str) -> str:
    return _REGISTERS if name.endswith("-reg") else _SOURCES[name.split("-")[0]]


ENTRIES: Mapping[str, ModelEntry] = {
    name: ModelEntry(
        "vit",
        spec_of(name, config, config.pretrain_size),
        partial(build_vit, name),
        _options(config),
        _tables(config),
        start="fixed" if name.endswith("-test") else "published",
        heads=config.heads,
        source=_source(name),
    )
    for name, config in VARIANTS.items()
}
