"""How alike images and texts are: embeddings of both, and their scaled cosines."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medvfm_jax.models.clip.root import Clip
from medvfm_jax.models.model import Model
from medvfm_jax.types import MedvfmError, Params


class BadTokens(MedvfmError, ValueError):
    """Token ids that the model's text tower cannot read, or a model without one."""


def embed_image(model: Model, params: Params, image: Array, **kw: Any) -> Array:
    """Embed an image where texts can be compared with it.

    Args:
        model: a CLIP, ``models.build("clip-vit-b16")``.
        params: its parameters.
        image: (S, S, 3), preprocessed as ``model.spec`` says (``images.preprocess``).
        **kw: for Linen's ``apply``.

    Returns:
        (e,) float32 of length 1: the projected class token.

    Raises:
        BadTokens: a model that is no CLIP.

    References:
        Radford et al. 2021, figure 3, https://arxiv.org/abs/2103.00020
    """
    return _root(model).apply(params, image, **{"method": "embed_image", **kw})


def embed_text(model: Model, params: Params, tokens: Array, **kw: Any) -> Array:
    """Embed a text where images can be compared with it.

    Args:
        model: a CLIP.
        params: its parameters.
        tokens: integers (n,), n at most the model's context (77): start, text, end; what stands behind the end
            changes nothing.
        **kw: for Linen's ``apply``.

    Returns:
        (e,) float32 of length 1: the projected features of the end-of-text token, which has the highest id.

    Raises:
        BadTokens: a model that is no CLIP; no ids, too many of them, or ids outside the vocabulary.

    References:
        Radford et al. 2021, section 2.4, https://arxiv.org/abs/2103.00020
    """
    _check(_root(model), tokens, 1)
    return _root(model).apply(params, jnp.asarray(tokens), **{"method": "embed_text", **kw})


def similarity(model: Model, params: Params, images: Array, token_ids: Array) -> Array:
    """Compare every image with every text; a softmax over the texts classifies images without training.

    Ids are made by CLIP's own tokenizer, which is no part of this package: with the library ``tokenizers`` and the
    ``tokenizer.json`` beside the weights, ``Tokenizer.from_file(path).encode(text).ids``, start and end included; fill
    shorter texts up to the longest with the id of the end.

    Examples:
        >>> import jax
        >>> from medvfm_jax import models
        >>> from medvfm_jax.models.clip import similarity
        >>> model = models.build("clip-tiny-test")
        >>> params = model.init(jax.random.key(0))
        >>> images = jax.random.normal(jax.random.key(1), (2, *model.spec.input_shape))
        >>> texts = [[38, 4, 8, 39], [38, 5, 39, 39], [38, 6, 39, 39]]  # 38 starts a text, 39 ends it
        >>> jax.nn.softmax(similarity(model, params, images, texts)).shape
        (2, 3)

    Args:
        model: a CLIP, ``models.build("clip-vit-b16")``; ``weights.load`` gives it with parameters.
        params: its parameters.
        images: (B, S, S, 3), preprocessed as ``model.spec`` says.
        token_ids: integers (T, n), n at most the model's context (77).

    Returns:
        (B, T) float32: cosine of the embeddings times the learned scale, as CLIP's ``logits_per_image``.

    Raises:
        BadTokens: as ``embed_text``; arrays of another number of axes.

    References:
        Radford et al. 2021, section 3.1.2 and figure 3, https://arxiv.org/abs/2103.00020
    """
    root = _root(model)
    _check(root, token_ids, 2)
    if np.ndim(images) != 4:
        raise BadTokens(
            f"Images are a batch (B, S, S, 3), not of shape {np.shape(images)}; write images[None] for one."
        )
    image = jax.vmap(lambda one: root.apply(params, one, method="embed_image"))(jnp.asarray(images))
    text = jax.vmap(lambda one: root.apply(params, one, method="embed_text"))(jnp.asarray(token_ids))
    return root.apply(params, image[:, None], text[None], method="compare")


def _root(model: Model) -> Clip:
    if not isinstance(model.root, Clip):
        raise BadTokens(f"Model '{model.spec.name}' has no text tower; take a CLIP, like clip-vit-b16.")
    return model.root


def _check(root: Clip, tokens: Any, axes: int) -> None:
    """Raise BadTokens; ids that are traced cannot be looked at."""
    config, shape = root.config.text, np.shape(tokens)
    if len(shape) != axes or not 1 <= shape[-1] <= config.context:
        wanted = "(texts, ids)" if axes == 2 else "(ids,)"
        raise BadTokens(
            f"Token ids have shape {wanted} with 1 to {config.context} ids per text, not {shape}; shorten the text, or "
            "fill texts up to the same length."
        )
    if isinstance(tokens, jax.core.Tracer):
        return
    ids = np.asarray(tokens)
    if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= config.vocabulary:
        raise BadTokens(
            f"Token ids are whole numbers from 0 to {config.vocabulary - 1}, the vocabulary of the model; these are "
            f"{ids.dtype} from {ids.min()} to {ids.max()}: make them with the tokenizer of the weights."
        )
