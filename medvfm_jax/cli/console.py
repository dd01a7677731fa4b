"""What a command prints: people read lines and tables, programs read one JSON object on stdout.

Without `--json` everything a command says goes to stdout and warnings go to stderr. With `--json`, stdout
holds exactly one JSON object, the result, and all other lines go to stderr.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from medvfm_jax.printable import printable

_json_mode: ContextVar[bool] = ContextVar("medvfm_json_mode", default=False)


@contextmanager
def output_mode(*, json_mode: bool) -> Iterator[None]:
    """Within this block, `result` prints JSON (and everything else goes to stderr) or lines."""
    token = _json_mode.set(json_mode)
    try:
        yield
    finally:
        _json_mode.reset(token)


def json_mode() -> bool:
    """Whether the user asked for machine-readable output."""
    return _json_mode.get()


def say(text: str) -> None:
    """Print one line for a person."""
    print(printable(text), file=sys.stderr if json_mode() else sys.stdout, flush=True)


def warn(text: str) -> None:
    """Print one line on stderr about something the user should know but that does not stop the command."""
    print(f"warning: {printable(one_line(text))}", file=sys.stderr, flush=True)


def result(record: Any, text: str = "") -> None:
    """Print what the command produced: `record` as JSON with `--json`, otherwise `text`."""
    if json_mode():
        print(json.dumps(plain(record), allow_nan=False), flush=True)
    elif text:
        print(text, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned text table; the first column is left-aligned, numbers right."""
    cells = [[str(c) for c in columns], *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        first, *others = row
        aligned = [first.ljust(widths[0]), *[c.rjust(w) for c, w in zip(others, widths[1:])]]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])


def one_line(text: str) -> str:
    """The text with every run of white space, line ends included, as one space."""
    return " ".join(text.split())


def plain(value: Any) -> Any:
    """The value as JSON holds it: dataclasses as dicts, arrays as lists, NaN and infinity as null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
