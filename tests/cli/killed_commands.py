"""Commands in processes of their own that are killed with SIGKILL and started again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from medvfm_jax.runs import run_directory

PATIENCE = 240.0  # seconds until a process is given up; only machines that hang come near


class Command:
    """A running `medvfm` process and what it has written so far."""

    def __init__(self, arguments, folder, log, environment):
        self.folder, self.log = folder, log
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "medvfm_jax.cli.main", *arguments],
                stdout=output, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip

    def finish(self):
        code = self.process.wait(PATIENCE)
        assert code == 0, self.log.read_text()

    def kill_when(self, moment):
        """SIGKILL as soon as ``moment(self)`` holds; fails if the process ends by itself before."""
        until = time.monotonic() + PATIENCE
        while not moment(self):
            assert self.process.poll() is None, f"ended before it was killed: {self.log.read_text()}"
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.001)
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def said(self, text):
        return text in self.log.read_text()

    def logged(self):
        """Number of the last step in the metrics."""
        path = self.folder / run_directory.METRICS
        lines = path.read_bytes().rsplit(b"\n", 2) if path.exists() else []
        return json.loads(lines[-2])["step"] if len(lines) > 1 else 0

    def is_writing_a_checkpoint(self):
        return any((self.folder / "checkpoints").glob(".step_*.tmp"))


def after(step):
    return lambda command: command.logged() >= step


def in_a_checkpoint_after(step):
    return lambda command: command.is_writing_a_checkpoint() and command.logged() >= step


def while_it_compiles(command):
    return command.said("resuming at ")


@contextlib.contextmanager
def starting(words, folder, programs):
    """``start(out, *flags, quick=True, **settings)`` runs what ``words(out, **settings)`` gives, as a Command.

    folder: for logs and the cache of downloads.  programs: for compiled programs, which all processes share.
    """
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MEDVFM_CACHE": str(folder / "cache"),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": "",
    }
    running = []

    def start(out, *flags, quick=True, **settings):
        options = {"JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(quick))}
        log = folder / f"{out.name}_{len(running)}.log"
        running.append(Command([*words(out, **settings), *flags], out, log, environment | options))
        return running[-1]

    try:
        yield start
    finally:
        for command in running:
            command.process.kill()
            command.process.wait()


def disturbed_run(start, out, moments, **settings):
    for moment in moments:
        start(out, "--resume", **settings).kill_when(moment)
    start(out, "--resume", **settings).finish()
