"""Hooks of the training loop: metrics file, TensorBoard scalars, validation, checkpoints."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optax

from medvfm_jax.train import checkpoint, run_directory
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.loop import Hook, StepEnd
from medvfm_jax.train.state import State
from medvfm_jax.types import MedvfmError

Recorder = Callable[[Mapping[str, Any]], None]  # takes one line of metrics


class MissingTensorBoard(MedvfmError, ImportError):
    """Scalars for TensorBoard were asked for, but nothing is installed that can write them."""


def log_metrics(record: Recorder, schedule: optax.Schedule, every: int = 1) -> Hook:
    """Record {"step", "loss", ..., "images_per_s", "lr", "time"}, averaged over ``every`` steps."""
    since: list[StepEnd] = []

    def hook(end: StepEnd) -> None:
        since.append(end._replace(state=None))
        if end.step % every and not end.last:
            return
        mean = {n: sum(e.metrics[n] for e in since) / len(since) for n in end.metrics}
        speed = sum(e.examples for e in since) / max(sum(e.seconds for e in since), 1e-9)
        line = {"step": end.step, **mean, "images_per_s": round(speed, 3)}
        record(line | {"lr": float(schedule(end.step - 1)), "time": round(time.time(), 3)})
        since.clear()

    return hook


def to_file(folder: Path) -> Recorder:
    """Recorder into ``metrics.jsonl`` of a run directory."""
    return lambda line: run_directory.append_metrics(folder, line)


@contextmanager
def to_tensorboard(folder: Path) -> Iterator[Recorder]:
    """Recorder into TensorBoard event files below ``folder``, whole when left; raises MissingTensorBoard."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise MissingTensorBoard(
            "Scalars for TensorBoard need the package tensorboardX; install it with pip install "
            "'medvfm-jax[tensorboard]', or leave --tensorboard out (metrics.jsonl has the same numbers)."
        ) from error
    writer = SummaryWriter(logdir=str(folder), flush_secs=10)

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


class Validation:
    """Hook: score the model every ``every`` steps and at the end, keep the best, stop without improvement.

    score: model -> {"dice": ..., "loss": ...}; logged with the prefix "val_". stopping: the current record.
    fetch: brings a model to the host where it is divided over devices.  model: that of a state, its delta.
    """

    def __init__(
        self,
        score: Callable[[Any], Mapping[str, float]],
        every: int,
        stopping: EarlyStopping,
        record: Recorder,
        fetch: Callable[[Any], Any] = lambda model: model,
        model: Callable[[Any], Any] = lambda state: state.delta,
    ):
        self._score, self._every, self._record, self._fetch = score, every, record, fetch
        self._model = model
        self.stopping = stopping
        self.latest: Mapping[str, float] = {}

    def __call__(self, end: StepEnd) -> bool:
        """Whether to stop."""
        if end.step % self._every and not end.last:
            return False
        model = self._model(end.state)
        self.latest = self._score(model)
        line = {"step": end.step, **{f"val_{n}": float(v) for n, v in self.latest.items()}}
        self._record(line | {"time": round(time.time(), 3)})
        self.stopping = self.stopping.update(float(self.latest["dice"]), end.step, self._fetch(model))
        return self.stopping.exhausted


class Checkpoints:
    """Hook: commit a checkpoint every ``every`` steps, every ``seconds`` of wall time, and at the end.

    stopping: gives the early-stopping record to store, that of the Validation hook before this one.
    fetch: brings a state to the host where it is divided over devices, with the help of all processes, of which one
    ``writes``; wall times differ between them, so ``seconds`` must then be infinite.
    private: the state holds a secret, see `checkpoint.Checkpoint`.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        fingerprint: str,
        stopping: Callable[[], EarlyStopping],
        every: int = 100,
        seconds: float = 60.0,
        fetch: Callable[[State], State] = lambda state: state,
        writes: bool = True,
        private: bool = False,
    ):
        self._folder, self._config, self._fingerprint = folder, dict(config), fingerprint
        self._fetch, self._writes, self._private = fetch, writes, private
        self._stopping, self._every, self._seconds = stopping, every, seconds
        self._last = time.monotonic()

    def __call__(self, end: StepEnd) -> None:
        """Commit a checkpoint if one is due; raises CheckpointError."""
        late = time.monotonic() - self._last >= self._seconds
        if end.step % self._every and not late and not end.last:
            return
        state = self._fetch(end.state)
        if self._writes:
            checkpoint.write(
                self._folder,
                checkpoint.Checkpoint(
                    state,
                    end.loader_state,
                    self._stopping(),
                    self._config,
                    self._fingerprint,
                    self._private,
                ),
            )
        self._last = time.monotonic()
