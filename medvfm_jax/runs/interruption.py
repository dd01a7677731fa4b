"""Let the step in progress finish when the process is asked to end (Ctrl-C, SIGTERM of a cluster)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from medvfm_jax import termination
from medvfm_jax.termination import SIGNALS


class Interruption:
    """Whether, and by which signal, the process was asked to end."""

    def __init__(self) -> None:
        self._received: list[int] = []

    def __call__(self) -> bool:
        """Whether a signal came."""
        return bool(self._received)

    @property
    def error(self) -> type[KeyboardInterrupt]:
        """What to raise once the step is done: Terminated after SIGTERM, else KeyboardInterrupt."""
        return SIGNALS[self._received[0]] if self._received else KeyboardInterrupt

    def remember(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first is kept, the second acts at once."""
        if self._received:
            termination.act(number, frame)
            return
        self._received.append(number)


@contextmanager
def deferred() -> Iterator[Interruption]:
    """Within this block the first signal is only remembered; yields what says whether one came.

    The second signal acts at once. Outside the main thread nothing is changed.
    """
    found = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    previous = {number: signal.signal(number, found.remember) for number in SIGNALS}
    try:
        yield found
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
