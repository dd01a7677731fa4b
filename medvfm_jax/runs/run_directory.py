"""A run directory: who may write to it, what it was asked to do, what happened at each step.

``config.json``, ``metrics.jsonl``, ``checkpoints/``, ``delta.safetensors``, ``scores.json``, ``report.html``.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvfm_jax import json_text, local_paths
from medvfm_jax.printable import counted
from medvfm_jax.runs.settings_record import (
    BEFORE_IT_EXISTED,
    FREE_TO_CHANGE,
    RESOLVED,
    WATCHING,
    contradiction,
)
from medvfm_jax.settings.records import as_of_today
from medvfm_jax.types import MedvfmError

try:
    import fcntl
except ImportError:  # Windows: two writers are then not told apart
    fcntl = None

PERSONAL = "personal.safetensors"  # what each client of a federated run keeps for itself
CONFIG, METRICS, CHECKPOINTS, DELTA, SCORES = (
    "config.json", "metrics.jsonl", "checkpoints", "delta.safetensors", "scores.json",
)  # fmt: skip
LARGEST = "largest_component.json"  # of which labels only that is kept
PROFILE = "profile"  # a folder with traces
_LOCK = ".lock"


class RunError(MedvfmError):
    """A run directory cannot be used as asked."""


class RunInUse(RunError):
    """Another process is writing to the run directory."""


class RunExists(RunError):
    """The run directory holds a run already, or one with other settings."""


def is_whole_checkpoint(path: Path) -> bool:
    """Whether what lies below ``checkpoints/`` has the name that it gets when all of it is written."""
    return not path.name.startswith(".") and ".orbax-checkpoint-tmp" not in path.name


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold the run directory for writing; creates it. A killed process holds no lock.

    Raises RunInUse if another process holds it.
    """
    local_paths.check(folder, "The run directory")
    try:
        created = [part for part in (folder, *folder.parents) if not part.exists()]
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


def is_locked_folder(folder: Path) -> bool:
    """Whether a process holds the folder by ``locked``, or held it and was killed."""
    return (folder / _LOCK).is_file()


def _sign(lock: int, folder: Path) -> None:
    """Write into the lock who holds it."""
    try:
        os.ftruncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
    except OSError as error:
        raise RunError(
            f"Cannot use {folder} as a run directory: {error.strerror}; free space or choose another --out."
        ) from error


def refuse_existing(folder: Path, resume: bool | None) -> None:
    """A check before any slow work: nothing of the user's is written over.

    resume: None where a command could not.

    Raises RunExists if the folder holds a run that is not to be continued, or files that belong to no run.
    """
    if (folder / CONFIG).exists():
        if not resume:
            how = "" if resume is None else "add --resume to continue it, or "
            raise RunExists(f"{folder} already holds a run; {how}choose another --out.")
        return
    # Names with a dot are the lock and what a killed process was writing.
    foreign = sorted(p.name for p in folder.iterdir() if p.name[0] != ".") if folder.is_dir() else []
    if foreign:
        raise RunExists(f"{folder} holds no run but other files ({foreign[0]}, ...); choose another --out.")


def finished(folder: Path) -> dict[str, Any]:
    """The settings of a run that has ended, checked as far as later commands rely on them.

    Raises RunError if there is no run, no delta yet, or if the settings are not those that a run writes.
    """
    record = read_record(folder / CONFIG)
    if not (folder / DELTA).is_file():
        raise RunError(
            f"{folder} has no {DELTA}: the run has not ended; continue it with the command and the settings "
            "that it was started with, and --resume."
        )
    for name, holds in _SETTINGS.items():
        value: Any = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not holds(value):
            raise RunError(
                f"{folder / CONFIG} is not what a run writes: '{name}' is missing or damaged; restore the file from a "
                "copy, or train again into another folder."
            )
    if odd := contradiction(record):
        raise RunError(
            f"{folder / CONFIG} contradicts itself: {odd}; restore the file from a copy, or train again into another "
            "folder."
        )
    return record


def _is_split(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"train", "val", "test"}
        and all(
            isinstance(part, list) and all(isinstance(case, str) for case in part) for part in value.values()
        )
    )


def _is_path(value: Any, check: Callable[[str], None] = local_paths.check) -> bool:
    if not isinstance(value, str) or value == "":
        return False
    try:
        check(value)
    except local_paths.BadPath:
        return False
    return True


# What `evaluate`, `segment` and `weights export` take from the settings of a run.
_SETTINGS: dict[str, Callable[[Any], bool]] = {
    "weights": lambda value: value is None or _is_path(value),
    "dtype": lambda value: value in ("float32", "bfloat16"),
    "seed": lambda value: value is None or type(value) is int,
    "allow_geometry_mismatch": lambda value: value is None or isinstance(value, bool | int | float),
    "resolved.data": lambda value: _is_path(value, local_paths.check_source),
    "resolved.data_sha256": lambda value: isinstance(value, str),
    "resolved.split": _is_split,
}


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
    before = as_of_today(read_record(path))
    _refuse_changes(folder, _changes(before, config), "resume with")
    return True


def check_unchanged(folder: Path, settings: Mapping[str, Any], data_sha256: str) -> None:
    """Refuse a run of other settings, or of other data, than those that are asked for; nothing where there is no run.

    settings: as the run would record them, without what is resolved from them.

    Raises RunExists; RunError if the record of the run cannot be read.
    """
    path = folder / CONFIG
    if not path.exists():
        return
    before = dict(as_of_today(read_record(path)))
    resolved = before.pop(RESOLVED, None)
    changed = _changes(before, json.loads(json.dumps(settings)))
    then = resolved.get("data_sha256") if isinstance(resolved, dict) else None
    if then != data_sha256:
        changed.append(("data_sha256", then, data_sha256))
    _refuse_changes(folder, changed, "go on with")


def _refuse_changes(folder: Path, changed: list[tuple[str, Any, Any]], go_on: str) -> None:
    if changed:
        name, then, now = _innermost(*changed[0])
        raise RunExists(
            f"{folder} was started with {name:.80}={_short(then)}, now it is {_short(now)}; "
            f"{go_on} the same settings and data ({len(changed)} differ) or choose another --out."
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, before, now) of the settings that differ; if none does, of what was resolved from them.

    A setting that did not exist when the run was started does not differ while it is off, or what all runs then had.
    """
    before = {name: value for name, value in BEFORE_IT_EXISTED.items() if name in now} | dict(before)
    names = sorted((before.keys() | now.keys()) - {*FREE_TO_CHANGE, *WATCHING, RESOLVED})
    changed = [
        (n, before.get(n), now.get(n))
        for n in names
        if before.get(n) != now.get(n) and (n in before or now[n])
    ]
    if changed or before.get(RESOLVED) == now.get(RESOLVED):
        return changed
    then, resolved = before.get(RESOLVED), now.get(RESOLVED)
    if not isinstance(then, dict) or not isinstance(resolved, dict):
        return [(RESOLVED, then, resolved)]
    return _changes(then, resolved)


def _innermost(name: str, then: Any, now: Any) -> tuple[str, Any, Any]:
    """The first part of a setting of several parts that differs, under a name with dots."""
    while isinstance(then, dict) and isinstance(now, dict) and then != now:
        part = min((p for p in then.keys() | now.keys() if then.get(p) != now.get(p)), default=None)
        if part is None:
            break
        name, then, now = f"{name}.{part}", then.get(part), now.get(part)
    return name, then, now


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _remove_if_unused(folder: Path, created: list[Path]) -> None:
    """A command that was refused after all (bad data, for example) leaves no trace."""
    if folder.is_dir() and [p.name for p in folder.iterdir()] == [_LOCK]:
        (folder / _LOCK).unlink()
        with contextlib.suppress(OSError):  # something has been put in
            for part in created:
                part.rmdir()


def make_folder(folder: Path) -> None:
    """Create a folder for results. Raises RunError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_json(path: Path, record: Any) -> None:
    """Write JSON whole or not at all; NaN becomes null, because JSON has no word for it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            with open(temporary, "w") as file:
                json.dump(finite(record), file, indent=1, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:  # a signal may come as well
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within this block a full disk and a missing permission become RunError about ``path``."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"Cannot write {path}: {error.strerror or error}; free space or choose another folder."
        ) from error


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; raises RunError if it is missing or damaged (see ``json_text.parse``)."""
    try:
        return json_text.parse(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(
            f"{path} does not exist; is {path.parent} a run directory made by medvfm adapt?"
        ) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path} cannot be read as JSON ({why}); restore it or start another run.") from error


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run that holds an object; raises RunError as ``read_json`` does, and for other values."""
    record = read_json(path)
    if not isinstance(record, dict):
        raise RunError(f"{path} holds no JSON object; restore it or start another run.")
    return record


def append_metrics(folder: Path, record: Mapping[str, Any]) -> None:
    """Append one line to ``metrics.jsonl``. Raises RunError (full disk)."""
    path = folder / METRICS
    line = json.dumps(finite(record), allow_nan=False) + "\n"
    with writing(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # cut off by a kill: what follows must not be lost with it
                line = "\n" + line
        file.write(line.encode())


def read_metrics(folder: Path, damaged: list[int] | None = None) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``; a record behind the last line end was cut off by a kill and is left out.

    damaged: takes the numbers, from 1, of lines that hold no record; without it the first one is refused.
    Raises RunError, also for a file that cannot be read.
    """
    path = folder / METRICS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}); restore or delete it.") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json_text.parse_object(line)
            _check_record(record)
            records.append(record)
        except json_text.BadJson as error:
            if number == len(lines) and _begins_record(line):  # cut off by a kill, or nothing at all
                continue
            if damaged is None:
                raise RunError(
                    f"{path} is damaged at line {number} ({error}); restore the file, or take that line out."
                ) from error
            damaged.append(number)
    return records


def _begins_record(line: bytes) -> bool:
    """Whether a line that is no record may be the beginning of one."""
    return not line or (line.startswith(b"{") and not line.endswith(b"}"))


def _check_record(record: Mapping[str, Any]) -> None:
    """Raise BadJson unless the step is a whole number and nothing is a text where numbers are recorded."""
    step = record.get("step", 0)
    if type(step) is not int or step < 0:
        raise json_text.BadJson("its step is no whole number")
    text = next((name for name, value in record.items() if isinstance(value, str)), None)
    if text is not None:
        raise json_text.BadJson(f"its {text!r:.40} is no number")


def describe_damage(path: Path, damaged: list[int]) -> str:
    """ "X has 2 damaged lines (3, 7)", for callers that leave them out and report it."""
    shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    return f"{path} has {counted(len(damaged), 'damaged line')} ({shown})"


def truncate_metrics(folder: Path, step: int, say: Callable[[str], None]) -> None:
    """Forget what was logged after ``step``: a run resumed there logs it again.

    say: is told how many damaged lines go with it.  Raises RunError.
    """
    damaged: list[int] = []
    kept = [r for r in read_metrics(folder, damaged) if r.get("step", 0) <= step]
    if damaged:
        say(f"{describe_damage(folder / METRICS, damaged)}, which are dropped: the curves have a gap there")
    temporary = folder / f".{METRICS}.tmp"
    with writing(folder / METRICS):
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
