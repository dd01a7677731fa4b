"""Embeddings of a frozen encoder as one array on the device, of which a step is told the rows.

Every example is encoded once, before the first step; from then on a batch has the number of a row in the place of an
image, so neither pixels nor embeddings cross to the device again.  Examples that the device has no room for wait in
a file that is mapped into memory and has no name any more: a batch then carries their embeddings, and still no image
is resized or looked up by its digest.
"""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from medvfm_jax.data import Dataset
from medvfm_jax.data.examples import Example, example_image
from medvfm_jax.printable import counted
from medvfm_jax.settings.groups import EmbeddingsDtype
from medvfm_jax.train.embedding_cache import DISK_RESERVE, EmbeddingCache
from medvfm_jax.train.step import LossFn
from medvfm_jax.types import Batch, Delta, MedvfmError, ModelSpec, Params

SHARE = 0.5  # of the free memory of a device that a bank may take; the rest is for the step
BANK = "embedding_bank"  # its name among the frozen parameters that a step of `adapt` is given


class NoRoom(MedvfmError, OSError):
    """Embeddings fit neither on the device nor on the disk."""


class EmbeddingBank(NamedTuple):
    """Embeddings of examples.

    Attributes:
        array: (n, ...) on the device; None where they are in a file.
        mapped: (n, ...) of the file; None where they are on the device.
        rows: id of an example -> its row.
        dtype: of embeddings as the encoder gives them, which a model is given whatever the bank keeps.
    """

    array: Array | None
    mapped: NDArray | None
    rows: dict[str, int]
    dtype: np.dtype

    def image(self, example: Example) -> NDArray:
        """What a batch has in the place of the image of an example: its row, or of a file the embedding itself.

        For ``data.make_loader`` (``image_fn``).
        """
        row = self.rows[example.id]
        return np.asarray(row, np.int32) if self.mapped is None else self.mapped[row].astype(self.dtype)

    def describe(self) -> str:
        """Where they are, in words for a user."""
        kept = self.mapped if self.array is None else self.array
        held = f"{counted(len(self.rows), 'embedding')} ({kept.nbytes / 1e6:.3g} MB, {kept.dtype})"
        if self.array is None:
            return f"{held} do not fit on the device with the step: they wait in a mapped file, and batches carry them"
        return f"{held} held on the device: batches carry row numbers"


def take(array: Array, batch: Batch, dtype: np.dtype) -> Batch:
    """A batch with numbers of rows of ``array`` in the place of images -> with embeddings of this type."""
    return batch._replace(image=jnp.take(array, batch.image, axis=0, mode="clip").astype(dtype))


def loss_from_bank(loss: LossFn, dtype: np.dtype) -> LossFn:
    """The loss of batches of row numbers; the frozen parameters have the bank's array under the name ``BANK``."""

    def looked_up(params: Params, delta: Delta, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        rest = {name: value for name, value in params.items() if name != BANK}
        return loss(rest, delta, take(params[BANK], batch, dtype), key)

    return looked_up


def input_of(dataset: Dataset, example: Example, spec: ModelSpec) -> NDArray[np.float32]:
    """What the model sees of an example: without augmentation, as a loader gives it."""
    return example_image(dataset, example, spec)[0]


def fill_bank(
    examples: Sequence[Example],
    image: Callable[[Example], NDArray],
    cache: EmbeddingCache,
    dtype: EmbeddingsDtype,
    folder: Path,
    *,
    room: int | None = None,
    track: Callable[[Sequence[Example]], Iterable[Example]] = iter,
) -> EmbeddingBank:
    """Encode examples, each once.

    Args:
        examples: what is encoded; an id that comes twice is one example.
        image: example -> model input.
        cache: encodes, or knows embeddings of earlier runs; keeps nothing of these.
        dtype: what numbers are kept in; "bfloat16" halves the memory and rounds to 8 bits of mantissa.
        folder: below which a file is put if the device has no room.
        room: bytes that may be taken on the device; None: ``SHARE`` of what is free there.
        track: shows how many examples are done.

    Returns:
        The bank; its values are those of ``cache`` bit by bit with "float32".

    Raises:
        NoRoom: neither the device nor the disk can hold them, or there are none.
        MedvfmError: an example cannot be read.
    """
    unique = list({example.id: example for example in examples}.values())
    if not unique:
        raise NoRoom("There is no example to encode: give training images.")
    embeddings = (cache.fresh(image(example)) for example in track(unique))
    first = next(embeddings)
    rows = {example.id: row for row, example in enumerate(unique)}
    shape, kept = (len(rows), *first.shape), jnp.dtype(dtype)
    embeddings = itertools.chain([first], embeddings)
    size = int(np.prod(shape, dtype=np.int64)) * kept.itemsize
    if size > (free_bytes() * SHARE if room is None else room):
        mapped = _mapped(folder, shape, kept, size)
        for row, embedding in enumerate(embeddings):
            mapped[row] = embedding.astype(kept)
        return EmbeddingBank(None, mapped, rows, first.dtype)
    array = jnp.zeros(shape, kept)
    for row, embedding in enumerate(embeddings):
        array = _with_row(array, row, embedding)
    return EmbeddingBank(array, None, rows, first.dtype)


def free_bytes() -> int:
    """Free memory of the default device; of the host where the device does not say."""
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return max(stats["bytes_limit"] - stats.get("bytes_in_use", 0), 0)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@partial(jax.jit, donate_argnums=0)
def _with_row(array: Array, row: int, embedding: Array) -> Array:
    return array.at[row].set(embedding.astype(array.dtype))


def _mapped(folder: Path, shape: tuple[int, ...], dtype: np.dtype, size: int) -> NDArray:
    """A mapped file without a name, which is gone when nobody maps it any more."""
    advice = "let --embeddings be auto, which encodes again what it cannot keep, or try --embeddings-dtype bfloat16."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free - size < DISK_RESERVE:
            raise NoRoom(
                f"The {size / 1e9:.3g} GB of embeddings fit neither on the device nor below {folder} ("
                f"{DISK_RESERVE >> 30} GiB of the disk stay free): {advice}"
            )
        with tempfile.TemporaryFile(dir=folder) as file:
            return np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        if isinstance(error, NoRoom):
            raise
        raise NoRoom(
            f"Embeddings cannot be kept below {folder} ({error.strerror or error}): {advice}"
        ) from error
