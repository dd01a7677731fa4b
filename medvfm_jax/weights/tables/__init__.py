"""Port tables, one file per family of checkpoints, and how to tell which family a state dict belongs to."""

from collections.abc import Iterable

from medvfm_jax.weights.port import PortTable
from medvfm_jax.weights.tables.hf import HF_DINOV2, HF_DINOV2_5, HF_SAM, HF_VIT, HF_VIT_5
from medvfm_jax.weights.tables.sam import SAM
from medvfm_jax.weights.tables.tiny_vit import TINY_VIT_SAM
from medvfm_jax.weights.tables.unetr import UNETR
from medvfm_jax.weights.tables.vit import VIT

TABLES: tuple[PortTable, ...] = (
    SAM, TINY_VIT_SAM, VIT, UNETR, HF_SAM, HF_VIT, HF_VIT_5, HF_DINOV2, HF_DINOV2_5,
)  # fmt: skip


def choose(keys: Iterable[str]) -> PortTable:
    """The table that knows most of these source keys; the strict check comes when it is used.

    Args:
        keys: of a state dict.

    Returns:
        One of `TABLES`.
    """
    keys = list(keys)
    return max(TABLES, key=lambda table: table.matches(keys))


def own_table(paths: Iterable[str]) -> PortTable:
    """The table of the original release for a model with these parameter paths.

    Args:
        paths: "image_encoder/pos_embed", ...

    Returns:
        One of `TABLES`.
    """
    paths = list(paths)
    return max((SAM, TINY_VIT_SAM, VIT, UNETR), key=lambda table: sum(table.has_row(path) for path in paths))


__all__ = ["TABLES", "choose", "own_table"]
