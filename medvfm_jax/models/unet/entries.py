"""The U-Net by name."""

from collections.abc import Mapping

from medvfm_jax.models.entry import ModelEntry
from medvfm_jax.models.unet.modules import UNetConfig, build_unet, spec_of

# XLA's CPU backend does 3x3 convolutions many times slower inside a loop, so batches stay whole.
ENTRIES: Mapping[str, ModelEntry] = {
    "unet": ModelEntry(
        "unet",
        spec_of(UNetConfig(classes=2), 256),
        build_unet,
        ("classes", "base", "depth", "image_size", "norm", "groups", "dtype"),
        start="random",
        whole_batches=True,
        source="https://arxiv.org/abs/1505.04597",
        differences="Padded convolutions, instance normalisation and leaky ReLU, as in nnU-Net.",
    ),
}
