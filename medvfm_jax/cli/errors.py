"""Any exception -> one sentence for the user and an exit code."""

import errno
from collections.abc import Iterator

from medvfm_jax.cli.console import one_line
from medvfm_jax.printable import printable
from medvfm_jax.termination import Terminated

FAILED, BAD_USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143  # 128 + the number of the signal


class BadUsage(Exception):
    """The command line itself is wrong; exit code 2."""


def describe(error: BaseException) -> tuple[str, int]:
    """One sentence saying what went wrong and what to do, and the exit code (DESIGN section 4, errors).

    Names in it may come from a file or a command line; none of them can steer the terminal or fill it.
    """
    sentence, code = _describe(error)
    return printable(sentence), code


def _describe(error: BaseException) -> tuple[str, int]:
    if isinstance(error, BadUsage):
        return one_line(str(error)), BAD_USAGE
    if isinstance(error, Terminated):
        return "ended by SIGTERM; what was committed so far is kept", TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was committed so far is kept", INTERRUPTED
    from medvfm_jax.types import MedvfmError  # imports JAX, too slow for a misspelled option

    for cause in _chain(error):
        if isinstance(cause, MedvfmError):
            return one_line(str(cause)), FAILED
    for cause in _chain(error):
        sentence = _operating_system(cause)
        if sentence:
            return sentence, FAILED
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return (
            "out of memory; use a smaller --batch-size, cut it with --accumulate, compute with --dtype bfloat16, "
            "keep less of a SAM encoder with --keep nothing, divide weights with --mesh all --rules fsdp, or take a "
            "smaller model (medvfm plan says what fits)",
            FAILED,
        )
    message = one_line(str(error)) or "no message"
    if len(message) > 300:
        message = message[:297] + "..."
    return f"unexpected {type(error).__name__}: {message} (run again with --debug for the traceback)", FAILED


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then what it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _operating_system(error: BaseException) -> str | None:
    """The sentence for a full disk, a missing permission or a missing file; None for anything else."""
    if not isinstance(error, OSError):
        if "No space left on device" in str(error):
            return "the disk is full; free some space and run the same command again"
        return None
    where = f" {error.filename}" if error.filename else " a file"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"the disk is full while writing{where}; free some space and run it again"
        case errno.EACCES | errno.EPERM:
            return f"no permission for{where}; choose another folder or change its permissions"
        case errno.EROFS:
            return f"the file system of{where} is read-only; choose another folder"
        case errno.ENOENT:
            return f"no such file or folder:{where}; check the path"
        case errno.EISDIR:
            return f"{error.filename or 'a path'} is a folder, a file was expected; check the path"
        case errno.ENOTDIR | errno.EEXIST:
            return f"{error.filename or 'a path'} is a file, a folder was expected; check the path"
        case errno.ENAMETOOLONG:
            name = str(error.filename or "a path")
            return f"the name of a file or folder is too long for the file system ({name[:40]}...); choose another"
        case errno.ELOOP:
            return f"{error.filename or 'a path'} is a link that leads back to itself; check the path"
        case errno.EPIPE:
            return "the program reading this output closed it"
        case _ if error.filename and error.strerror:
            return f"the system refuses{where}: {error.strerror}; check the path and the disk"
        case _:
            return None
