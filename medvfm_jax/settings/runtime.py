"""What computes image embeddings: JAX, or another runtime on the CPU."""

from collections.abc import Mapping
from typing import Any, Literal

# "-int8": products in 8 bits. Where an encoder is trained or differentiated, JAX alone can run it.
RuntimeName = Literal["jax", "onnxruntime", "onnxruntime-int8", "litert", "litert-int8"]


def described(record: Mapping[str, Any] | None) -> str:
    """What made embeddings in a few words, "" for JAX.

    Args:
        record: of a ``FrozenEncoder``, as scores hold it; None for JAX.

    Returns:
        For example "encoder by onnxruntime, 8 bits".
    """
    return f"encoder by {record['name']}, {record['bits']} bits" if record else ""
