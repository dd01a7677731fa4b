"""Clocks that take turns: a slow moment of the machine hits all of them."""

import gc
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

_Name = TypeVar("_Name", bound=Hashable)
Clock = Callable[[], float]


def timed(call: Callable[[], Any]) -> Clock:
    """A function that does the work, waits for it and returns the seconds; garbage is collected before."""

    def clock() -> float:
        gc.collect()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return clock


def take_turns(clocks: Mapping[_Name, Clock], rounds: Iterable[int]) -> dict[_Name, list[float]]:
    """Seconds of every clock, one per round; the order rotates, so that none always runs after the same one."""
    seconds: dict[_Name, list[float]] = {name: [] for name in clocks}
    for i in rounds:
        for name in rotated(list(clocks), i):
            seconds[name].append(clocks[name]())
    return seconds


def rotated(names: Sequence[_Name], i: int) -> list[_Name]:
    """The names, starting i places later."""
    cut = i % len(names) if names else 0
    return [*names[cut:], *names[:cut]]
