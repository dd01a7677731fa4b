"""Another program that does the same rows, asked in turns with ours: PyTorch, where this is a clone with [parity].

The package imports no PyTorch.  The peer is a program beside it, ``experiments/benchmarks/torch_rows.py``, in a process
of its own; it reads one JSON object per line and answers with one, after ``ANSWER``.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from medvfm_jax import json_text
from medvfm_jax.bench.alone import ROOT, surroundings

NAME = "PyTorch"
ANSWER = "@medvfm-bench "
_MODULE = "experiments.benchmarks.torch_rows"


class Lost(Exception):
    """The peer ended, or cannot do what it was asked."""


class Peer:
    """A running peer."""

    def __init__(self, module: str = _MODULE):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by stop
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=surroundings(),
        )

    def prepare(self, model: str, row: str, batch_size: int) -> None:
        """Load the row and run it once.  Raises Lost if the peer has no such row or fails."""
        self._ask({"prepare": [model, row, batch_size]})

    def run(self, model: str, row: str) -> float:
        """Seconds of one run of a prepared row.  Raises Lost."""
        seconds = self._ask({"run": [model, row]}).get("seconds")
        if type(seconds) not in (int, float) or seconds <= 0:
            raise Lost("its answer names no seconds")
        return float(seconds)

    def stop(self) -> None:
        """End the process; it stops by itself when its input ends."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with suppress(BrokenPipeError):  # the reason is in the log
            print(json.dumps(request), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                try:
                    answer = json_text.parse_object(line.removeprefix(ANSWER))
                except json_text.BadJson as error:
                    raise Lost(f"its answer cannot be read: {error}") from error
                if "failed" in answer:
                    raise Lost(str(answer["failed"])[:300])
                return answer
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or [f"exit code {self._process.wait()}"]
        raise Lost(lines[-1][:300])


def missing() -> str | None:
    """Why there is no peer, and what to do; None if there is one.  Nothing of it is imported."""
    if not (ROOT / f"{_MODULE.replace('.', '/')}.py").exists():
        return "the comparison with PyTorch is in the repository, not in the package: run medvfm bench from a clone"
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed: pip install -e '.[parity]' in the clone"
    return None


@contextmanager
def started() -> Iterator[Peer]:
    """A peer that is ended afterwards, whatever happens."""
    peer = Peer()
    try:
        yield peer
    finally:
        peer.stop()
