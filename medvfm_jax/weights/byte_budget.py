"""How many bytes the tensors of one file may declare: no more than lie in it, counted before anything is allocated."""

from collections.abc import Sequence

from medvfm_jax.printable import counted, shortened
from medvfm_jax.weights.torch_opcodes import MAX_DIMENSIONS, BadCheckpoint

LONGEST_KEY = 1000  # characters; the longest parameter name of any model here has about 80


class ByteBudget:
    """The budget of one file.

    file_bytes: its size; no tensor may declare more.  shared: how often over all tensors together may, because
    some formats let several tensors look at the same bytes.
    """

    def __init__(self, where: object, file_bytes: int, shared: int = 1):
        self.where, self.file_bytes = where, file_bytes
        self._left = shared * file_bytes

    def elements(self, key: str, shape: Sequence[int], itemsize: int) -> int:
        """Number of elements of a tensor, taken from the budget.

        Raises BadCheckpoint for a name or a shape that no tensor of this file can have; the product of the axes
        is given up as soon as it is larger than the file.
        """
        if len(key) > LONGEST_KEY:
            raise BadCheckpoint(f"{self.where}: '{shortened(key)}' is longer than the name of any parameter.")
        if len(shape) > MAX_DIMENSIONS:
            raise BadCheckpoint(
                f"{self.where}: {shortened(key)} claims {len(shape)} axes; at most {MAX_DIMENSIONS} are read."
            )
        size = itemsize
        for axis in shape:
            if type(axis) is not int or axis < 0:
                raise BadCheckpoint(f"{self.where}: {shortened(key)} claims an axis of {axis!r:.80}.")
            size *= axis or 1  # numpy multiplies the other axes of an empty array, too
            if size > self.file_bytes:
                raise BadCheckpoint(
                    f"{self.where}: {shortened(key)} claims shape {tuple(shape)}, which is absurdly large for a "
                    f"file of {counted(self.file_bytes, 'byte')}."
                )
        if 0 in shape:
            return 0
        self._left -= size
        if self._left < 0:
            raise BadCheckpoint(
                f"{self.where}: its tensors claim more bytes than the file of {counted(self.file_bytes, 'byte')} holds."
            )
        return size // itemsize
