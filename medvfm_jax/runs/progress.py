"""Progress of a run: a bar with loss, images/s and remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO, TypeVar

from rich.console import Console

from medvfm_jax.printable import printable

if TYPE_CHECKING:
    from medvfm_jax.train.loop import StepEnd  # imports optax

_Item = TypeVar("_Item")

_SECONDS_BETWEEN_LINES = 10.0
_SMOOTHING = 0.9  # of the loss and the speed that are shown; the metrics file has every value


class ProgressDisplay:
    """Context manager and hook in one; ``say`` prints a line without disturbing the bar.

    On a terminal a bar, elsewhere a line at the first and last step and about every ten seconds.
    """

    def __init__(self, stream: TextIO | None = None, title: str = "train"):
        self._console = Console(file=stream or sys.stderr, soft_wrap=True, highlight=False)
        self._title, self._bar, self._task = title, None, None
        self._loss = self._seconds = None  # smoothed; seconds of one example
        self._before: float | None = None  # seconds of an example in the step before, as they were reported
        self._shown, self._seen = float("-inf"), 0

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(printable(text), markup=False)

    def track(self, items: Sequence[_Item], title: str) -> Iterator[_Item]:
        """The items one by one, showing how many are done; see ``tracked``."""
        return tracked(items, title, self._console)

    def reads_state(self, step: int, last: bool) -> bool:
        """Numbers alone."""
        return False

    def __call__(self, end: "StepEnd") -> None:
        """Show a step; without its seconds neither speed nor time."""
        if "loss" in end.metrics:  # a private run does not show it
            self._loss = _smooth(self._loss, end.metrics["loss"])
        # The first step compiles; its speed says nothing about the rest.
        if self._seen and end.seconds is not None and end.examples:
            # Seconds of two steps, not speeds: a device may report two at once, one of them in no time.
            now = end.seconds / end.examples
            if self._before is not None:
                self._seconds = _smooth(self._seconds, (self._before + now) / 2)
            self._before = now
        self._seen += 1
        if self._console.is_terminal:
            self._draw(end)
        elif end.last or time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
            self.say(self._line(end))
        else:
            return
        self._shown = time.monotonic()

    def _draw(self, end: "StepEnd") -> None:
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            times = () if end.seconds is None else (TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[numbers]}"), *times, console=self._console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=end.steps, completed=end.step - 1, numbers="")
        self._bar.update(self._task, completed=end.step, numbers=self._describe(end))

    def _line(self, end: "StepEnd") -> str:
        numbers = f"{self._describe(end)}  {self._remaining(end)}"
        return f"{self._title} {end.step}/{end.steps}  {numbers}".rstrip()

    def _describe(self, end: "StepEnd") -> str:
        loss = [] if self._loss is None else [f"loss {self._loss:.4f}"]
        speed = [] if not self._seconds else [f"{1 / self._seconds:.1f} images/s"]
        return "  ".join([*loss, *speed])

    def _remaining(self, end: "StepEnd") -> str:
        if self._seconds is None or end.last:
            return ""
        seconds = (end.steps - end.step) * end.examples * self._seconds
        return f"{_duration(seconds)} left"


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else _SMOOTHING * before + (1 - _SMOOTHING) * now


def tracked(items: Sequence[_Item], title: str, console: Console) -> Iterator[_Item]:
    """The items one by one, with a bar on a terminal and about a line every ten seconds elsewhere."""
    if console.is_terminal:
        from rich.progress import track

        yield from track(items, title, console=console)
        return
    shown = first = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done == 1:
            first = now  # what the first one takes, with compilation, says nothing about the rest
        if done and now - shown >= _SECONDS_BETWEEN_LINES:
            left = f"  {_duration((now - first) / (done - 1) * (len(items) - done))} left" if done > 1 else ""
            console.print(f"{title} {done}/{len(items)}{left}", markup=False)
            shown = now
        yield item


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
