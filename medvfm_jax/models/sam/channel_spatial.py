"""The adapter of SAM-Med2D's blocks: a gate for every channel, then detail of half the resolution, on whole maps.

Source: Cheng et al. 2023, "SAM-Med2D", section 3.2; parameters and order of operations are those of the release
(segment_anything/modeling/image_encoder.py, ``Adapter_Layer``).
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from medvfm_jax.models.convolution_gradient import Conv
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.layers import layer_norm


class ChannelSpatialAdapter(nn.Module):
    """x (h, w, c) -> layer norm of x + s (h, w, c), with s = relu(enlarged(relu(halved(g * x)))).

    g = sigmoid(relu(mean(x) @ channel_0) @ channel_2) (c,); ``spatial_0`` halves by a 3 x 3 convolution and
    ``spatial_2`` enlarges by a transposed 4 x 4 one; h and w must be even.  None of the layers has a bias but the norm.
    ratio: of the gate's hidden width.
    """

    ratio: float = 0.25
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h, w, dim = x.shape
        if h % 2 or w % 2:
            raise BadModelOption(
                f"SAM-Med2D's adapters halve and double a map, and {h} x {w} is odd: take an image_size with an even "
                "number of patches."
            )
        options = {"use_bias": False, "dtype": self.dtype}
        hidden = nn.relu(nn.Dense(max(1, int(self.ratio * dim)), **options, name="channel_0")(x.mean((0, 1))))
        gated = nn.sigmoid(nn.Dense(dim, **options, name="channel_2")(hidden)) * x
        half = Conv(dim, (3, 3), 2, ((1, 1), (1, 1)), **options, name="spatial_0")(gated)
        full = nn.ConvTranspose(dim, (4, 4), (2, 2), "SAME", **options, name="spatial_2")(nn.relu(half))
        return layer_norm("norm", 1e-5, self.dtype)(x + nn.relu(full))
