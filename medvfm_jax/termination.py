"""SIGTERM and Ctrl-C: answered with a sentence before a command starts, raised while it runs, never within an import.

An exception that a signal raises within an import ends in the start of a C extension, which takes it for an error of
its own, forgets it, or crashes. Free of other imports: the program asks for this before anything heavy is imported.
"""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_PAUSE = 0.01  # seconds after which a signal that came within an import is sent again
_IMPORT = "<frozen importlib._bootstrap>"  # the code that every import that is not yet there runs through

_postponed: set[int] = set()
_started = False


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM (a cluster, a container, ``kill``), not from the keyboard."""


SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


def answered() -> None:
    """From now on SIGINT and SIGTERM end the process at once with one sentence and 128 + their number.

    For a program at its start, which has nothing to clear away; ``raised`` takes over while a command runs.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    what = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
    os.write(2, f"medvfm: {what}{'' if _started else ' before anything was done'}\n".encode())
    os._exit(128 + number)


@contextmanager
def raised() -> Iterator[None]:
    """Within this block SIGTERM raises Terminated in the main thread, so that files in progress are cleared away.

    SIGINT raises KeyboardInterrupt. Where something ignores the exception (a finaliser, a callback) it is raised again,
    at the latest at the end of the block. A signal that is ignored stays ignored; outside the main thread nothing is
    changed. A process that is inside a compilation notices when it returns.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _started
    _started, over = True, False
    previous: dict[int, Any] = {}
    received: list[int] = []
    hook = sys.unraisablehook

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not over:
            act(number, frame)

    def ignored(args: Any) -> None:
        if issubclass(args.exc_type, KeyboardInterrupt):
            _postpone(signal.SIGTERM if issubclass(args.exc_type, Terminated) else signal.SIGINT)
        else:
            hook(args)

    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
        sys.unraisablehook = ignored
        yield
    finally:
        over = True
        sys.unraisablehook = hook
        for number, handler in previous.items():
            signal.signal(number, handler)
        _postponed.clear()
    if received:
        raise SIGNALS[received[-1]]


def act(number: int, frame: FrameType | None) -> None:
    """As the handler of a signal: raise what it stands for, or have it sent again while a module is imported."""
    if _importing(frame):
        _postpone(number)
        return
    _postponed.discard(number)
    raise SIGNALS[number]


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            return True
        frame = frame.f_back
    return False


def _postpone(number: int) -> None:
    _postponed.add(number)
    _thread.start_new_thread(
        _send_again, (number,)
    )  # `threading` takes locks, which the main thread may hold


def _send_again(number: int) -> None:
    time.sleep(_PAUSE)
    if number in _postponed:
        signal.pthread_kill(threading.main_thread().ident, number)
