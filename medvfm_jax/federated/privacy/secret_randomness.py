"""Randomness that nobody outside a run can repeat: noise and samples whose seed is known protect nobody.

A run draws one `Secret` from the operating system, and everything random in it follows from that by HMAC-SHA256 of a
purpose, so that two purposes, rounds or clients share nothing. What is kept to continue a run is the secret itself, in
files closed to other users.

How strong it is: the secret has 256 bits. A JAX key (threefry2x32) has 64, which is all that algorithm takes, so noise
withstands whoever cannot try 2^64 keys; threefry was made for statistics and nobody has proved it hard to invert.
numpy's generators (PCG64, seeded anew for every purpose) hold 128 bits of seed.
"""

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path

import jax
import numpy as np
from jax import Array

from medvfm_jax.federated.privacy.errors import BadPrivacy

_BYTES = 32


@dataclasses.dataclass(frozen=True, repr=False)
class Secret:
    """256 bits; its ``repr`` does not show them.

    Attributes:
        data: 32 bytes.
    """

    data: bytes

    def __post_init__(self) -> None:
        """Raises BadPrivacy."""
        if len(self.data) != _BYTES:
            raise BadPrivacy(f"the secret of a private run has {_BYTES} bytes, not {len(self.data)}")

    def key(self, *purpose: str | int) -> Array:
        """A typed threefry key of 64 bits for one purpose."""
        words = np.frombuffer(self._derive(purpose)[:8], np.uint32)
        return jax.random.wrap_key_data(words, impl="threefry2x32")

    def generator(self, *purpose: str | int) -> np.random.Generator:
        """A numpy generator for one purpose."""
        return np.random.default_rng(np.frombuffer(self._derive(purpose), np.uint32))

    def _derive(self, purpose: tuple[str | int, ...]) -> bytes:
        return hmac.digest(self.data, json.dumps(purpose).encode(), "sha256")


def draw_secret(dp_seed: int | None = None) -> Secret:
    """A fresh secret from the operating system; with ``dp_seed`` one that anybody who knows the number can make.

    Args:
        dp_seed: None, or a number from which the secret follows, for tests: then it is no secret.

    Returns:
        The secret.
    """
    if dp_seed is None:
        return Secret(secrets.token_bytes(_BYTES))
    return Secret(hashlib.sha256(f"medvfm dp seed {dp_seed}".encode()).digest())


def secret_in(path: Path) -> Secret:
    """The secret in a file, drawn and written if there is none yet.

    Two processes that begin at once get the same one.

    Args:
        path: file, written with mode 0600 if it is not there.

    Returns:
        The secret.

    Raises:
        BadPrivacy: the file holds no secret.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_once(path, secrets.token_bytes(_BYTES))
        found = path.read_bytes()
    except OSError as error:
        raise BadPrivacy(
            f"{path} cannot be used for the secret of the noise ({error.strerror or error})"
        ) from error
    if len(found) != _BYTES:
        raise BadPrivacy(
            f"{path} holds no secret of {_BYTES} bytes; restore it, or delete it to draw another"
        )
    return Secret(found)


def _write_once(path: Path, data: bytes) -> None:
    """Whole or not at all, and never over another process's file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # drawn by another process meanwhile: its secret counts
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
