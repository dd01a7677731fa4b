"""The context blocks of ``models.context`` by name, so that an adapter with one can be written down."""

from flax import linen as nn

from medvfm_jax.adapters.context import context
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.catalog import Catalog
from medvfm_jax.models.context import ASPP, CrossScaleAttention, FPNNeck, PyramidPooling

BLOCKS: Catalog[type[nn.Module]] = Catalog(
    "context block",
    {"aspp": ASPP, "pyramid": PyramidPooling, "fpn": FPNNeck, "cross_scale": CrossScaleAttention},
    BadAdapterConfig,
)


def context_block(block: str, at: str, width: int = 64) -> Adapter:
    """Put a named context block after every matched module; residual and zero at start, see ``context``.

    Args:
        block: "aspp", "pyramid", "fpn" or "cross_scale" (``BLOCKS``).
        at: regular expression of module paths, full match.
        width: inner channels.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: another block, or a width below 1.
    """
    module = BLOCKS[block]
    if width < 1:
        raise BadAdapterConfig(f"context: width must be at least 1, not {width}.")
    config = {"kind": "context", "block": block, "at": at, "width": width}
    return context(lambda: module(width=width), at, config)
