"""Every model by name: ``build("lite-medsam")`` gives a ``Model`` without weights."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from medvfm_jax.catalog import Catalog
from medvfm_jax.models import (
    clip,
    ds_transunet,
    hiformer,
    i3resnet,
    linknet3d,
    missformer,
    sam,
    sam2,
    sam_med3d,
    scan,
    segvol,
    swin,
    swin_unet,
    swin_unetr,
    transunet,
    unet,
    unet3d,
    unetr,
    vit,
)
from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.errors import BadModelOption, UnknownModel
from medvfm_jax.models.model import Model
from medvfm_jax.types import Params

COMPUTE_DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))

# What SAM's encoders keep of a block for the backward pass -> their option ``remat``; least memory first.
KEEP: Mapping[str, bool | str] = {"nothing": True, "products": "between", "everything": False}

MODELS: Catalog[ModelEntry] = Catalog(
    "model",
    {
        **sam.ENTRIES,
        **sam2.ENTRIES,
        **sam_med3d.ENTRIES,
        **segvol.ENTRIES,
        **vit.ENTRIES,
        **clip.ENTRIES,
        **swin.ENTRIES,
        **swin_unet.ENTRIES,
        **swin_unetr.ENTRIES,
        **hiformer.ENTRIES,
        **ds_transunet.ENTRIES,
        **transunet.ENTRIES,
        **missformer.ENTRIES,
        **unet.ENTRIES,
        **unet3d.ENTRIES,
        **unetr.ENTRIES,
        **linknet3d.ENTRIES,
        **i3resnet.ENTRIES,
    },
    UnknownModel,
)


def build(name: str, **options: Any) -> Model:
    """Make a model, without weights.

    Args:
        name: one of ``MODELS``; those ending in "-test" are tiny and have no published weights.
        **options: ``dtype`` (compute dtype, float32 or bfloat16) for all; ``image_size`` for models of pictures,
            ``window`` and ``channels`` for models of patches; ``scan_blocks`` for SAM, ViT and CLIP encoders (blocks
            stacked, see ``models.scan``); ``remat`` for the same and for SAM 2 (True, or for SAMs "between": only what
            lies between matrix products is computed again); ``memory`` for SAM 2 (with what follows objects through a
            volume); ``base`` and ``depth`` for the U-Net; ``classes`` for it, other networks trained from scratch
            and models of volumes.

    Returns:
        The model; ``model.init(key)`` gives random parameters, ``weights.load`` published ones. The same name and
        options give the same functions again, so that what is kept for a function serves every run of a process.

    Raises:
        UnknownModel: no model of this name; the nearest is named.
        BadModelOption: an option that the model does not take.
    """
    entry = MODELS[name]
    if unknown := [option for option in options if option not in entry.options]:
        raise BadModelOption(
            f"Model '{name}' has no option {' or '.join(unknown)}; it takes {', '.join(entry.options)}."
        )
    if jnp.dtype(options.get("dtype", jnp.float32)) not in COMPUTE_DTYPES:
        raise BadModelOption(f"Model '{name}' computes in float32 or bfloat16, not {options['dtype']}.")
    try:
        return _built(entry.build, **options)
    except TypeError:  # an option that cannot be hashed
        return entry.build(**options)


@functools.lru_cache(maxsize=64)
def _built(how: Callable[..., Model], **options: Any) -> Model:
    return how(**options)


def published(name: str, tree: Params) -> Params:
    """Parameters of a model, or their shapes -> those that its published weights hold; see ``ModelEntry.fresh``."""
    fresh = MODELS[name].fresh
    return {**tree, "params": {k: v for k, v in tree["params"].items() if k not in fresh}} if fresh else tree


def stack_blocks(params: Params, name: str) -> Params:
    """Parameters of the plain model -> those of ``build(name, scan_blocks=True)``; see ``models.scan``."""
    return scan.stack(params, MODELS[name].group)
