"""How the wall time of a run was spent, over all its attempts, and the share of it that counts.

``times.jsonl`` is only ever appended to, one line for a stretch of time: {"attempt": when the attempt began, "step":
steps taken at its end, "seconds": {what: seconds}, "time"}.  An attempt begins with a line at the step that it goes on
from.  Lines end where checkpoints are written, so that what a resumed run does again is known exactly.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medvfm_jax import json_text
from medvfm_jax.runs import run_directory

TIMES = "times.jsonl"
STEPS, DATA, VALIDATION, CHECKPOINT, COMPILATION, START, OTHER = WHAT = (
    "steps", "data", "validation", "checkpoint", "compilation", "start", "other",
)  # fmt: skip
REPEATED = "repeated"


class Goodput(NamedTuple):
    """Where the wall time of a run went.

    Attributes:
        share: of the wall time that went into training steps that count.
        wall: seconds of all attempts together; the time between them is not in it.
        attempts: how often the run was started.
        seconds: {what: seconds}, their sum is ``wall``; under "repeated" everything that an attempt did after the
            checkpoint that the next one went on from.
    """

    share: float
    wall: float
    attempts: int
    seconds: dict[str, float]

    def describe(self) -> str:
        """One line for the user, largest part first."""
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        shown = ", ".join(
            f"{what} {value / self.wall:.0%}" for what, value in parts if value / self.wall >= 0.005
        )
        times = "" if self.attempts == 1 else f" in {self.attempts} attempts"
        return f"goodput {self.share:.0%} of {self.wall:.0f} s{times}: {shown}"


def summarise(lines: Iterable[Mapping[str, Any]]) -> Goodput | None:
    """Lines of ``times.jsonl`` -> where the time went; None without any time.

    A stretch counts unless a later attempt began before its end, for its steps were then taken again.
    """
    first: dict[
        float, int
    ] = {}  # attempt -> the step it went on from, in the order of the file: clocks may go back
    stretches = []
    for line in lines:
        first.setdefault(line["attempt"], line["step"])
        stretches.append((line["attempt"], line["step"], line["seconds"]))
    seconds = dict.fromkeys((*WHAT, REPEATED), 0.0)
    number = {attempt: i for i, attempt in enumerate(first)}
    for attempt, step, spent in stretches:
        again = any(number[later] > number[attempt] and begin < step for later, begin in first.items())
        for what, value in spent.items():
            seconds[REPEATED if again else what] += value
    wall = sum(seconds.values())
    if not wall:
        return None
    return Goodput(seconds[STEPS] / wall, wall, len(first), {k: v for k, v in seconds.items() if v})


def append(folder: Path, attempt: float, step: int, seconds: Mapping[str, float], now: float) -> None:
    """Add a stretch of time to ``times.jsonl``.  Raises RunError (full disk)."""
    rounded = {what: round(value, 6) for what, value in seconds.items() if value > 0}
    line = json.dumps({"attempt": attempt, "step": step, "seconds": rounded, "time": round(now, 3)}) + "\n"
    path = folder / TIMES
    with run_directory.writing(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # cut off by a kill
                line = "\n" + line
        file.write(line.encode())


def read(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """-> (lines of ``times.jsonl``, how many hold no such record and are left out).  Raises RunError."""
    path = folder / TIMES
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise run_directory.RunError(
            f"{path} cannot be read ({error.strerror or error}); restore or delete it."
        ) from error
    found = [record for record in map(_record, lines) if record is not None]
    return found, len(lines) - len(found)


def of_run(folder: Path) -> Goodput | None:
    """Where the time of a run went; None for one without ``times.jsonl``.  Raises RunError."""
    return summarise(read(folder)[0])


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json_text.parse_object(line)
    except json_text.BadJson:
        return None
    spent, step = record.get("seconds"), record.get("step")
    good = (
        _is_amount(record.get("attempt"))
        and type(step) is int
        and step >= 0
        and isinstance(spent, dict)
        and all(what in WHAT and _is_amount(value) for what, value in spent.items())
    )
    return record if good else None


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")
