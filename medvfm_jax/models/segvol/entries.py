"""SegVol by name."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.root import as_model
from medvfm_jax.models.segvol.port_table import SEGVOL
from medvfm_jax.models.segvol.root import Encoder, SegVol
from medvfm_jax.models.unetr.transformer import TransformerConfig
from medvfm_jax.types import ModelSpec


def build_segvol(
    spec: ModelSpec,
    config: TransformerConfig,
    hidden: int,
    text_features: int,
    *,
    window: tuple[int, int, int] | None = None,
    channels: int = 1,
    remat: bool | str = False,
    dtype: Any = jnp.float32,
) -> Model:
    """A SegVol: ``apply(params, volume (D, H, W, 1), prompts, text=(Q, 512)) -> Prediction``, see its root module.

    Args:
        spec: of the window that the weights were trained on.
        config: of the encoder.
        hidden: of the decoder's MLPs.
        text_features: of the embedding of words.
        window: (D, H, W), multiples of the patch; the parameters are those of the released window whatever it is.
        channels: 1; the weights know no other number.
        remat: recompute blocks in the backward pass.
        dtype: of the computation.

    Returns:
        The model.

    Raises:
        BadModelOption: a window that cannot be cut into patches, or several channels.
    """
    window, patch = tuple(window or spec.input_shape[:3]), config.patch
    if len(window) != 3 or any(
        type(n) is not int or n < side or n % side for n, side in zip(window, patch, strict=True)
    ):
        raise BadModelOption(
            f"{spec.name} needs a window of three multiples of {' '.join(map(str, patch))}, "
            f"not {' '.join(map(str, window))}."
        )
    if channels != 1:
        raise BadModelOption(f"{spec.name} sees one channel, and the data have {channels}.")
    grid = tuple(n // side for n, side in zip(window, patch, strict=True))
    spec = replace(spec, input_shape=(*window, 1), embedding=(*grid, config.dim), logits_shape=window)
    encoder = Encoder(replace(config, remat=bool(remat), dtype=dtype))
    return as_model(SegVol(encoder, spec, decoder_hidden=hidden, dtype=dtype, text_features=text_features))


def _entry(
    name: str, config: TransformerConfig, hidden: int = 2048, text: int = 512, start: Any = "published"
) -> ModelEntry:
    window = tuple(n * side for n, side in zip(config.grid, config.patch, strict=True))
    spec = ModelSpec(
        name,
        (*window, 1),
        (*config.grid, config.dim),
        window,
        resize="none",
        normalise="unit",
        prompts=("point", "box"),
        licence="MIT",
        head_dim=config.dim // config.heads,
        notes="trained on CT whose voxels above their mean give the range, and on whole volumes of 32 x 256 x 256",
    )
    return ModelEntry(
        "segvol",
        spec,
        partial(build_segvol, spec, config, hidden, text),
        ("window", "channels", "remat", "dtype"),
        (SEGVOL,),
        start=start,
        heads=config.heads,
        whole_batches=True,
        source="https://arxiv.org/abs/2311.13385",
    )


ENTRIES: Mapping[str, ModelEntry] = {
    "segvol": _entry("segvol", TransformerConfig(patch=(4, 16, 16), grid=(8, 16, 16))),
    "segvol-tiny-test": _entry(
        "segvol-tiny-test",
        TransformerConfig(32, 2, 2, 48, patch=(4, 16, 16), grid=(3, 2, 2)),
        hidden=32,
        text=8,
        start="fixed",
    ),
}
