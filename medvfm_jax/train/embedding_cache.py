"""Embeddings of a frozen encoder, computed once per image and looked up from then on.

An image is known by the digest of its preprocessed pixels, so whatever the loader does to it (resizing, a
flip) is part of the key. Encoding always runs on one image of one static shape: an embedding has the same
bits in whatever batch, order or process it is first asked for, which exact resume relies on.  On disk it is an .npy
file with a digest of its key and its bytes behind it: what was cut off, changed or exchanged is computed again.
"""

import contextlib
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from medvfm_jax import __version__
from medvfm_jax.models.transforms import kinds_of
from medvfm_jax.settings.groups import ModelConfig, Tier
from medvfm_jax.types import Batch

MEMORY_LIMIT = 1 << 30  # bytes of embeddings kept in memory
DISK_RESERVE = 4 << 30  # bytes of free disk the cache never takes
_DIGEST = hashlib.sha256().digest_size
_ABANDONED = (
    3600  # seconds after which a file that is still being written belongs to a process that was killed
)


class EmbeddingCache:
    """(S, S, 3) float32 -> embedding (h, w, c) numpy; encodes what it has not seen.

    encode: one preprocessed image -> its embedding, compiled. fingerprint: of the encoder's weights and
    settings. folder: where embeddings go that do not fit into ``memory_limit`` bytes, None for nowhere (they
    are then encoded again when needed). like: has outputs of the same shape and type and can be traced, where
    ``encode`` cannot be.
    """

    def __init__(
        self,
        encode: Callable[[NDArray], Any],
        fingerprint: str,
        folder: Path | None = None,
        memory_limit: int = MEMORY_LIMIT,
        like: Callable[[NDArray], Any] | None = None,
    ):
        self._like = like or encode
        self._encode, self._memory_limit = encode, memory_limit
        # Other versions and other devices round differently.
        words = (fingerprint, __version__, jax.__version__, jax.default_backend())
        self._prefix = hashlib.sha256("|".join(words).encode()).hexdigest()
        self._folder = None if folder is None else folder / self._prefix[:16]
        self._memory: dict[str, NDArray] = {}
        self._shapes: dict[tuple[int, ...], jax.ShapeDtypeStruct] = {}
        self._used, self._swept = 0, False
        self.encoded = 0  # how often the encoder ran
        self._unwritable = ""  # why embeddings cannot be kept on disk
        self.damaged = 0  # embeddings on disk that were not what had been written, and were computed again

    def __call__(self, image: NDArray) -> NDArray:
        """Embedding of one image."""
        key = self._key(image)
        embedding, new = self._known_or_new(key, image)
        if new:
            self._keep(key, embedding)
        return embedding

    def fresh(self, image: NDArray) -> NDArray:
        """Embedding of one image that somebody else keeps: taken from here if it is here, but not put here."""
        return self._known_or_new(self._key(image), image)[0]

    def _known_or_new(self, key: str, image: NDArray) -> tuple[NDArray, bool]:
        if key in self._memory:
            return self._memory[key], False
        stored = self._read(key, image)
        if stored is not None:
            return stored, False
        self.encoded += 1
        return np.asarray(self._encode(image)), True

    def _key(self, image: NDArray) -> str:
        image = np.ascontiguousarray(image)
        header = f"{self._prefix}|{image.shape}|{image.dtype}".encode()
        return hashlib.sha256(header + image.data.cast("B")).hexdigest()

    def _keep(self, key: str, embedding: NDArray) -> None:
        if self._used + embedding.nbytes <= self._memory_limit:
            self._memory[key] = embedding
            self._used += embedding.nbytes
        elif self._folder is not None and self._has_room(embedding.nbytes):
            self._write(self._folder / f"{key}.npy", embedding)

    def _has_room(self, size: int) -> bool:
        try:
            if not self._swept:
                self._folder.mkdir(parents=True, exist_ok=True)
                for leftover in self._folder.glob("*.tmp"):
                    with contextlib.suppress(OSError):  # another process was faster
                        if time.time() - leftover.stat().st_mtime > _ABANDONED:
                            leftover.unlink()
                self._swept = True
            return shutil.disk_usage(self._folder).free - size > DISK_RESERVE
        except OSError as error:  # a file in the place of the folder, no permission
            self._unwritable = error.strerror or str(error)
            return False

    def _write(self, path: Path, embedding: NDArray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, embedding, allow_pickle=False)
        content = buffer.getvalue()
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content + _digest(path.stem, content))
            os.replace(temporary, path)
        except OSError as error:  # a cache that cannot be written is slower, not wrong
            self._unwritable = error.strerror or str(error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _read(self, key: str, image: NDArray) -> NDArray | None:
        if self._folder is None:
            return None
        path = self._folder / f"{key}.npy"
        try:
            if path.exists() and not path.is_file():  # reading from a pipe would never end
                raise OSError("no file")
            stored = path.read_bytes()
            content = stored[:-_DIGEST]
            if stored[-_DIGEST:] == _digest(key, content):
                embedding = np.load(io.BytesIO(content), allow_pickle=False)
                expected = self._expected(image)
                if (embedding.shape, embedding.dtype) == (expected.shape, expected.dtype):
                    return embedding
        except (FileNotFoundError, NotADirectoryError):  # the latter is said when something is to be written
            return None
        except (OSError, ValueError):
            pass
        self.damaged += 1
        with contextlib.suppress(
            OSError
        ):  # a folder in its place, or no permission: it is then computed every time
            path.unlink(missing_ok=True)
        return None

    def _expected(self, image: NDArray) -> jax.ShapeDtypeStruct:
        """Shape and type of the embedding of an image; traced once per shape."""
        if image.shape not in self._shapes:
            self._shapes[image.shape] = jax.eval_shape(self._like, image)
        return self._shapes[image.shape]

    def describe_damage(self) -> str | None:
        """What was damaged on disk or could not be kept there, in words, None if nothing was."""
        said = []
        if self.damaged:
            what = "1 embedding" if self.damaged == 1 else f"{self.damaged} embeddings"
            said.append(
                f"{what} in {self._folder} had been damaged, or were kept by an older version; computed again"
            )
        if self._unwritable:
            said.append(
                f"embeddings could not be kept in {self._folder} ({self._unwritable}) and were computed anew"
            )
        return "; ".join(said) or None


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + content).digest()


def make_cache(
    encode: Callable[[NDArray], Any],
    fingerprint: str,
    tier: Tier,
    cache_folder: Path,
    like: Callable[[NDArray], Any] | None = None,
) -> EmbeddingCache:
    """Cache for a tier: "memory" and nothing else; "auto" memory, then disk; "disk" every embedding on disk.

    With "device" it is for what ``embedding_bank`` does not hold, such as validation images, and as "memory".
    On disk they outlive the run, below ``cache_folder``/embeddings.  like: see ``EmbeddingCache``.
    """
    folder = None if tier in ("memory", "device") else cache_folder / "embeddings"
    return EmbeddingCache(encode, fingerprint, folder, 0 if tier == "disk" else MEMORY_LIMIT, like)


def encoder_settings(
    fingerprint: str, config: ModelConfig, transform: Mapping[str, Any] | None, runtime: str = ""
) -> str:
    """What an embedding depends on beside the image: weights, model, dtype, and transforms that change the encoder.

    runtime: what encodes, and its file, where it is not JAX.
    """
    changes = [kind for kind in kinds_of(transform) if kind != "prompt_free"]
    return " ".join([fingerprint, config.model, config.dtype, *changes, *([runtime] if runtime else [])])


def embed(batch: Batch, cache: EmbeddingCache) -> Batch:
    """Replace the images (B, S, S, 3) of a batch by their embeddings (B, h, w, c)."""
    return batch._replace(image=np.stack([cache(image) for image in batch.image]))
