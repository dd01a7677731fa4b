"""The one place where what a library raises over the bytes of a file becomes this project's own error."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvfm_jax.images.image import BadImage
from medvfm_jax.types import MedvfmError

_LONGEST_REASON = 120

SILENT = logging.getLogger(__name__)
for _name in (__name__, "tifffile", "pydicom"):
    # What they log about a damaged file is raised here as well; programs that want it add a handler.
    logging.getLogger(_name).addHandler(logging.NullHandler())
SILENT.propagate = False  # a handler of the root, which absl sets up, would print what nibabel repairs


@contextmanager
def decoding(path: Path, kind: str) -> Iterator[None]:
    """Within this block Pillow, nibabel, pydicom, tifffile or numpy reads ``path``, a ``kind`` ("PNG file").

    Whatever they raise becomes BadImage, with what they raised as its cause: decoders report damage with
    nearly every type of exception there is. So only calls of a decoder belong into the block: a mistake in
    our own code must stay visible as what it is. Warnings of decoders are about what is checked here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MedvfmError:
        raise
    except OSError as error:
        if error.errno is not None:  # the file system's, not the decoder's
            raise unreadable(path, error) from error
        raise _damaged(path, kind, error) from error
    except Exception as error:
        raise _damaged(path, kind, error) from error


def unreadable(path: Path, error: OSError | ValueError) -> BadImage:
    """The error for a file that the operating system does not give: missing, forbidden, its name too long."""
    reason = getattr(error, "strerror", None) or error
    shown = str(path) if len(str(path)) < 200 else f"{str(path)[:100]}..."
    return BadImage(f"{shown} cannot be read ({reason}); check the name.")


def damaged(path: Path, kind: str, reason: str) -> BadImage:
    """The error for bytes that are no ``kind``, or no longer."""
    return BadImage(f"{path} is truncated, damaged or no {kind} ({reason}); get the file again.")


def _damaged(path: Path, kind: str, error: Exception) -> BadImage:
    text = " ".join(str(error).split()).replace(str(path), path.name)
    return damaged(path, kind, text[:_LONGEST_REASON] or type(error).__name__)
