"""SAM-Med3D by name."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.root import as_model
from medvfm_jax.models.sam_med3d.encoder import PATCH, Encoder3d, Encoder3dConfig
from medvfm_jax.models.sam_med3d.port_table import SAM_MED3D
from medvfm_jax.models.sam_med3d.root import SamMed3d
from medvfm_jax.types import ModelSpec


def build_sam_med3d(
    spec: ModelSpec,
    config: Encoder3dConfig,
    hidden: int,
    *,
    window: tuple[int, int, int] | None = None,
    channels: int = 1,
    remat: bool | str = False,
    dtype: Any = jnp.float32,
) -> Model:
    """A SAM-Med3D: ``apply(params, patch (D, H, W, 1), prompts) -> Prediction(logits (Q, M, D, H, W), iou (Q, M))``.

    Args:
        spec: of the patch that the weights were trained on.
        config: of the encoder.
        hidden: of the decoder's MLPs.
        window: (D, H, W), a cube with sides of a multiple of 16: the released attention mixes the axes.
        channels: 1; the weights know no other number.
        remat: recompute blocks in the backward pass.
        dtype: of the computation.

    Returns:
        The model.

    Raises:
        BadModelOption: another window, or several channels.
    """
    window = tuple(window or spec.input_shape[:3])
    if (
        len({*window}) != 1
        or len(window) != 3
        or type(window[0]) is not int
        or window[0] % PATCH
        or window[0] < PATCH
    ):
        raise BadModelOption(
            f"{spec.name} needs a window of three equal multiples of {PATCH}, not {' '.join(map(str, window))}."
        )
    if channels != 1:
        raise BadModelOption(f"{spec.name} sees one channel, and the data have {channels}.")
    grid = tuple(n // PATCH for n in window)
    spec = replace(
        spec, input_shape=(*window, 1), embedding=(*grid, config.out_features), logits_shape=window
    )
    encoder = Encoder3d(replace(config, remat=bool(remat), dtype=dtype))
    return as_model(SamMed3d(encoder, spec, decoder_hidden=hidden, dtype=dtype))


def _entry(name: str, config: Encoder3dConfig, hidden: int = 2048, start: Any = "published") -> ModelEntry:
    side = PATCH * config.grid
    spec = ModelSpec(
        name,
        (side, side, side, 1),
        (config.grid, config.grid, config.grid, config.out_features),
        (side, side, side),
        resize="none",
        normalise="z_scores",
        prompts=("point",),
        licence="Apache-2.0",
        head_dim=config.dim // config.heads,
        notes="trained on voxels of 1.5 mm (--spacing 1.5)",
    )
    return ModelEntry(
        "sam_med3d",
        spec,
        partial(build_sam_med3d, spec, config, hidden),
        ("window", "channels", "remat", "dtype"),
        (SAM_MED3D,),
        start=start,
        heads=config.heads,
        whole_batches=True,
        preparation={"spacing": [1.5, 1.5, 1.5], "intensity": None},
        source="https://arxiv.org/abs/2310.15161",
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "sam-med3d": _entry("sam-med3d", Encoder3dConfig()),
    "sam-med3d-tiny-test": _entry(
        "sam-med3d-tiny-test",
        Encoder3dConfig(24, 2, 2, (1,), window=2, grid=3, out_features=48),
        hidden=32,
        start="fixed",
    ),
}
