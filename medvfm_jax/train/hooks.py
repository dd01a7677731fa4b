"""Hooks of the training loop: metrics file, TensorBoard scalars, checkpoints."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from medvfm_jax.runs import goodput, run_directory
from medvfm_jax.train import checkpoint
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.loop import StepEnd
from medvfm_jax.train.state import State
from medvfm_jax.train.wall_time import WallTime, added
from medvfm_jax.types import MedvfmError

Recorder = Callable[[Mapping[str, Any]], None]  # takes one line of metrics


class MissingTensorBoard(MedvfmError, ImportError):
    """Scalars for TensorBoard were asked for, but nothing is installed that can write them."""


class MetricsLog:
    """Hook: record {"step", "loss", ..., "images_per_s", "lr", "time"}, averaged over ``every`` steps, and validations.

    A validation is a line of its own, {"step", "val_dice", ..., "time"}.  "seconds_steps", "seconds_data" and so on:
    how the wall time since the line before was spent, what took none left out.
    """

    def __init__(self, record: Recorder, schedule: optax.Schedule, every: int = 1):
        self._record, self._rate, self._every = record, _Rates(schedule), every
        self._since: list[StepEnd] = []

    def reads_state(self, step: int, last: bool) -> bool:
        """Numbers alone."""
        return False

    def __call__(self, end: StepEnd) -> None:
        """Take in a step; record the mean if it is due."""
        since = self._since
        since.append(end._replace(state=None, stopping=None))
        if end.step % self._every == 0 or end.last:
            mean = {n: sum(e.metrics[n] for e in since) / len(since) for n in end.metrics}
            speed = sum(e.examples for e in since) / max(sum(e.seconds for e in since), 1e-9)
            spent: dict[str, float] = {}
            for e in since:
                spent = added(spent, e.spent)
            times = {f"seconds_{what}": round(seconds, 6) for what, seconds in spent.items()}
            line = {"step": end.step, **mean, "images_per_s": round(speed, 3), "lr": self._rate(end.step - 1)}
            self._record(line | times | {"time": round(time.time(), 3)})
            since.clear()
        record_scores(self._record, end)


class _Rates:
    """Learning rates on the host, many at a time: one at a time each would wait for the step that the device is in."""

    def __init__(self, schedule: optax.Schedule, together: int = 4096):
        self._schedule, self._together = schedule, together
        self._first, self._rates = 0, np.zeros(0)

    def __call__(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if not self._first <= step < self._first + len(self._rates):
            self._first = step - step % self._together
            steps = jax.device_put(np.arange(self._first, self._first + self._together, dtype=np.int32))
            self._rates = jax.device_get(jax.jit(jax.vmap(self._schedule))(steps))
        return float(self._rates[step - self._first])


class TimesLog:
    """Hook: add what the wall time was spent on to ``times.jsonl``, see ``runs.goodput``; use it as a context.

    A line before every checkpoint that may be written, and otherwise about every ten seconds; the last one at the end.
    It comes before checkpoints, so that a step that can be gone on from always ends a line.
    """

    def __init__(self, folder: Path, clock: WallTime, step: int, seconds: float = 10.0):
        """step: that this attempt goes on from."""
        self._folder, self._clock, self._seconds = folder, clock, seconds
        self._attempt, self._step = round(time.time(), 6), step
        self._spent: dict[str, float] = {}
        self._written = time.monotonic()

    def __enter__(self) -> "TimesLog":
        """Say which step the attempt goes on from."""
        self._write(self._clock.take())
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Write what was spent since the last line."""
        self._spent = added(self._spent, self._clock.take())
        if kind is None:
            self._write(self._spent)
            return
        with suppress(run_directory.RunError):  # what ended the run is said, not this
            self._write(self._spent)

    def reads_state(self, step: int, last: bool) -> bool:
        """Numbers alone."""
        return False

    def __call__(self, end: StepEnd) -> None:
        """Take in a step; write if it is due."""
        self._step, self._spent = end.step, added(self._spent, end.spent)
        if end.state is not None or end.last or time.monotonic() - self._written >= self._seconds:
            self._write(self._spent)

    def _write(self, spent: Mapping[str, float]) -> None:
        goodput.append(self._folder, self._attempt, self._step, spent, time.time())
        self._spent, self._written = {}, time.monotonic()


def record_scores(record: Recorder, end: StepEnd) -> None:
    """Record the validation after a step, if there was one."""
    if end.scores is not None:
        line = {"step": end.step, **{f"val_{n}": float(v) for n, v in end.scores.items()}}
        record(line | {"time": round(time.time(), 3)})


def to_file(folder: Path) -> Recorder:
    """Recorder into ``metrics.jsonl`` of a run directory."""
    return lambda line: run_directory.append_metrics(folder, line)


@contextmanager
def to_tensorboard(folder: Path, taken: int = 0) -> Iterator[Recorder]:
    """Recorder into TensorBoard event files below ``folder``, whole when left; raises MissingTensorBoard.

    taken: steps before this attempt; TensorBoard drops what an earlier one told of later steps.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MissingTensorBoard(
            "Scalars for TensorBoard need the package tensorboardX; install it with pip install "
            "'medvfm-jax[tensorboard]', or leave --tensorboard out (metrics.jsonl has the same numbers)."
        ) from error
    writer = SummaryWriter(logdir=str(folder), flush_secs=10, purge_step=taken + 1)

    def record(line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            if name not in ("step", "time") and isinstance(value, int | float):
                writer.add_scalar(name, value, line["step"])

    try:
        yield record
    finally:
        writer.close()


def to_all(*recorders: Recorder) -> Recorder:
    """One recorder that passes each line to several."""

    def record(line: Mapping[str, Any]) -> None:
        for recorder in recorders:
            recorder(line)

    return record


class Profile:
    """Hook: a trace of steps ``first`` to ``last`` below ``folder`` (``jax.profiler``); use it as a context.

    It waits for the device before the first and after the last of them, so that nothing of other steps is in it.
    taken: steps before this attempt; of the steps asked for it traces those that are its own, and says where none is.
    """

    def __init__(
        self,
        folder: Path,
        first: int,
        last: int,
        taken: int = 0,
        say: Callable[[str], None] = lambda text: None,
    ):
        self._folder, self._first, self._last = folder, first, last
        self._taken, self._say = taken, say
        self._running = self._started = False

    def __enter__(self) -> "Profile":
        """Start at once where the first step is to be traced."""
        if self._first - 1 <= self._taken < self._last:
            self._start()
        return self

    def __exit__(self, *error: object) -> None:
        """Write what was traced so far, also of a run that ends early."""
        self._stop()
        if not self._started:
            before = self._taken >= self._last
            why = f"it goes on after step {self._taken}" if before else f"it ended before step {self._first}"
            self._say(f"no trace of steps {self._first} to {self._last} was written by this attempt: {why}")

    def reads_state(self, step: int, last: bool) -> bool:
        """Whether the trace starts or ends after this step."""
        return step in (self._first - 1, self._last)

    def __call__(self, end: StepEnd) -> None:
        """Start or end the trace."""
        if end.step == self._last or end.last:
            self._stop()
        elif end.step == self._first - 1:
            jax.block_until_ready(end.state)
            self._start()

    def _start(self) -> None:
        jax.profiler.start_trace(str(self._folder))
        self._running = self._started = True

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
        self._running = False


class Checkpoints:
    """Hook: commit a checkpoint every ``every`` steps, every ``seconds`` of wall time, and at the end.

    fetch: brings a state to the host where it is sharded over devices, with the help of all processes, of which one
    ``writes``; wall times differ between them, so ``seconds`` must then be infinite.
    private: the state holds a secret, see `checkpoint.Checkpoint`.
    """

    spends = goodput.CHECKPOINT

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        fingerprint: str,
        every: int = 100,
        seconds: float = 60.0,
        fetch: Callable[[State], State] = lambda state: state,
        writes: bool = True,
        private: bool = False,
    ):
        self._folder, self._config, self._fingerprint = folder, dict(config), fingerprint
        self._fetch, self._writes, self._private = fetch, writes, private
        self._every, self._seconds = every, seconds
        self._last = time.monotonic()

    def reads_state(self, step: int, last: bool) -> bool:
        """Whether a checkpoint is due after this step."""
        late = time.monotonic() - self._last >= self._seconds
        return step % self._every == 0 or late or last

    def __call__(self, end: StepEnd) -> None:
        """Commit a checkpoint if one is due; raises CheckpointError."""
        if end.state is None or not self.reads_state(end.step, end.last):
            return
        state = self._fetch(end.state)
        if self._writes:
            stopping = end.stopping or EarlyStopping(patience=0)
            committed = checkpoint.Checkpoint(
                state, end.loader_state, stopping, self._config, self._fingerprint, self._private
            )
            checkpoint.write(self._folder, committed)
        self._last = time.monotonic()


class Copies:
    """Hook: have the run copied when there is a new checkpoint; it comes after the hook that writes them.

    One that is written in the background is there some steps later: it is looked for every ``seconds``.
    """

    spends = goodput.CHECKPOINT

    def __init__(self, folder: Path, copy: Callable[[], None], seconds: float = 5.0):
        """folder: of the checkpoints."""
        self._folder, self._copy, self._seconds = folder, copy, seconds
        self._seen, self._looked = self._names(), time.monotonic()

    def reads_state(self, step: int, last: bool) -> bool:
        """Files alone."""
        return False

    def __call__(self, end: StepEnd) -> None:
        """Copy if it is due; the end of the run is copied by who opened the mirror."""
        if end.last or (end.state is None and time.monotonic() - self._looked < self._seconds):
            return
        names, self._looked = self._names(), time.monotonic()
        if names - self._seen:
            self._copy()
        self._seen = names

    def _names(self) -> set[str]:
        """Of those that are whole."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return {path.name for path in found if run_directory.is_whole_checkpoint(path)}
