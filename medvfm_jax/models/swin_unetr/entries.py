"""SwinUNETR by name."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.patch_network import build_patch_network, patch_network_spec
from medvfm_jax.models.swin_unetr.modules import MULTIPLE, SwinUnetr, SwinUnetrConfig
from medvfm_jax.models.swin_unetr.port_table import SWIN_UNETR
from medvfm_jax.types import ModelSpec


def build_swin_unetr(spec: ModelSpec, config: SwinUnetrConfig, **options: Any) -> Model:
    """A SwinUNETR; options of ``build_patch_network``."""

    def root(classes: int, dtype: Any) -> SwinUnetr:
        return SwinUnetr(replace(config, classes=classes, dtype=dtype))

    return build_patch_network(spec, root, MULTIPLE, **options)


def _entry(name: str, config: SwinUnetrConfig, side: int) -> ModelEntry:
    spec = patch_network_spec(
        name,
        side,
        config.features,
        classes=config.classes,
        licence="Apache-2.0",
        head_dim=config.features // config.heads[0],
    )
    # XLA's CPU backend does convolutions many times slower inside a loop, so batches stay whole.
    return ModelEntry(
        "swin_unetr",
        spec,
        partial(build_swin_unetr, spec, config),
        ("classes", "window", "channels", "dtype"),
        (SWIN_UNETR,),
        start="random",
        whole_batches=True,
        source="https://arxiv.org/abs/2201.01266",
        differences="As in MONAI's code, windows that are smaller than usual take the first rows of the bias of a "
        "whole one.",
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "swin-unetr": _entry("swin-unetr", SwinUnetrConfig(classes=2), 96),
    "swin-unetr-tiny-test": _entry(
        "swin-unetr-tiny-test",
        SwinUnetrConfig(2, features=6, depths=(2, 1, 1, 1), heads=(1, 2, 2, 2), window=3),
        32,
    ),
}
