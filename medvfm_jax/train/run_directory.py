"""A run directory: who may write to it, what it was asked to do, what happened at each step.

``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``delta.safetensors``, ``scores.json``, ``report.html``.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvfm_jax.types import MedvfmError

try:
    import fcntl
except ImportError:  # Windows: two writers are then not told apart
    fcntl = None

CONFIG, METRICS, CHECKPOINTS, DELTA, SCORES = (
    "config.json", "metrics.jsonl", "checkpoints", "delta.safetensors", "scores.json",
)  # fmt: skip
_LOCK = ".lock"
_FREE_TO_CHANGE = ("resume", "out", "placement", "keep", "checked")  # does not change what a run computes
_RESOLVED = "resolved"  # what data, weights and defaults made of the settings


class RunError(MedvfmError):
    """A run directory cannot be used as asked."""


class RunInUse(RunError):
    """Another process is writing to the run directory."""


class RunExists(RunError):
    """The run directory holds a run already, or one with other settings."""


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold the run directory for writing; creates it. A killed process holds no lock.

    Raises RunInUse if another process holds it.
    """
    created = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / _LOCK, "a+")  # noqa: SIM115, held open as long as the run lasts
    except OSError as error:
        raise RunError(
            f"Cannot use {folder} as a run directory: {error.strerror}; choose another --out."
        ) from error
    with handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise RunInUse(
                    f"Process {owner} is writing to {folder}; wait for it to end or choose another --out."
                ) from error
        try:
            _sign(handle.fileno(), folder)
            yield folder
        finally:
            _remove_if_unused(folder, created)


def _sign(lock: int, folder: Path) -> None:
    """Write into the lock who holds it."""
    try:
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
    except OSError as error:
        raise RunError(
            f"Cannot use {folder} as a run directory: {error.strerror}; free space or choose another --out."
        ) from error


def refuse_existing(folder: Path, resume: bool) -> None:
    """A check before any slow work: nothing of the user's is written over.

    Raises RunExists if the folder holds a run that is not to be continued, or files that belong to no run.
    """
    if (folder / CONFIG).exists():
        if not resume:
            raise RunExists(
                f"{folder} already holds a run; add --resume to continue it, or choose another --out."
            )
        return
    # Names with a dot are the lock and what a killed process was writing.
    foreign = sorted(p.name for p in folder.iterdir() if p.name[0] != ".") if folder.is_dir() else []
    if foreign:
        raise RunExists(f"{folder} holds no run but other files ({foreign[0]}, ...); choose another --out.")


def finished(folder: Path) -> dict[str, Any]:
    """The settings of a run that has ended. Raises RunError if there is no run, or no delta yet."""
    record = read_json(folder / CONFIG)
    if not (folder / DELTA).is_file():
        raise RunError(
            f"{folder} has no {DELTA}: the run has not ended; continue it with medvfm adapt --resume and the "
            "settings it was started with."
        )
    return record


def claim(folder: Path, config: Mapping[str, Any], resume: bool) -> bool:
    """Record the settings of a new run, or check those of the run to continue; returns whether it continues.

    Raises RunExists if there is a run and ``resume`` is off, or if its settings were others.
    """
    path = folder / CONFIG
    config = json.loads(json.dumps(config))
    if not path.exists():
        write_json(path, config)
        return False
    refuse_existing(folder, resume)
    before = read_json(path)
    changed = _changes(before, config)
    if changed:
        name, then, now = changed[0]
        raise RunExists(
            f"{folder} was started with {name}={_short(then)}, now it is {_short(now)}; "
            f"resume with the same settings and data ({len(changed)} differ) or choose another --out."
        )
    return True


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, before, now) of the settings that differ; if none does, of what was resolved from them.

    A setting that did not exist when the run was started does not differ while it is off.
    """
    names = sorted((before.keys() | now.keys()) - {*_FREE_TO_CHANGE, _RESOLVED})
    changed = [
        (n, before.get(n), now.get(n))
        for n in names
        if before.get(n) != now.get(n) and (n in before or now[n])
    ]
    if changed or before.get(_RESOLVED) == now.get(_RESOLVED):
        return changed
    return _changes(before.get(_RESOLVED) or {}, now.get(_RESOLVED) or {})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _remove_if_unused(folder: Path, created: bool) -> None:
    """A command that was refused after all (bad data, for example) leaves no trace."""
    if [p.name for p in folder.iterdir()] == [_LOCK]:
        (folder / _LOCK).unlink()
        if created:
            folder.rmdir()


def make_folder(folder: Path) -> None:
    """Create a folder for results. Raises RunError."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Write JSON whole or not at all; NaN becomes null, because JSON has no word for it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _writing(path):
            with open(temporary, "w") as file:
                json.dump(finite(record), file, indent=1, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except RunError:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full disk and a missing permission into RunError."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"Cannot write {path}: {error.strerror or error}; free space or choose another folder."
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; raises RunError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(
            f"{path} does not exist; is {path.parent} a run directory made by medvfm adapt?"
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read as JSON ({error}); restore it or start another run."
        ) from error


def append_metrics(folder: Path, record: Mapping[str, Any]) -> None:
    """Append one line to ``metrics.jsonl``. Raises RunError (full disk)."""
    with _writing(folder / METRICS), open(folder / METRICS, "a") as file:
        file.write(json.dumps(finite(record), allow_nan=False) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that are whole; a line cut off by a kill is left out."""
    path = folder / METRICS
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def truncate_metrics(folder: Path, step: int) -> None:
    """Forget what was logged after ``step``: a run resumed there logs it again."""
    kept = [r for r in read_metrics(folder) if r.get("step", 0) <= step]
    temporary = folder / f".{METRICS}.tmp"
    with _writing(folder / METRICS):
        temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
        os.replace(temporary, folder / METRICS)


def finite(value: Any) -> Any:
    """The value as JSON can hold it: arrays and paths plain, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
