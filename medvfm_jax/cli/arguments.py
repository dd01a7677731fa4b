"""Arguments of a command line as a dataclass; what is wrong with them as one sentence that names the nearest."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from medvfm_jax.cli.errors import BadUsage
from medvfm_jax.cli.usage import complaint, subcommands


def parse(args_type: Any, arguments: Sequence[str], program: str) -> Any:
    """The arguments as `args_type`, or None when help was asked for and printed; raises `BadUsage`."""
    import tyro

    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what is wrong is said here in one sentence
            parsed = tyro.cli(args_type, args=list(arguments), prog=program, config=config)
    except SystemExit as leave:
        if not leave.code:
            return None
        called = [program, *(word for word in arguments[:1] if word in subcommands(args_type))]
        sentence = complaint(args_type, arguments) or _reason(leave)
        raise BadUsage(f"{sentence}; see `{' '.join(called)} --help`") from None
    _refuse_bad_paths(parsed, program)
    return parsed


def _reason(leave: SystemExit) -> str:
    """What the settings themselves refused: tyro leaves while it handles their error."""
    error: BaseException | None = leave
    while error is not None:
        if isinstance(error, ValueError):
            return str(error).rstrip(".")
        error = error.__context__
    return "the arguments could not be understood"


def _refuse_bad_paths(parsed: Any, program: str) -> None:
    """Check every command's paths, whatever they are called; raises BadUsage."""
    from medvfm_jax.local_paths import (  # imports JAX, which a misspelled option does not wait for
        BadPath,
        check_all,
    )

    try:
        check_all(parsed)
    except BadPath as error:
        raise BadUsage(f"{error} See `{program} --help`") from error
