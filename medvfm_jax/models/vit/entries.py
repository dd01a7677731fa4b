"""Plain vision transformers by name."""

from collections.abc import Mapping
from functools import partial

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.vit.hf_port_table import HF_DINOV2, HF_DINOV2_5, HF_VIT, HF_VIT_5
from medvfm_jax.models.vit.modules import VARIANTS, build_vit, spec_of
from medvfm_jax.models.vit.port_table import VIT

_TABLES = (VIT, HF_VIT, HF_VIT_5, HF_DINOV2, HF_DINOV2_5)
_OPTIONS = ("image_size", "scan_blocks", "remat", "dtype", "interpolate_offset")

_SOURCES = {"vit": "https://arxiv.org/abs/2010.11929", "dinov2": "https://arxiv.org/abs/2304.07193"}
_REGISTERS = "https://arxiv.org/abs/2309.16588"


def _source(name: str) -> str:
    return _REGISTERS if name.endswith("-reg") else _SOURCES[name.split("-")[0]]


ENTRIES: Mapping[str, ModelEntry] = {
    name: ModelEntry(
        "vit",
        spec_of(name, config, config.pretrain_size),
        partial(build_vit, name),
        _OPTIONS,
        _TABLES,
        start="fixed" if name.endswith("-test") else "published",
        heads=config.heads,
        source=_source(name),
    )
    for name, config in VARIANTS.items()
}
