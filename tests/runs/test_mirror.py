"""Copies of a run on storage: whole or not there, kept while the run goes on."""

import hashlib
import shutil
import threading

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medvfm_jax.runs import mirror
from medvfm_jax.runs.mirror import Mirror
from medvfm_jax.runs.retrieve import fetch
from medvfm_jax.runs.stored_copy import MirrorError
from tests.runs.copies import brought, checkpoint, contents, log, stored


def test_a_run_comes_back_as_it_ended(run, url, tmp_path):
    said = []
    with Mirror(run, url, said.append):
        checkpoint(run, 2)
        log(run, 2)
        (run / "delta.safetensors").write_bytes(b"delta")
    assert brought(url, tmp_path) == contents(run)
    assert said == [f"{url} holds the run as it is here"]
    assert not (run / ".mirror").exists()


def test_the_names_of_files_can_be_read_in_the_storage_and_old_ones_are_dropped(run, url):
    with Mirror(run, url):
        pass
    digest = hashlib.sha256(b'{"seed": 0}').hexdigest()[:32]
    assert f"files/{digest}/config.json" in stored(url)
    assert len(stored(url)) == 5
    shutil.rmtree(run / "checkpoints" / "step_00000001")
    checkpoint(run, 2)
    with Mirror(run, url):
        pass
    assert len(stored(url)) == 5
    assert not [name for name in stored(url) if "step_00000001" in name]


def test_files_that_are_there_are_not_sent_again(run, monkeypatch):
    sent, put = [], MemoryFileSystem.put_file
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda self, here, there: (sent.append(there), put(self, here, there))
    )
    with Mirror(run, "memory://a"):
        pass
    assert len(sent) == 4
    log(run, 2)
    with Mirror(run, "memory://a"):
        pass
    assert [name.rpartition("/")[2] for name in sent[4:]] == ["metrics.jsonl"]


def failing(monkeypatch, times):
    """The next so many files cannot be stored; of each of them half is there."""
    put, left = MemoryFileSystem.put_file, [times]

    def put_file(self, here, there, **options):
        if left[0]:
            left[0] -= 1
            self.pipe_file(there, b"half")
            raise ConnectionError("the network is gone")
        put(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    return left


def test_a_copy_that_fails_is_tried_again(run, tmp_path, monkeypatch):
    failing(monkeypatch, mirror.ATTEMPTS - 1)
    said = []
    with Mirror(run, "memory://a", said.append, pause=0.0):
        pass
    assert brought("memory://a", tmp_path) == contents(run)
    assert said == ["memory://a holds the run as it is here"]


def test_a_second_attempt_sends_only_what_the_first_did_not(run, monkeypatch):
    put, sent = MemoryFileSystem.put_file, []

    def put_file(self, here, there, **options):
        name = there.rpartition("/")[2]
        sent.append(name)
        if sent == ["arrays.safetensors", "manifest.json", "config.json"]:
            raise ConnectionError("the network is gone")
        put(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with Mirror(run, "memory://a", pause=0.0) as copies:
        pass
    assert sent == ["arrays.safetensors", "manifest.json", "config.json", "config.json", "metrics.jsonl"]
    assert copies.failures == 0


def test_a_copy_that_keeps_failing_is_said_and_the_one_before_stays_whole(run, tmp_path, monkeypatch):
    with Mirror(run, "memory://a"):
        pass
    before, said = contents(run), []
    left = failing(monkeypatch, 10**9)
    log(run, 2)
    with Mirror(run, "memory://a", said.append, pause=0.0):
        pass
    assert len(said) == 2
    assert "could not be copied to memory://a (ConnectionError: the network is gone); it goes on" in said[0]
    assert said[1] == "memory://a does not hold the end of the run; 1 of 1 attempts at a copy failed"
    assert brought("memory://a", tmp_path) == before
    left[0] = 0
    with Mirror(run, "memory://a", said.append):
        pass
    assert brought("memory://a", tmp_path, "later") == contents(run)


def test_a_file_that_storage_cut_off_without_an_error_is_a_failure(run, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "put_file", lambda self, here, there: self.pipe_file(there, b"x"))
    said = []
    with Mirror(run, "memory://a", said.append, pause=0.0):
        pass
    assert "was not stored whole" in said[0]
    assert not fetch("memory://a", run)


def test_while_a_copy_is_under_way_the_newest_waits(run, tmp_path, monkeypatch):
    put, go, begun = MemoryFileSystem.put_file, threading.Event(), threading.Event()

    def put_file(self, here, there, **options):
        begun.set()
        assert go.wait(30)
        put(self, here, there, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    with Mirror(run, "memory://a") as copies:
        copies.update()
        assert begun.wait(30)
        for step in (2, 3, 4):
            shutil.rmtree(
                run / "checkpoints" / f"step_{step - 1:08d}"
            )  # the one under way has links of its own
            checkpoint(run, step)
            copies.update()
        threading.Timer(1, go.set).start()  # when the end of the run waits too
    assert copies.copies == 2
    assert copies.failures == 0
    assert brought("memory://a", tmp_path) == contents(run)


def test_a_copy_that_ends_after_the_disk_was_full_for_a_newer_one_does_not_pass_for_it(run, monkeypatch):
    begun, go, upload, said = threading.Event(), threading.Event(), mirror._upload, []

    def slow(*arguments):
        begun.set()
        go.wait(30)
        upload(*arguments)

    def full(folder, target):
        target.mkdir(parents=True)
        (target / "part").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mirror, "_upload", slow)
    with Mirror(run, "memory://a", said.append) as copies:
        assert begun.wait(30)
        monkeypatch.setattr(mirror, "_take_snapshot", full)
        copies.update()
        assert [path.name for path in (run / ".mirror").iterdir()] == ["1"]  # a full disk gets no fuller
        threading.Timer(0.5, go.set).start()
    assert said[-1] == "memory://a does not hold the end of the run; 2 of 3 attempts at a copy failed"


def test_what_is_not_whole_yet_is_not_copied(run, tmp_path):
    (run / "checkpoints" / ".step_00000002.7.tmp").mkdir()
    (run / "checkpoints" / "2.orbax-checkpoint-tmp-5").mkdir()
    (run / "checkpoints" / "2.orbax-checkpoint-tmp-5" / "part").write_text("x")
    with Mirror(run, "memory://a"):
        pass
    assert not [name for name in brought("memory://a", tmp_path) if "tmp" in name]


def test_a_checkpoint_that_is_dropped_while_it_is_linked_is_left_out_whole(run, tmp_path, monkeypatch):
    checkpoint(run, 2)
    link = mirror._link

    def dropped(source, target):
        if "step_00000001" in str(source):
            shutil.rmtree(run / "checkpoints" / "step_00000001", ignore_errors=True)
        link(source, target)

    monkeypatch.setattr(mirror, "_link", dropped)
    with Mirror(run, "memory://a"):
        pass
    assert brought("memory://a", tmp_path) == contents(run)


def test_of_two_runs_that_found_the_place_empty_the_second_leaves_the_copy_of_the_first(
    run, tmp_path, monkeypatch
):
    other, said, look = tmp_path / "other", [], mirror.read_manifest
    shutil.copytree(run, other)
    (other / "config.json").write_text('{"seed": 1}')
    late = Mirror(other, "memory://a", said.append, pause=0.0)
    with Mirror(run, "memory://a"):
        pass
    answers = [None]  # what the second saw before the first had copied anything
    monkeypatch.setattr(mirror, "read_manifest", lambda storage: answers.pop() if answers else look(storage))
    with late:
        pass
    assert "another run has begun to copy itself to memory://a" in said[0]
    assert "does not hold the end of the run" in said[-1]
    assert brought("memory://a", tmp_path) == contents(run)


def test_a_place_with_another_run_is_refused(run, tmp_path):
    with Mirror(run, "memory://a"):
        pass
    with pytest.raises(MirrorError, match="already holds the copy of a run"):
        mirror.refuse_existing("memory://a")
    mirror.refuse_existing("memory://b")
    (run / "config.json").write_text('{"seed": 1}')
    with pytest.raises(MirrorError, match="another run"), Mirror(run, "memory://a"):
        pass


@pytest.mark.parametrize("name", ["step_00000002", "2"])
def test_a_copy_that_is_further_than_the_folder_is_not_replaced(run, tmp_path, name):
    """A machine that has an old state of the run: another one went on with it."""
    checkpoint(run, 2)
    (run / "checkpoints" / "step_00000002").rename(run / "checkpoints" / name)
    with Mirror(run, "memory://a"):
        pass
    shutil.rmtree(run / "checkpoints" / name)
    (run / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    with (
        pytest.raises(MirrorError, match=r"step 2 of this run.*none after step 1.*empty --out"),
        Mirror(run, "memory://a"),
    ):
        pass
    assert any(file.startswith(f"checkpoints/{name}/") for file in brought("memory://a", tmp_path))
    checkpoint(run, 3)
    with Mirror(run, "memory://a"):
        pass
