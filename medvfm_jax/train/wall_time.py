"""What the wall time of training is spent on, seen from the host, and from the device by when its steps are done."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from medvfm_jax.runs.goodput import COMPILATION, OTHER, START, STEPS


class Span(NamedTuple):
    """The host did ``what`` from ``begin`` to ``end``."""

    what: str
    begin: float
    end: float


def divide(begin: float, end: float, busy: str, busy_until: float, spans: Sequence[Span]) -> dict[str, float]:
    """Seconds from ``begin`` to ``end`` by what they were spent on; their sum is ``end - begin``.

    Until ``busy_until`` the device worked, and whatever the host did meanwhile cost nothing: these count as ``busy``.
    After it the spans count as what they are (they do not overlap), and the rest as "other".
    """
    idle = min(max(busy_until, begin), end)
    found = {busy: idle - begin}
    rest = end - idle
    for what, first, last in spans:
        seconds = max(min(last, end) - max(first, idle), 0.0)
        found[what] = found.get(what, 0.0) + seconds
        rest -= seconds
    found[OTHER] = found.get(OTHER, 0.0) + max(rest, 0.0)
    return found


class WallTime:
    """Clock of one attempt at a run; everything before its first step is "start", the first step "compilation".

    Use it as a context: a thread waits for the device beside the training, to know when each step was done. Without,
    the device counts as busy until the host has the numbers of a step.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self._now, self._at = now, now()
        self._spans: list[Span] = []
        self._busy, self._done = START, _Done(float("inf"))
        self._spent: dict[str, float] = {}
        self._given: queue.SimpleQueue[tuple[Any, _Done] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "WallTime":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._given.put(None)
            self._thread = None

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Within this block the host does ``what``; blocks do not lie in each other."""
        begin = self._now()
        try:
            yield
        finally:
            self._spans.append(Span(what, begin, self._now()))

    def giving(self) -> None:
        """A step is about to be given to the device."""
        self._settle()
        self._busy = COMPILATION if self._busy == START else STEPS
        self._done = _Done(float("inf"))

    def given(self, on_device: Any) -> None:
        """The step was given; ``on_device``: arrays that are there when it is done."""
        if self._thread is not None:
            self._given.put((on_device, self._done))

    def done(self) -> None:
        """The host has the numbers of the last step: the device has nothing to do."""
        self._done.at = min(self._done.at, self._now())

    def take(self) -> dict[str, float]:
        """Seconds since this was last asked, by what they were spent on; what took none is left out."""
        self._settle()
        spent, self._spent = self._spent, {}
        return {what: seconds for what, seconds in spent.items() if seconds > 0}

    def _settle(self) -> None:
        now = self._now()
        parts = divide(self._at, now, self._busy, self._done.at, self._spans)
        self._spent = added(self._spent, parts)
        self._at = now
        self._spans.clear()

    def _watch(self) -> None:
        while (one := self._given.get()) is not None:
            arrays, done = one
            try:
                jax.block_until_ready(arrays)
            except Exception:  # the training meets it too, and says it
                continue
            done.at = min(done.at, self._now())
            del one, arrays


class _Done:
    """When a step was done, infinite until it is known."""

    def __init__(self, at: float):
        self.at = at


def added(total: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Sums by name."""
    return dict(total) | {what: total.get(what, 0.0) + value for what, value in more.items()}
