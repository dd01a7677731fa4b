"""A smaller network's first parameters, cut out of a larger one of the same family.

Layers of the same path are taken over; where the student is narrower, the leading channels are kept.
TinyViT's fused projections are head-major (head, q | k | v), so that leading channels are whole heads. A
convolution or dense layer that loses input channels is scaled up so that its output keeps its variance.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.types import MedvfmError


class NothingInherited(MedvfmError):
    """Teacher and student share no parameter path."""


class Inherited(NamedTuple):
    """The student's parameters, and how many arrays came from the teacher.

    Attributes:
        params: nested dict like the student's.
        whole: arrays copied whole.
        cut: arrays cut to the student's shape.
        initial: arrays that keep their initial value.
    """

    params: Any
    whole: int
    cut: int
    initial: int


def inherit(teacher: Any, student: Any) -> Inherited:
    """Start a student from the leading entries of a teacher's arrays of the same path.

    An array is cut when the teacher's has the same rank and no axis shorter than the student's; a cut kernel is
    multiplied by sqrt(inputs before / inputs after). Everything else keeps the student's initial value.

    Args:
        teacher: nested dict of arrays.
        student: freshly initialised parameters.

    Returns:
        Parameters with the student's shapes and dtypes, and counts.

    Raises:
        NothingInherited: no array of the teacher fits one of the student.
    """
    leaves = jax.tree_util.tree_leaves_with_path(teacher)
    of_teacher = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    tally = {"whole": 0, "cut": 0, "initial": 0}

    def choose(path: Any, own: Any) -> Any:
        source = of_teacher.get(jax.tree_util.keystr(path))
        own = jnp.asarray(own)
        if source is None or source.ndim != own.ndim or np.any(np.less(source.shape, own.shape)):
            tally["initial"] += 1
            return own
        source = jnp.asarray(source)
        if source.shape == own.shape:
            tally["whole"] += 1
            return source.astype(own.dtype)
        tally["cut"] += 1
        part = source[tuple(slice(0, n) for n in own.shape)]
        is_kernel = getattr(path[-1], "key", None) == "kernel" and own.ndim >= 2
        lost_inputs = source.shape[-2] / own.shape[-2] if is_kernel else 1.0
        return (part * np.sqrt(lost_inputs)).astype(own.dtype)

    params = jax.tree_util.tree_map_with_path(choose, student)
    if not tally["whole"] + tally["cut"]:
        raise NothingInherited(
            f"the teacher's {len(of_teacher)} arrays and the student's {tally['initial']} share no path "
            "and rank; both must be of one family"
        )
    return Inherited(params, **tally)
