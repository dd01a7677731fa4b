"""UNETR by name."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.model import Model
from medvfm_jax.models.patch_network import build_patch_network, patch_network_spec
from medvfm_jax.models.unetr.modules import PATCH, Unetr, UnetrConfig
from medvfm_jax.models.unetr.port_table import UNETR
from medvfm_jax.types import ModelSpec


def build_unetr(spec: ModelSpec, config: UnetrConfig, **options: Any) -> Model:
    """A UNETR; options of ``build_patch_network``.

    The position of every token is learned, so the parameters depend on the window.
    """

    def root(classes: int, dtype: Any) -> Unetr:
        return Unetr(replace(config, classes=classes, dtype=dtype))

    return build_patch_network(spec, root, PATCH, **options)


def _entry(name: str, config: UnetrConfig, side: int) -> ModelEntry:
    spec = patch_network_spec(
        name,
        side,
        config.features,
        classes=config.classes,
        licence="Apache-2.0",
        head_dim=config.dim // config.heads,
    )
    # XLA's CPU backend does convolutions many times slower inside a loop, so batches stay whole.
    return ModelEntry(
        "unetr",
        spec,
        partial(build_unetr, spec, config),
        ("classes", "window", "channels", "dtype"),
        (UNETR,),
        start="random",
        heads=config.heads,
        whole_batches=True,
        source="https://arxiv.org/abs/2103.10504",
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "unetr": _entry("unetr", UnetrConfig(classes=2), 96),
    "unetr-tiny-test": _entry(
        "unetr-tiny-test", UnetrConfig(2, features=4, dim=16, depth=4, heads=2, mlp=32, skips=(1, 2, 3)), 32
    ),
}
