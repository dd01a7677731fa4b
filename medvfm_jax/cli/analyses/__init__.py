"""The tools of `medvfm analyze`, one file each: settings -> record and table."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Tool(NamedTuple):
    """A tool of `analyze`.

    Attributes:
        config: class of its settings, by which it is found.
        run: (settings, told what is done) -> what `--json` prints, and the same as a table.
    """

    config: type
    run: Callable[[Any, Callable[[str], None]], tuple[dict[str, Any], str]]
