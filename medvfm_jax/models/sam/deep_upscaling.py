"""A mask decoder that doubles its map until the logits are as fine as the image (MA-SAM)."""

from dataclasses import replace

from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.grown import grow, sam_of
from medvfm_jax.types import Params


def deep_upscaling(model: Model, params: Params, seed: int = 0) -> tuple[Model, Params]:
    """Replace the upscaling by four of SAM's grid by one to the side of the image; every doubling halves the features.

    SAM's two doublings are kept.  The last layers of the hypernetworks are new, because the features have another
    width.  Where four times the grid is the image already (LiteMedSAM), nothing changes.

    Args:
        model: a SAM without prompts, see ``to_semantic``.
        params: of it; may be traced.
        seed: of the new parameters.

    Returns:
        (model with logits of the image's side, its parameters).

    Raises:
        NotConvertible: another model.

    References:
        Chen et al. 2024, section 3.3, https://arxiv.org/abs/2309.08842
    """
    root = sam_of(model, "semantic", "A decoder with deep upscaling")
    doublings = (root.spec.input_size // root.spec.embedding[0]).bit_length() - 1
    if doublings <= 2:
        return model, params
    spec = replace(root.spec, logits_shape=2**doublings * root.spec.embedding[0])
    return grow(root.clone(spec=spec, doublings=doublings), params, seed)
