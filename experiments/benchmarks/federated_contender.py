"""A contender of `federated_rounds` as a process of its own interpreter that runs rounds when asked."""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.federated_problem import ANSWER, Problem

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("jax", "jaxlib", "pfl", "torch", "flwr", "ray", "blazefl", "numpy")
_VERSIONS = """
import importlib.metadata as m, json, sys
found = {d.metadata["Name"]: d.version for d in m.distributions()}
print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))
"""
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


class Lost(Exception):
    """A contender ended before it answered."""


class Contender(NamedTuple):
    """python: its interpreter.  module: what to run.  options: passed on as JSON."""

    python: str
    module: str
    options: Mapping[str, Any]

    def versions(self) -> dict[str, str]:
        """Installed versions of the packages that matter."""
        command = [self.python, "-c", _VERSIONS, *PACKAGES]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class Process:
    """A running contender; `loaded` holds what it said of itself when it was ready, and what that took.

    "ready_cpu_seconds" is the processor time of starting, loading and compiling, which no round contains.
    """

    def __init__(self, contender: Contender, problem: Problem, log: Path):
        facts = json.dumps(problem._asdict() | {"folder": str(problem.folder)})
        command = [contender.python, "-m", contender.module, facts, json.dumps(dict(contender.options))]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._log = log
        start = time.perf_counter()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env=os.environ | _QUIET | {"PYTHONPATH": path},
            )
        self.loaded = self._answer() | {"ready_after_s": time.perf_counter() - start}
        self.loaded["ready_cpu_seconds"] = _cpu_seconds(self._process.pid)

    def ask(self, rounds: int, *, evaluate: bool = False, save: str | None = None) -> dict[str, Any]:
        """Run rounds -> {"seconds", "cpu_seconds" of all its processes, "test_loss"}.  Raises Lost."""
        request = {"rounds": rounds, "evaluate": evaluate, "save": save}
        before = _cpu_seconds(self._process.pid)
        with suppress(BrokenPipeError):  # the reason is in the log
            print(json.dumps(request), file=self._process.stdin, flush=True)
        facts = self._answer()
        return facts | {"cpu_seconds": _cpu_seconds(self._process.pid) - before}

    def stop(self) -> None:
        """End the process; it stops by itself when its input ends."""
        with suppress(BrokenPipeError):  # it ended before
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        lines = self._log.read_text().strip().splitlines() or [f"exit code {self._process.wait()}"]
        raise Lost(lines[-1][:300])


@contextmanager
def started(problem: Problem, contenders: Mapping[str, Contender]) -> Iterator[dict[str, Process]]:
    """Running contenders by name; one that does not start is left out."""
    with ExitStack() as stack:
        running = {}
        for i, (name, contender) in enumerate(contenders.items()):
            try:
                running[name] = Process(contender, problem, problem.folder / f"log_{i}.txt")
            except Lost as error:
                print(f"  {name} did not start: {error}", flush=True)
                continue
            stack.callback(running[name].stop)
        yield running


def _cpu_seconds(root: int) -> float:
    """Processor time of a process and its living descendants, and of the ended ones they waited for; Linux only."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it ended meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                pid = int(entry.name)
                parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")
