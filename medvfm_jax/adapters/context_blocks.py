"""The context blocks of ``models.context`` by name, so that an adapter with one can be written down."""

from medvfm_jax.adapters.context import context
from medvfm_jax.adapters.core import Adapter
from medvfm_jax.adapters.errors import BadAdapterConfig
from medvfm_jax.models.context import BLOCKS


def context_block(block: str, at: str, width: int = 64) -> Adapter:
    """Put a named context block after every matched module; residual and zero at start, see ``context``.

    Args:
        block: "aspp", "pyramid", "fpn" or "cross_scale" (``models.context.BLOCKS``).
        at: regular expression of module paths, full match.
        width: inner channels.

    Returns:
        The adapter.

    Raises:
        BadAdapterConfig: another block, or a width below 1.
    """
    if block not in BLOCKS:
        raise BadAdapterConfig(f"no context block '{block}', known are {', '.join(BLOCKS)}.")
    if width < 1:
        raise BadAdapterConfig(f"context: width must be at least 1, not {width}.")
    config = {"kind": "context", "block": block, "at": at, "width": width}
    return context(lambda: BLOCKS[block](width=width), at, config)
