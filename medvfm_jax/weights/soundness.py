"""What every array of every source must be before it is used: floating-point, finite, and alone under its name."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from medvfm_jax.printable import shortened
from medvfm_jax.weights.torch_opcodes import BadCheckpoint


def renamed(state: Mapping[str, Any], rename: Callable[[str], str], where: object) -> dict[str, Any]:
    """{key: value} under other names.  Raises BadCheckpoint if two keys become one, as one of both would be lost."""
    found: dict[str, Any] = {}
    names: dict[str, str] = {}
    for key, value in state.items():
        name = rename(key)
        if name in found:
            raise BadCheckpoint(
                f"{where}: {shortened(names[name])} and {shortened(key)} are both {shortened(name)}; remove one of "
                "them from the file."
            )
        found[name], names[name] = value, key
    return found


def wrong_type(array: Any) -> str | None:
    """What is wrong with the element type of something that has a dtype, or None."""
    dtype = np.dtype(array.dtype)
    if dtype.kind == "f" or dtype == ml_dtypes.bfloat16:
        return None
    return f"holds {dtype.name} where floating-point numbers were expected"


def wrong_values(array: np.ndarray) -> str | None:
    """What is wrong with the numbers of a floating-point array that is to be used as float32, or None."""
    if not np.isfinite(array).all():
        return "holds NaN or infinite values"
    if array.dtype == np.float64 and array.size and np.abs(array).max() > np.finfo(np.float32).max:
        return "holds values too large for float32"
    return None


def unsound(array: np.ndarray) -> str | None:
    """What is wrong with an array, or None."""
    return wrong_type(array) or wrong_values(array)
