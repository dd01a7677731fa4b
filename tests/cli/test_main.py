"""`medvfm` itself: finding the command, help, unknown words, versions, failures as one sentence."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medvfm_jax import __version__
from medvfm_jax.cli import console, errors
from medvfm_jax.cli import weights as weights_command
from medvfm_jax.cli.main import COMMANDS, main
from medvfm_jax.types import MedvfmError

SUBCOMMANDS = [("weights", name) for name in ("list", "get", "verify", "convert", "export")]
ALL = [*((name,) for name in COMMANDS), *SUBCOMMANDS]


def in_a_process(*words, **options):
    """`medvfm WORDS` in a process of its own."""
    command = [sys.executable, "-m", "medvfm_jax.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize("words", ALL, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_explains_with_an_example_that_starts_with_the_command(medvfm, words, flag):
    result = medvfm(*words, flag)
    assert (result.code, result.err) == (0, "")
    assert f"Example: medvfm {' '.join(words)}" in " ".join(result.out.split())
    assert result.out.startswith(f"usage: medvfm {' '.join(words)} [-h]")


def test_the_overview_names_every_command_and_without_a_command_it_is_bad_usage(medvfm):
    result = medvfm("--help")
    assert (result.code, result.err) == (0, "")
    for name, what in COMMANDS.items():
        assert f"  {name} " in result.out
        assert what in result.out
    assert "example" in result.out
    assert medvfm() == (2, result.out, "")


def test_the_version(medvfm):
    for words in (("--version",), ("adapt", "--version")):
        assert medvfm(*words) == (0, f"medvfm {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["segmnt"], "there is no command 'segmnt'; did you mean segment; see `medvfm --help`"),
        (["xyz"], "there is no command 'xyz'; the commands are quickstart, weights"),
        (["adapt", "--dta", "d"], "there is no option --dta; did you mean --data; see `medvfm adapt --help`"),
        (["adapt", "--data", "d", "--stps=3"], "there is no option --stps; did you mean --steps"),
        (["segment", "a.png", "--out", "m", "--boxx", "1"], "there is no option --boxx; did you mean --box"),
        (["report", "r", "--aut", "x"], "there is no option --aut; did you mean --out"),
        (["evaluate", "--rnu", "r"], "there is no option --rnu; did you mean --run"),
        (["quickstart", "--jsno"], "there is no option --jsno; did you mean --json"),
        (["quickstart", "--qqqqqq"], "there is no option --qqqqqq; see `medvfm quickstart --help`"),
        (["quickstart", "more"], "'more' belongs to no option"),
        (["weights", "lst"], "there is no subcommand 'lst'; did you mean list; see `medvfm weights --help`"),
        (["weights"], "say which: list, get, verify, convert, export or import; see `medvfm weights --help`"),
        (["weights", "convert", "f", "--too", "m"], "did you mean --to; see `medvfm weights convert --help`"),
        (["weights", "convert"], "FILE and --to are missing; see `medvfm weights convert --help`"),
        (["adapt"], "--data is missing; see `medvfm adapt --help`"),
        (["adapt", "--data"], "--data needs a value"),
        (["adapt", "--data", "d", "--steps", "many"], "--steps is 'many'; expected a whole number"),
        (["adapt", "--data", "d", "--warmup", "x"], "--warmup is 'x'; expected a number"),
        (["adapt", "--data", "d", "--learning-rate", "x"], "--learning-rate is 'x'; expected a number"),
        (["adapt", "--data", "d", "--accumulate", "x"], "--accumulate is 'x'; expected a whole number"),
        (["adapt", "--data", "d", "--steps", "0"], "medvfm: steps is 0; expected at least 1"),
        (["adapt", "--data", "d", "--prompt", "circle"],
         "--prompt is 'circle'; expected auto, none, box, point or mixed"),
        (["segment", "a", "--out", "m", "--box", "1", "2", "3"], "--box needs 4 values and has 3"),
        (["segment", "a", "--out", "m", "--point", "1", "2", "x"],
         "--point is '1 2 x'; expected a number, a number, a whole number"),
        (["evaluate", "--run", "r", "--split", "tst"], "--split is 'tst'; expected test, val, train or all"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_sentence_that_names_the_nearest(medvfm, words, sentence):
    medvfm(*words).refused(sentence, code=2)


def test_an_unknown_command_in_a_process(tmp_path):
    result = in_a_process("evalute", "--run", "r", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert (
        result.stderr == "medvfm: there is no command 'evalute'; did you mean evaluate; see `medvfm --help`\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_help_and_usage_errors_do_not_wait_for_jax(tmp_path):
    program = (
        "import sys\nfrom medvfm_jax.cli.main import main\n"
        "codes = [main(w.split()) for w in ('--help', '--version', 'segmnt')]\n"
        "print(codes, 'jax' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stderr.splitlines()[-1] == "[0, 0, 2] False False"


class Command:
    """A command that does as it is told instead of `weights list`."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch

    def fails_with(self, error):
        def run(args):
            print("progress")
            raise error

        self.patch.setattr(weights_command, "run", run)


@pytest.fixture
def command(monkeypatch):
    return Command(monkeypatch)


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (MedvfmError("The file\n  is bad."), 1, "The file is bad."),
        (errors.BadUsage("not so"), 2, "not so"),
        (KeyboardInterrupt(), 130, "interrupted; what was committed so far is kept"),
        (OSError(errno.ENOSPC, "x", "a/b"), 1, "the disk is full while writing a/b"),
        (OSError(errno.EACCES, "x", "a/b"), 1, "no permission for a/b; choose another folder"),
        (OSError(errno.EROFS, "x", "a/b"), 1, "file system of a/b is read-only"),
        (OSError(errno.ENOENT, "x", "a/b"), 1, "no such file or folder: a/b"),
        (OSError(errno.EISDIR, "x", "a/b"), 1, "a/b is a folder, a file was expected"),
        (OSError(errno.ENAMETOOLONG, "x", "a" * 300), 1, "the name of a file or folder is too long"),
        (OSError(errno.ENOTDIR, "x", "a/b"), 1, "a/b is a file, a folder was expected"),
        (OSError(errno.EPIPE, "x"), 1, "the program reading this output closed it"),
        (RuntimeError("... No space left on device ..."), 1, "the disk is full"),
        (MemoryError(), 1, "out of memory; use a smaller --batch-size"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GiB"), 1, "out of memory"),
        (ZeroDivisionError("by\nzero"), 1, "unexpected ZeroDivisionError: by zero (run again with --debug"),
        (RuntimeError("x" * 1000), 1, "x" * 297 + "..."),
        (RuntimeError(), 1, "unexpected RuntimeError: no message"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_failure_is_one_sentence_and_a_code(medvfm, command, error, code, sentence):
    command.fails_with(error)
    result = medvfm("weights", "list")
    assert result.code == code
    assert result.out == "progress\n"
    assert result.err.startswith(f"medvfm: {sentence}" if code != 1 else "medvfm: ")
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert len(result.err) < 420


def test_what_a_failure_was_raised_from_counts(medvfm, command):
    inner = MedvfmError("The cause.")
    outer = RuntimeError("jit failed")
    outer.__cause__ = inner
    command.fails_with(outer)
    assert medvfm("weights", "list").err == "medvfm: The cause.\n"


def test_debug_adds_the_traceback(medvfm, command):
    command.fails_with(MedvfmError("Bad."))
    result = medvfm("weights", "list", "--debug")
    assert result.code == 1
    assert result.err.startswith("Traceback")
    assert result.err.endswith("medvfm: Bad.\n")


def test_json_goes_to_stdout_alone_and_everything_else_to_stderr(capsys):
    record = {"value": float("nan"), "array": np.arange(2), "path": Path("a") / "b"}
    with console.output_mode(json_mode=True):
        console.say("one")
        console.warn("two\nlines")
        console.result(record, "text")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"value": None, "array": [0, 1], "path": "a/b"}
    assert err == "one\nwarning: two lines\n"
    console.say("one")
    console.result(record, "text")
    assert capsys.readouterr() == ("one\ntext\n", "")
    assert not console.json_mode()


def test_the_published_weights_as_json_and_as_a_table(medvfm):
    known = {entry["name"]: entry for entry in medvfm("weights", "list", "--json").json["weights"]}
    assert known["lite-medsam"]["licence"] == "Apache-2.0"
    assert known["lite-medsam"]["cached"] is None
    table = medvfm("weights", "list").out.splitlines()
    assert table[0].split() == ["name", "size", "licence", "prompts", "cached", "sha256"]
    assert [line.split()[0] for line in table[2 : 2 + len(known)]] == list(known)


def test_main_reads_the_command_line_when_nothing_is_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["medvfm", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"medvfm {__version__}\n"
