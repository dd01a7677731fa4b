"""`medvfm adapt`, killed or out of disk at any moment, ends with the bits of an undisturbed run."""

import errno
import functools
import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from medvfm_jax.cli.main import main
from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.train import checkpoint
from medvfm_jax.weights import artifacts
from tests.cli.killed_commands import after, disturbed_run, in_a_checkpoint_after, starting, while_it_compiles
from tests.train.small_runs import SMALL, build_models_once, programs_kept

SEED = 20


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("data") / "cells", "cells", 10, size=32)


def arguments(cells, out, **settings):
    options = SMALL | {"data": cells, "out": out} | settings
    flags = (f"--{name.replace('_', '-')}" for name in options)
    return ["adapt", *(word for pair in zip(flags, map(str, options.values())) for word in pair)]


@pytest.fixture
def start(tmp_path, tmp_path_factory, cells):
    """Start `medvfm adapt` in a process of its own."""
    programs = tmp_path_factory.getbasetemp() / "compiled_adapt"
    with starting(functools.partial(arguments, cells), tmp_path, programs) as start_:
        yield start_


def same_result(undisturbed: Path, disturbed: Path, steps: int) -> None:
    """The same delta to the last bit, the same metrics, each step once."""
    (a, about_a), (b, about_b) = (
        artifacts.load_delta(f / "delta.safetensors") for f in (undisturbed, disturbed)
    )
    assert about_a == about_b
    assert leaves_of(a) == leaves_of(b)
    assert (undisturbed / "delta.safetensors").read_bytes() == (disturbed / "delta.safetensors").read_bytes()
    for folder in (undisturbed, disturbed):
        assert [r["step"] for r in read_metrics(folder) if "loss" in r] == list(range(1, steps + 1))
    assert numbers_of(undisturbed) == numbers_of(disturbed)


def leaves_of(tree, path=()):
    if isinstance(tree, dict):
        return {k: v for name, child in tree.items() for k, v in leaves_of(child, (*path, name)).items()}
    return {path: (tree.dtype, tree.shape, tree.tobytes())}


def numbers_of(folder):
    """The metrics without those that depend on the clock."""
    clock = ("time", "images_per_s", "seconds_")
    return [{k: v for k, v in r.items() if not k.startswith(clock)} for r in read_metrics(folder)]


@pytest.mark.slow
def test_killed_five_times_it_ends_with_the_same_bits(start, tmp_path):
    settings = {"steps": 160, "validate_every": 16, "checkpoint_every": 7}
    start(tmp_path / "undisturbed", **settings).finish()
    rng = random.Random(SEED)
    moments = [
        after(rng.randrange(1, 7)),  # before the first checkpoint
        after(rng.randrange(15, 30)),
        while_it_compiles,
        in_a_checkpoint_after(rng.randrange(40, 55)),
        after(rng.randrange(65, 85)),
    ]
    disturbed_run(start, tmp_path / "disturbed", moments, **settings)
    same_result(tmp_path / "undisturbed", tmp_path / "disturbed", 160)
    assert not list((tmp_path / "disturbed" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_killed_with_an_adapted_encoder_changed_images_and_all_optimisations(start, tmp_path):
    settings = {
        "model": "lite-tiny-test", "adapter": "samed", "prompt": "none", "augment": "full", "steps": 120,
        "validate_every": 9, "checkpoint_every": 5,
    }  # fmt: skip
    start(tmp_path / "undisturbed", quick=False, **settings).finish()
    rng = random.Random(SEED)
    moments = [after(low + rng.randrange(15)) for low in (1, 20, 40, 60)]
    disturbed_run(start, tmp_path / "disturbed", [*moments, while_it_compiles], quick=False, **settings)
    same_result(tmp_path / "undisturbed", tmp_path / "disturbed", 120)


@pytest.fixture(scope="module")
def in_process(cells, tmp_path_factory):
    """(run, undisturbed): runs `medvfm adapt` within this process; the folder of a whole run of 6 steps."""
    root = tmp_path_factory.mktemp("in_process")
    with pytest.MonkeyPatch.context() as patch, programs_kept(tmp_path_factory.getbasetemp() / "compiled"):
        build_models_once(patch)
        patch.setenv("MEDVFM_CACHE", str(root / "cache"))
        patch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # which the command adds to

        def run(out, *flags):
            return main([*arguments(cells, out), *flags])

        assert run(root / "undisturbed") == 0
        yield run, root / "undisturbed"


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


class Failing:
    """Does as the function it replaces until it has been called ``good`` times, then the disk is full."""

    def __init__(self, function, good):
        self.function, self.good = function, good

    def __call__(self, *arguments):
        self.good -= 1
        return self.function(*arguments) if self.good >= 0 else full_disk()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["arrays", "rename"])
def test_a_full_disk_is_one_sentence_and_the_run_continues_where_there_is_room(
    in_process, tmp_path, monkeypatch, capsys, part
):
    run, undisturbed = in_process
    with monkeypatch.context() as patch:  # the second of the checkpoints, after step 4, does not fit
        if part == "rename":
            patch.setattr(checkpoint.os, "rename", Failing(os.rename, 1))
        else:
            patch.setattr(checkpoint, "_write_file", Failing(checkpoint._write_file, 2))
        assert run(tmp_path / "run") == 1
    complaint = capsys.readouterr().err.strip().splitlines()
    assert len(complaint) == 1
    assert complaint[0].startswith("medvfm: The disk is full while writing checkpoint ")
    assert complaint[0].endswith(
        "free some space, then run the same command with --resume (step_00000002 is intact)."
    )
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    assert run(tmp_path / "run", "--resume") == 0
    assert "resuming at step 2 of 6" in capsys.readouterr().out
    same_result(undisturbed, tmp_path / "run", 6)


@pytest.mark.slow
def test_a_disk_too_full_for_the_result_keeps_the_last_checkpoint(in_process, tmp_path, monkeypatch, capsys):
    run, undisturbed = in_process
    with monkeypatch.context() as patch:
        patch.setattr(artifacts.safetensors_files, "publish", full_disk)
        assert run(tmp_path / "run") == 1
    (complaint,) = capsys.readouterr().err.strip().splitlines()
    assert "disk is full" in complaint
    assert not (tmp_path / "run" / "delta.safetensors").exists()
    assert run(tmp_path / "run", "--resume") == 0
    same_result(undisturbed, tmp_path / "run", 6)


@pytest.mark.slow
def test_metrics_that_do_not_fit_are_one_sentence(in_process, tmp_path, monkeypatch, capsys):
    run, undisturbed = in_process
    append = Failing(open, 5)  # four steps and a validation

    def opened(path, mode="r", *others):
        return (append if mode.startswith("a") and Path(path).name == "metrics.jsonl" else open)(
            path, mode, *others
        )

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "open", opened, raising=False)
        assert run(tmp_path / "run") == 1
    (complaint,) = capsys.readouterr().err.strip().splitlines()
    assert "metrics.jsonl: No space left on device; free space" in complaint
    assert run(tmp_path / "run", "--resume") == 0
    assert "resuming at step 4 of 6" in capsys.readouterr().out
    same_result(undisturbed, tmp_path / "run", 6)


@pytest.mark.slow
def test_asked_to_end_it_commits_the_step_in_progress_and_continues_there(
    in_process, tmp_path, monkeypatch, capsys
):
    run, undisturbed = in_process
    write = checkpoint.write

    def write_and_interrupt(folder, written):
        if written.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(folder, written)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write", write_and_interrupt)
        assert run(tmp_path / "run") == 143
    assert "ended by SIGTERM; what was committed so far is kept" in capsys.readouterr().err
    assert run(tmp_path / "run", "--resume") == 0
    assert "resuming at step 3 of 6" in capsys.readouterr().out
    same_result(undisturbed, tmp_path / "run", 6)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(in_process, tmp_path, capsys):
    run, undisturbed = in_process
    assert run(tmp_path / "run") == 0
    (tmp_path / "run" / "delta.safetensors").unlink()
    arrays = tmp_path / "run" / "checkpoints" / "step_00000006" / "arrays.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1])
    assert run(tmp_path / "run", "--resume") == 0
    said = capsys.readouterr().out
    assert "step_00000006 is damaged" in said
    assert "resuming at step 4 of 6" in said
    same_result(undisturbed, tmp_path / "run", 6)


def test_with_json_the_result_is_one_object(in_process, tmp_path, capsys):
    run, undisturbed = in_process
    capsys.readouterr()
    assert run(undisturbed, "--resume", "--json") == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert (record["step"], record["folder"]) == (6, str(undisturbed))
    assert np.isfinite(record["val_dice"])
    assert "resuming at step 6 of 6" in err
