"""SIGTERM as an exception, so that a process that is asked to end says so and leaves nothing half-written.

Free of other imports: the command line asks for it before anything heavy is imported.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM (a cluster, a container, ``kill``), not from the keyboard."""


@contextmanager
def raised() -> Iterator[None]:
    """Within this block SIGTERM raises Terminated in the main thread, so that files in progress are cleared away.

    Outside the main thread nothing is changed. A process that is inside a compilation notices when it returns.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated
