"""Multi-scale context blocks: Linen modules that map a feature map (h, w, c), or a pyramid, to one map (h, w, c).

They are written to be added to a frozen encoder's output: ``x + block(x)``.  With ``zero_init`` (the default) the last
projection starts at zero, so the sum starts as the identity.  ``width`` is the number of channels inside a block and
governs how many parameters are trained.  Those that take a pyramid take a list of maps, of any sizes and channels, the
last of them the map that they change; given one map alone they make its coarser scales themselves.  The originals
normalise with batch statistics; these use layer normalisation over channels, so that one image gives what a batch
gives.
"""

from medvfm_jax.models.context.aspp import ASPP
from medvfm_jax.models.context.bifpn import BiFPN
from medvfm_jax.models.context.context_bridge import ContextBridge
from medvfm_jax.models.context.cross_scale_attention import CrossScaleAttention
from medvfm_jax.models.context.dilated import DilatedStack
from medvfm_jax.models.context.double_level_fusion import DoubleLevelFusion
from medvfm_jax.models.context.errors import MapTooSmall
from medvfm_jax.models.context.feature_pyramid import FeaturePyramid, FPNNeck
from medvfm_jax.models.context.interactive_fusion import InteractiveFusion
from medvfm_jax.models.context.large_kernel import LargeKernel
from medvfm_jax.models.context.mix_ffn import MixFFN
from medvfm_jax.models.context.pyramid_pooling import PyramidPooling
from medvfm_jax.models.context.scales import enlarge, region_means
from medvfm_jax.models.context.token_aggregation import TokenAggregation
from medvfm_jax.models.context.units import ConvUnit, LastProjection

__all__ = [
    "ASPP",
    "BiFPN",
    "ContextBridge",
    "ConvUnit",
    "CrossScaleAttention",
    "DilatedStack",
    "DoubleLevelFusion",
    "FPNNeck",
    "FeaturePyramid",
    "InteractiveFusion",
    "LargeKernel",
    "LastProjection",
    "MapTooSmall",
    "MixFFN",
    "PyramidPooling",
    "TokenAggregation",
    "enlarge",
    "region_means",
]
