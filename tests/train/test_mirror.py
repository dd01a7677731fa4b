"""`adapt --mirror`: a run whose machine is lost goes on elsewhere from its copy, with the same bits."""

import contextlib
import shutil
from types import SimpleNamespace

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medvfm_jax.parallel.placement import Placement
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.runs.stored_copy import MirrorError
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.termination import Terminated
from medvfm_jax.train import adapt
from medvfm_jax.train.adaptation import _leaving_together
from medvfm_jax.train.loop import AGREED, NonFiniteLoss
from tests.train.small_runs import small

URL = "memory://bucket/run"


@pytest.fixture(autouse=True)
def empty_memory():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.mark.slow
def test_a_run_goes_on_from_its_copy_on_another_machine(finished, cells, tmp_path, monkeypatch, capsys):
    config = {"mirror": URL, "checkpoint_every": 2, "validate_every": 3}
    append = run_directory.append_metrics

    def killed(folder, record):
        append(folder, record)
        if record["step"] == 5:
            raise run_directory.RunError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "append_metrics", killed)
        with pytest.raises(run_directory.RunError, match="the machine is gone"):
            adapt(small(cells, tmp_path / "here", **config))
    shutil.rmtree(tmp_path / "here")
    with pytest.raises(MirrorError, match="already holds the copy of a run"):
        adapt(small(cells, tmp_path / "new", **config))
    assert not (tmp_path / "new").exists()

    result = adapt(small(cells, tmp_path / "there", resume=True, **config))
    said = capsys.readouterr().err
    assert f"the run was brought from {URL}" in said
    assert "resuming at step 4 of 6" in said
    assert f"{URL} holds the run as it is here" in said
    assert result.delta.read_bytes() == finished.delta.read_bytes()
    assert [r["step"] for r in read_metrics(result.folder) if "loss" in r] == [1, 2, 3, 4, 5, 6]

    again = adapt(
        small(cells, tmp_path / "third", resume=True, **config)
    )  # a finished run is brought and ends
    assert again.delta.read_bytes() == finished.delta.read_bytes()
    assert len(read_metrics(again.folder)) == len(read_metrics(result.folder))


def test_without_a_copy_a_run_starts_at_the_beginning(cells, tmp_path, capsys, compiled):
    adapt(small(cells, tmp_path / "run", resume=True, mirror=URL, steps=2, validate_every=0))
    said = capsys.readouterr().err
    assert f"{URL} holds no copy of a run yet: this one starts at the beginning" in said
    assert f"{URL} holds the run as it is here" in said


def test_a_run_whose_process_was_killed_while_it_took_its_place_goes_on(cells, tmp_path, capsys, compiled):
    config = {"mirror": URL, "steps": 2, "validate_every": 0}
    adapt(small(cells, tmp_path / "run", **config))
    folder = tmp_path / "run"
    (folder / ".brought").mkdir()
    for name in ("config.json", "metrics.jsonl"):  # the others lie in their places
        (folder / name).rename(folder / ".brought" / name)
    capsys.readouterr()
    adapt(small(cells, folder, resume=True, **config))
    assert "resuming at step 2 of 2" in capsys.readouterr().err
    assert not (folder / ".brought").exists()


def test_a_mirror_is_a_url(cells, tmp_path):
    with pytest.raises(BadConfig, match="mirror"):
        small(cells, tmp_path / "run", mirror="runs/copy")


@pytest.mark.slow
def test_the_processes_of_a_run_part_only_when_its_last_copy_is_there(cells, tmp_path, compiled):
    """One that waits to end waits for a minute, and then JAX ends the one that copies too."""
    seen = []

    class Watched(Placement):
        def any(self, flag):
            stored = MemoryFileSystem().store
            seen.append("/bucket/run/manifest.json" in stored and any("delta" in name for name in stored))
            return flag

    config = small(cells, tmp_path / "run", mirror=URL, steps=2, validate_every=0)
    adapt(config, placement=Watched())
    assert seen[-1] is True
    assert sum(seen) == 1


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (None, True),
        (NonFiniteLoss(), True),
        (Terminated(AGREED), True),
        (Terminated(), False),
        (run_directory.RunError(), False),
    ],
)
def test_a_process_that_ended_alone_does_not_wait_for_the_others(error, waits):
    waited = []
    placement = SimpleNamespace(any=waited.append)
    with (
        contextlib.nullcontext() if error is None else pytest.raises(type(error)),
        _leaving_together(placement),
    ):
        if error is not None:
            raise error
    assert waited == ([False] if waits else [])
