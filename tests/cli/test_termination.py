"""SIGTERM and Ctrl-C, at any moment of any command: one sentence, 128 + the signal, nothing half-written."""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import medvfm_jax
from medvfm_jax import termination
from medvfm_jax.cli import report as report_command
from medvfm_jax.cli.main import COMMANDS, main
from medvfm_jax.runs import interruption
from tests.cli.commands import contents

PATIENCE = 120.0
KEPT = {
    signal.SIGTERM: (143, "medvfm: ended by SIGTERM; what was committed so far is kept\n"),
    signal.SIGINT: (130, "medvfm: interrupted; what was committed so far is kept\n"),
}
# Marks the moment at which a module is about to be imported, and holds the process there.
HELD = """
import runpy, sys, time
_, program, module, *words = sys.argv
class Held:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            print("held", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Held())
sys.argv = ["medvfm", *words]
runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


def signalled_at(module, number, *words, cwd, program="medvfm_jax"):
    """`python -m PROGRAM WORDS`, signalled when it imports ``module``: (exit code, stdout, stderr)."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, program, module, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(Path(medvfm_jax.__file__).parents[1])},
    )
    try:
        assert process.stdout.readline() == "held\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def nothing_done(number):
    word = {signal.SIGTERM: "ended by SIGTERM", signal.SIGINT: "interrupted"}[number]
    return 128 + number, "", f"medvfm: {word} before anything was done\n"


@pytest.mark.parametrize("program", ["medvfm_jax", "medvfm_jax.cli.main"])
@pytest.mark.parametrize("number", KEPT, ids=lambda n: n.name)
def test_before_the_command_line_is_there(program, number, tmp_path):
    result = signalled_at("medvfm_jax.cli.console", number, "report", "r", cwd=tmp_path, program=program)
    assert result == nothing_done(number)


@pytest.mark.parametrize("name", COMMANDS)
def test_while_a_command_is_imported(name, tmp_path):
    number = signal.SIGTERM if len(name) % 2 else signal.SIGINT
    options = f"medvfm_jax.cli.options.{name}"
    assert signalled_at(options, number, name, "--help", cwd=tmp_path) == nothing_done(number)
    assert list(tmp_path.iterdir()) == []


def test_within_the_start_of_an_extension_in_c(tmp_path):
    """jaxlib's start imports this one and makes ImportError of whatever is raised there."""
    result = signalled_at("ml_dtypes", signal.SIGTERM, "report", "r", cwd=tmp_path)
    assert result == nothing_done(signal.SIGTERM)


def and_wait(call, *arguments):
    call(*arguments)
    time.sleep(5)


@pytest.mark.parametrize("number", KEPT, ids=lambda n: n.name)
def test_an_import_ends_before_the_signal_that_came_within_it_is_raised(number, tmp_path, monkeypatch):
    name = f"signalled_{number.name.lower()}"
    (tmp_path / f"{name}.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.05)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(termination.SIGNALS[number]) as caught, termination.raised():
        and_wait(importlib.import_module, name)
    assert caught.type is termination.SIGNALS[number]
    assert sys.modules.pop(name).whole


def test_the_second_signal_waits_for_an_import_too(tmp_path, monkeypatch):
    (tmp_path / "signalled_twice.py").write_text(
        "import os\nfor _ in range(2):\n    os.kill(os.getpid(), 15)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(termination.Terminated), interruption.deferred() as asked:
        and_wait(importlib.import_module, "signalled_twice")
    assert asked()
    assert sys.modules.pop("signalled_twice").whole


class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_that_a_finaliser_ignores_is_raised_again(capfd):
    with pytest.raises(termination.Terminated), termination.raised():
        and_wait(Finalised)
    assert capfd.readouterr() == ("", "")


def test_a_signal_that_foreign_code_drops_is_raised_at_the_end():
    with pytest.raises(termination.Terminated), termination.raised(), contextlib.suppress(BaseException):
        and_wait(os.kill, os.getpid(), signal.SIGTERM)


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As Ctrl-C in what a script starts with &."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with termination.raised():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", KEPT, ids=lambda n: n.name)
def test_during_a_report_the_page_before_stays(number, medvfm, scored, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    medvfm("report", scored, "--out", out)
    before = contents(tmp_path)
    replace = os.replace

    def interrupted(*paths):
        os.kill(os.getpid(), number)
        replace(*paths)

    monkeypatch.setattr(os, "replace", interrupted)
    code, sentence = KEPT[number]
    assert medvfm("report", scored, "--out", out) == (code, "", sentence)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("words", [("evaluate", "--run"), ("segment", "{image}", "--out", "{out}", "--run")])
def test_during_a_prediction_nothing_is_left(words, medvfm, trained, white, tmp_path, monkeypatch):
    from medvfm_jax.images import writing

    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "out"
    out.mkdir()
    words = [word.format(image=white, out=out / "mask.png") for word in words]
    extra = ["--out", out / "x.json"] if words[0] == "evaluate" else ["--box", 1, 1, 8, 8]
    monkeypatch.setattr(writing.os, "fsync", interrupted)  # in the middle of writing a mask
    code, sentence = KEPT[signal.SIGTERM]
    result = medvfm(*words, trained, *extra)
    assert (result.code, result.err.splitlines()[-1] + "\n") == (code, sentence)
    assert list(out.iterdir()) == []


def test_the_handler_of_whoever_calls_main_comes_back(monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    seen = []
    monkeypatch.setattr(
        report_command, "run", lambda args: seen.append(signal.getsignal(signal.SIGTERM)) or 0
    )
    assert main(["report", "r"]) == 0
    assert seen[0] is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_terminated_is_a_kind_of_interruption():
    """So that what is cleared away after Ctrl-C is cleared away after SIGTERM."""
    assert issubclass(termination.Terminated, KeyboardInterrupt)
    with pytest.raises(termination.Terminated), termination.raised():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_an_evaluation_in_a_process_is_ended_and_run_again(number, trained, tmp_path):
    """SIGKILL leaves a hidden folder, SIGTERM nothing; the next evaluation is whole either way."""
    out = tmp_path / "new" / "x.json"
    words = [
        sys.executable,
        "-m",
        "medvfm_jax",
        "evaluate",
        "--run",
        str(trained),
        "--split",
        "all",
        "--out",
        str(out),
    ]
    hidden = out.with_name(".x.json.unfinished")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + PATIENCE
    while not list(hidden.glob("predictions_x/*.png")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    if number == signal.SIGTERM:
        assert (process.returncode, err.splitlines()[-1] + "\n") == KEPT[number]
        assert list(out.parent.iterdir()) == []
    else:
        assert process.returncode == -signal.SIGKILL
        assert [p.name for p in out.parent.iterdir()] == [hidden.name]
    again = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0, again.stderr
    assert ("was killed; it is made anew" in again.stderr) == (number == signal.SIGKILL)
    assert sorted(p.name for p in Path(out.parent).iterdir()) == ["overlays_x", "predictions_x", "x.json"]
    assert len(list((out.parent / "predictions_x").iterdir())) == 6
