"""A promptable model of a convolution, a block of attention and a perceptron, as small as can be."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.compress import Calibration, Subject
from medvfm_jax.models.convolution import PatchConv
from medvfm_jax.models.layers import MlpBlock
from medvfm_jax.models.model import Model
from medvfm_jax.models.vit.modules import Attention, ViTConfig
from medvfm_jax.types import Batch, ModelSpec, Prediction, Prompts

SIDE, DIM = 8, 8
CONFIG = ViTConfig(DIM, 1, 2)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, image):
        x = PatchConv(DIM, (2, 2), 2, name="patch")(image)
        x = nn.Conv(DIM, (3, 3), padding=1, name="conv")(x).reshape(-1, DIM)
        x = x + Attention(CONFIG, name="attn")(x)
        return x + MlpBlock(12, names=("fc1", "fc2"), name="mlp")(x)


class Root(nn.Module):
    def setup(self):
        self.image_encoder, self.mask_decoder = Encoder(), nn.Dense(1)

    def __call__(self, image, prompts):
        side = SIDE // 2
        logits = self.mask_decoder(self.image_encoder(image)).reshape(1, 1, side, side)
        logits = jnp.broadcast_to(logits, (len(prompts.points), 1, side, side))
        return Prediction(logits, logits.mean((2, 3)))


def apply(params, image, prompts=None, multimask=False, **kw):
    return Root().apply(params, image, prompts, **kw)


SPEC = ModelSpec(
    name="toy", input_shape=SIDE, embedding=(16, 1, DIM), logits_shape=SIDE // 2, resize="stretch",
    normalise="unit", mean=(0, 0, 0), std=(1, 1, 1), prompts=("box",), task="promptable", licence="none",
)  # fmt: skip
MODEL = Model(apply, apply, apply, lambda key: None, SPEC)
BOX = Prompts(np.float32([[[1, 1], [6, 6]]]), np.int32([[2, 3]]))


def subject(seed=0):
    shapes = jax.eval_shape(Root().init, jax.random.key(0), jnp.zeros((SIDE, SIDE, 3)), BOX)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) / 2, shapes)
    return Subject("toy", MODEL, params)


def calibration(images=2, seed=3):
    rng = np.random.default_rng(seed)
    batches = [
        Batch(
            rng.uniform(size=(1, SIDE, SIDE, 3)).astype(np.float32),
            jax.tree.map(lambda leaf: leaf[None], BOX),
            (rng.uniform(size=(1, 1, SIDE // 2, SIDE // 2)) > 0.5).astype(np.float32),
            np.ones((1, 1), np.float32),
        )
        for _ in range(images)
    ]
    return Calibration(batches)
