"""Messages on disk: written whole or not at all, readable by their owner only."""

from pathlib import Path

from medvfm_jax.federated.network.messages import HEADER_LIMIT, OVERHEAD, BadMessage, Message, decode
from medvfm_jax.images.writing import write_atomically


def write_message(path: Path, data: bytes) -> None:
    """Replace a file in one step; it and its folder, which is made, are closed to other users.  Raises MedvfmError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, data, 0o600)


def read_message(path: Path, payload_limit: int) -> Message | None:
    """A stored message, or None if there is no such file; its size is looked at before it is read.

    Raises BadMessage for a file that is no such message.
    """
    try:
        size = path.stat().st_size
        if size > OVERHEAD + HEADER_LIMIT + payload_limit:
            raise BadMessage(f"{path} has {size} bytes, more than such a file can have.")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadMessage(f"{path} cannot be read ({error.strerror or error}).") from error
    try:
        return decode(data, payload_limit)
    except BadMessage as error:
        raise BadMessage(f"{path}: {error}") from error
