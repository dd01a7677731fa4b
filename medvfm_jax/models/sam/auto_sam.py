"""SAM that is asked by a network instead of a user: dense prompts predicted from the image (AutoSAM).

``encode`` gives SAM's embedding with the image beside it, every cell with its pixels, and ``decode`` runs the network
and SAM's decoder on them: embeddings of the frozen encoder can be cached while the network trains.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medvfm_jax.models.errors import NotConvertible
from medvfm_jax.models.interpolation import resize
from medvfm_jax.models.model import Model
from medvfm_jax.models.sam.grown import as_kind, grow, sam_of
from medvfm_jax.models.sam.harmonic import HarDNetConfig, MapPredictor
from medvfm_jax.models.sam.prompt_encoder import PromptEncoder
from medvfm_jax.models.sam.prompt_free import MOST_CLASSES
from medvfm_jax.models.sam.root import Sam
from medvfm_jax.types import Params, Prediction, Prompts

SIDE = 512  # of the image that the network sees, unless SAM's is smaller
_OF_TESTS = HarDNetConfig((4, 8), (2, 4, 2), (4, 4, 4), (8, 8, 16), (True, True, False))


class PredictedPrompts(PromptEncoder):
    """SAM's prompt encoder with a network beside it that predicts dense prompts from an image."""

    network: HarDNetConfig = HarDNetConfig()
    objects: int = 1

    def setup(self) -> None:
        """The parts of SAM's prompt encoder, and ``predictor``."""
        super().setup()
        config = replace(self.network, dtype=self.dtype)
        self.predictor = MapPredictor(config, self.grid[0], self.objects * self.dim)

    def predict(self, image: Array) -> Array:
        """Image (s, s, 3) -> dense prompts (objects, h, w, dim), each in (-1, 1)."""
        return rearrange(self.predictor(image), "h w (q c) -> q h w c", q=self.objects)


class AutoSam(Sam):
    """Image (S, S, 3) -> logits (objects + 1, 4h, 4w), the background's zero; SAM's decoder is that of promptable SAM.

    side: of the image for the network, a multiple of the grid's.  objects: predicted prompts, one for each class.
    """

    network: HarDNetConfig = HarDNetConfig()
    side: int = SIDE
    objects: int = 1

    def new_prompt_encoder(self, dim: int, grid: tuple[int, int]) -> PromptEncoder:
        """With the network."""
        shape = {"dtype": self.dtype, "network": self.network, "objects": self.objects}
        return PredictedPrompts(dim, self.spec.input_size, grid, **shape)

    def encode(self, image: Array) -> Array:
        """Image (S, S, 3) -> (h, w, c + 3 n), the embedding and the n pixels of the network's image in each cell."""
        embedding = self.image_encoder(image)
        small = image if image.shape[0] == self.side else resize(image, (self.side, self.side))
        cells = rearrange(small, "(h p) (w q) c -> h w (p q c)", h=embedding.shape[0], w=embedding.shape[1])
        return jnp.concatenate([embedding, cells.astype(embedding.dtype)], axis=-1)

    def decode(self, embedding: Array, prompts: Prompts | None = None, multimask: bool = False) -> Prediction:
        """What ``encode`` gave -> logits (objects + 1, 4h, 4w); prompts of a user are ignored."""
        if self.is_initializing():
            self.prompt_encoder(prompts)  # keeps the parameters of SAM, which an export needs
        dim = self.spec.embedding[-1]
        cells = embedding[..., dim:]
        p = self.side // embedding.shape[0]
        image = rearrange(cells, "h w (p q c) -> (h p) (w q) c", p=p, q=p)
        dense = self.prompt_encoder.predict(image)
        nothing = jnp.zeros((self.objects, 0, dim), self.dtype)
        positions = self.prompt_encoder.image_positions()
        logits, _ = self.mask_decoder(embedding[..., :dim], positions, nothing, dense)
        return Prediction(jnp.concatenate([jnp.zeros_like(logits[:1, 0]), logits[:, 0]]))


def to_auto_sam(model: Model, params: Params, classes: int, seed: int = 0) -> tuple[Model, Params]:
    """Put a network in the place of the user: HarDNet-85 and a small decoder predict one dense prompt per class.

    Args:
        model: a promptable SAM.
        params: of it; may be traced.
        classes: outputs, background included; its logits are zero, so that with two classes the other one's
            probability is the sigmoid of SAM's mask.
        seed: of the network.

    Returns:
        (semantic model, its parameters).

    Raises:
        NotConvertible: another model, fewer than two classes or too many, or a grid that does not divide the image.

    References:
        Shaharabany et al. 2023, https://arxiv.org/abs/2306.06370; HarDNet: Chao et al. 2019,
        https://arxiv.org/abs/1909.00948
    """
    root = sam_of(model, "promptable", "AutoSAM")
    if type(classes) is not int or not 2 <= classes <= MOST_CLASSES:
        raise NotConvertible(f"AutoSAM needs from 2 to {MOST_CLASSES} classes, not {classes!r:.80}.")
    grid, tiny = root.spec.embedding[0], root.spec.name.endswith("-test")
    side = max(1, min(SIDE, root.spec.input_size) // grid) * grid
    facts: dict[str, Any] = {"network": _OF_TESTS} if tiny else {}
    new = as_kind(AutoSam, root, side=side, objects=classes - 1, **facts)
    packed = (*root.spec.embedding[:2], root.spec.embedding[2] + 3 * (side // grid) ** 2)
    return grow(new, params, seed, task="semantic", classes=classes, embedding=packed)
