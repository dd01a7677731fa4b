"""Metrics for Weights & Biases and MLflow: the numbers of ``metrics.jsonl``; nothing that names a patient or a place.

They are sent by a thread of their own, and what cannot be sent is counted; training never waits for a server.
"""

import contextlib
import json
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvfm_jax.printable import counted
from medvfm_jax.runs import run_directory
from medvfm_jax.train.hooks import Recorder
from medvfm_jax.types import MedvfmError

TRACKING = "tracking.json"  # in the run directory: under which names servers know it
_WORDS = ("model", "adapter", "prompt", "objective", "augment", "schedule", "dtype", "base_dtype")
_GIVE_UP = 5  # failures one after the other
_PATIENCE = 10.0  # seconds at the end without an answer after which a server is waited for no longer
_EXPERIMENT = "medvfm"
_HIDDEN = ".tracking"


class TrackerError(MedvfmError):
    """A tracker of experiments is not installed, or refuses the run."""


def told_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a tracker is told: numbers, switches and names of methods; no paths, cases or addresses."""
    return {
        name: value
        for name, value in config.items()
        if isinstance(value, bool | int | float)
        or (name in _WORDS and isinstance(value, str) and not {"/", "\\"} & set(value))
    }


@contextmanager
def to_wandb(folder: Path, project: str, settings: Mapping[str, Any]) -> Iterator[Recorder]:
    """Recorder into a run of Weights & Biases; a resumed run goes on there.  Raises TrackerError."""
    try:
        import wandb
    except ImportError as error:
        raise TrackerError(_missing("wandb", "--wandb")) from error
    files = folder / _HIDDEN
    run_directory.make_folder(files)
    try:
        run = wandb.init(
            project=project, name=folder.name, id=_remembered(folder, "wandb", lambda: uuid.uuid4().hex[:16]),
            dir=str(files), config=dict(settings), resume="allow",
        )  # fmt: skip
    except Exception as error:
        raise TrackerError(
            f"Weights & Biases does not take the run ({_first_line(error)}); log in with wandb login, or leave --wandb "
            "out."
        ) from error
    code = 1
    try:
        yield lambda line: run.log(_numbers(line), step=line["step"])
        code = 0
    finally:
        _within(3 * _PATIENCE, lambda: run.finish(exit_code=code))


@contextmanager
def to_mlflow(folder: Path, uri: str, settings: Mapping[str, Any]) -> Iterator[Recorder]:
    """Recorder into a run of the experiment "medvfm" of an MLflow server; a resumed run goes on there.

    Raises TrackerError.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
    except ImportError as error:
        raise TrackerError(_missing("mlflow-skinny", "--mlflow")) from error

    def created() -> str:
        found = client.get_experiment_by_name(_EXPERIMENT)
        experiment = client.create_experiment(_EXPERIMENT) if found is None else found.experiment_id
        made = client.create_run(experiment, run_name=folder.name).info.run_id
        client.log_batch(made, params=[Param(name, str(value)) for name, value in settings.items()])
        return made

    try:
        client = MlflowClient(tracking_uri=uri)
        run = _remembered(folder, "mlflow", created)
        client.update_run(run, status="RUNNING")
    except Exception as error:
        raise TrackerError(
            f"The MLflow server {uri} does not take the run ({_first_line(error)}); check the address, or leave "
            "--mlflow out."
        ) from error
    status = "FAILED"

    def record(line: Mapping[str, Any]) -> None:
        at = round(1000 * line.get("time", time.time()))
        client.log_batch(run, metrics=[Metric(n, v, at, line["step"]) for n, v in _numbers(line).items()])

    try:
        yield record
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        _within(_PATIENCE, lambda: client.set_terminated(run, status))


@contextmanager
def in_background(
    record: Recorder, name: str, say: Callable[[str], None], patience: float = _PATIENCE
) -> Iterator[Recorder]:
    """The recorder, called by another thread; failures are said and counted, after five together it is left alone.

    patience: seconds without progress after which the end does not wait for what is left, six times as long in all.
    """
    lines: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
    lost, left = 0, threading.Event()

    def work() -> None:
        nonlocal lost
        together = 0
        while (line := lines.get()) is not None and not left.is_set():
            if together >= _GIVE_UP:
                lost += 1
                continue
            try:
                record(line)
                together = 0
            except Exception as error:
                if left.is_set():
                    return
                lost, together = lost + 1, together + 1
                if together in (1, _GIVE_UP):
                    rest = "nothing more is sent" if together == _GIVE_UP else "training goes on"
                    say(
                        f"{name} did not take the metrics of step {line['step']} ({_first_line(error)}); {rest}"
                    )

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield lambda line: lines.put(dict(line))
    finally:
        lines.put(None)
        _wait_while_shrinking(lines, thread, patience)
        if thread.is_alive():
            left.set()
            lost += lines.qsize()  # without the None, with the one under way
            say(f"{name} does not answer and is waited for no longer")
        if lost:
            say(f"{name} is without {counted(lost, 'line')} of metrics.jsonl, which has them all")


def _wait_while_shrinking(lines: "queue.SimpleQueue[Any]", thread: threading.Thread, patience: float) -> None:
    begun = since = time.monotonic()
    before = lines.qsize()
    while thread.is_alive() and (now := time.monotonic()) - since < patience and now - begun < 6 * patience:
        thread.join(min(0.1, patience))
        if lines.qsize() < before:
            before, since = lines.qsize(), now


def _within(seconds: float, last: Callable[[], object]) -> None:
    """Call a server for the last time, and leave it alone if it fails or does not answer: metrics.jsonl has it all."""

    def work() -> None:
        with contextlib.suppress(Exception):
            last()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker can draw: finite numbers."""
    return {
        name: float(value)
        for name, value in line.items()
        if name not in ("step", "time") and isinstance(value, int | float) and math.isfinite(value)
    }


def knows(folder: Path, tracker: str) -> bool:
    """Whether "wandb" or "mlflow" has an earlier part of the run."""
    return isinstance(_known(folder).get(tracker), str)


def _known(folder: Path) -> dict[str, Any]:
    path = folder / TRACKING
    return run_directory.read_record(path) if path.exists() else {}


def _remembered(folder: Path, tracker: str, make: Callable[[], str]) -> str:
    path, known = folder / TRACKING, _known(folder)
    if not isinstance(known.get(tracker), str):
        known[tracker] = make()
        run_directory.write_json(path, json.loads(json.dumps(known)))
    return known[tracker]


def _missing(package: str, option: str) -> str:
    return (
        f"{option} needs the package {package}; install it with pip install 'medvfm-jax[tracking]', or leave {option} "
        "out (metrics.jsonl has the same numbers)."
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
