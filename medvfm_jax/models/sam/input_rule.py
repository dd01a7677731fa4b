"""SAM with the input of a descendant: another image size, other intensities, other padding of its windows."""

from dataclasses import replace
from typing import get_args

from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.encoder import SamEncoder
from medvfm_jax.models.sam.root import Sam, as_model
from medvfm_jax.types import LARGEST_SIDE, ModelSpec, Normalise, Resize


def sized(spec: ModelSpec, size: int, reduction: int, cells: int = 1) -> ModelSpec:
    """The spec at another image size, with so many cells of the embedding per ``reduction`` pixels of a side.

    Raises BadModelOption.
    """
    if type(size) is not int or not reduction <= size <= LARGEST_SIDE or size % reduction:
        raise BadModelOption(
            f"{spec.name} needs an image_size that is a positive multiple of {reduction} and at most "
            f"{LARGEST_SIDE}, not {size!r:.40}."
        )
    grid = cells * size // reduction
    return replace(spec, input_shape=size, embedding=(grid, grid, spec.embedding[-1]), logits_shape=4 * grid)


def with_input(
    model: Model,
    image_size: int | None = None,
    normalise: Normalise | None = None,
    resize: Resize | None = None,
    pad_before_norm: bool = False,
) -> Model:
    """The same weights behind another input; what is None stays.

    image_size: side in pixels.  normalise, resize: see ``ModelSpec``.  pad_before_norm: windows that reach beyond the
    map are filled before the layer norm, so with its bias, instead of after it with zeros.
    Raises BadModelOption for what the model, or any model, does not take.
    """
    root = model.root
    if not isinstance(root, Sam):
        raise BadModelOption(f"{model.spec.name} is no SAM of pictures, so its input cannot be changed.")
    spec, encoder = root.spec, root.encoder
    if image_size is not None:
        spec = sized(spec, image_size, encoder.config.reduction)
    for name, value, kind in (("normalise", normalise, Normalise), ("resize", resize, Resize)):
        if value is None:
            continue
        if value not in get_args(kind) or value == "none":
            raise BadModelOption(
                f"{name} of an input is one of {', '.join(get_args(kind))}, not {value!r:.40}."
            )
        spec = replace(spec, **{name: value})
    if pad_before_norm:
        if not isinstance(encoder, SamEncoder):
            raise BadModelOption(f"{spec.name} has no windows that could be padded before their norm.")
        encoder = encoder.clone(config=replace(encoder.config, pad_before_norm=True))
    return as_model(root.clone(encoder=encoder, spec=spec))
