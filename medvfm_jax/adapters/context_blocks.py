"""The context blocks of ``models.context`` by name, so that an adapter with one can be written down."""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn

from medvfm_jax.adapters.context import context
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.catalog import Catalog
from medvfm_jax.models.context.aspp import ASPP
from medvfm_jax.models.context.bifpn import BiFPN
from medvfm_jax.models.context.context_bridge import ContextBridge
from medvfm_jax.models.context.cross_scale_attention import CrossScaleAttention
from medvfm_jax.models.context.dilated import DilatedStack
from medvfm_jax.models.context.double_level_fusion import DoubleLevelFusion
from medvfm_jax.models.context.feature_pyramid import FPNNeck
from medvfm_jax.models.context.interactive_fusion import InteractiveFusion
from medvfm_jax.models.context.large_kernel import LargeKernel
from medvfm_jax.models.context.mix_ffn import MixFFN
from medvfm_jax.models.context.pyramid_pooling import PyramidPooling
from medvfm_jax.models.context.token_aggregation import TokenAggregation


class Block(NamedTuple):
    """A context block. make: (width=...) -> module; pyramid: it can read several maps, see ``context``."""

    make: Callable[..., nn.Module]
    description: str
    pyramid: bool = False


BLOCKS: Catalog[Block] = Catalog(
    "context block",
    {
        "aspp": Block(ASPP, "dilated 3x3 convolutions side by side and the mean (DeepLabv3)"),
        "pyramid": Block(PyramidPooling, "means over 1, 4, 9 and 36 regions (PSPNet)"),
        "fpn": Block(FPNNeck, "a pyramid merged from coarse to fine (FPN)", pyramid=True),
        "bifpn": Block(
            BiFPN, "a pyramid merged down and up with learned weights (EfficientDet)", pyramid=True
        ),
        "dilated": Block(
            DilatedStack, "3x3 convolutions with growing dilation, 67 positions wide (Yu and Koltun)"
        ),
        "large_kernel": Block(LargeKernel, "depthwise 13x13 convolution (RepLKNet)"),
        "cross_scale": Block(CrossScaleAttention, "attention to tokens of several patch sizes (CrossFormer)"),
        "interactive": Block(
            InteractiveFusion, "two scales attend to each other's mean (DS-TransUNet)", pyramid=True
        ),
        "double_level": Block(
            DoubleLevelFusion, "class tokens of two scales attend to the other scale (HiFormer)", pyramid=True
        ),
        "mix_ffn": Block(
            MixFFN, "enhanced mix-FFN: perceptron with a depthwise 3x3 convolution (MISSFormer)"
        ),
        "bridge": Block(ContextBridge, "attention over the tokens of all scales (MISSFormer)", pyramid=True),
        "aggregation": Block(
            TokenAggregation,
            "features of several encoder blocks, position by position (MedDINOv3)",
            pyramid=True,
        ),
    },
    BadAdapterConfig,
)


def context_block(block: str, at: str, width: int = 64, levels: str | None = None) -> Adapter:
    """Put a named context block after every matched module; residual and zero at start, see ``context``.

    Args:
        block: "aspp", "pyramid", "fpn", "bifpn", "dilated", "large_kernel", "cross_scale", "interactive",
            "double_level", "mix_ffn", "bridge" or "aggregation" (``BLOCKS``).
        at: regular expression of module paths, full match.
        width: inner channels.
        levels: regular expression of paths of modules whose maps the block reads beside that of the matched one, for
            those that take a pyramid; the others leave it unread. None: the matched map alone, from which the block
            makes coarser ones.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: another block, or a width below 1.
    """
    entry = BLOCKS[block]
    if width < 1:
        raise BadAdapterConfig(f"context: width must be at least 1, not {width}.")
    config = {"kind": "context", "block": block, "at": at, "width": width}
    if levels is not None:
        config["levels"] = levels
    return context(lambda: entry.make(width=width), at, config, levels if entry.pyramid else None)
