"""Show how far a download is: a bar on a terminal, a plain line now and then otherwise."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from medvfm_jax.fetch.download import Progress as Callback

PLAIN_EVERY_S = 10.0


@contextmanager
def bar(name: str) -> Iterator[Callback]:
    """Context whose value is a callback (bytes so far, bytes in all or None) that draws on stderr."""
    from rich.console import Console  # nothing is shown of a file that is already there

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(name)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _plain(name: str) -> Callback:
    shown = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal shown
        if time.monotonic() - shown >= PLAIN_EVERY_S or done == total:
            shown = time.monotonic()
            of = f" of {total / 1e6:.1f}" if total else ""
            print(f"{name}: {done / 1e6:.1f}{of} MB", file=sys.stderr)

    return show
