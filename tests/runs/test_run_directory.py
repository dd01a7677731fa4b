import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medvfm_jax.runs import run_directory as runs
from medvfm_jax.runs.run_directory import RunError, RunExists, RunInUse
from medvfm_jax.runs.settings_record import BEFORE_IT_EXISTED, settings_digest
from medvfm_jax.settings import AdaptConfig, FederateConfig
from medvfm_jax.settings.records import to_json


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    attempt = (
        "import sys; from pathlib import Path; from medvfm_jax.runs import run_directory as r\n"
        "try:\n    with r.locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()\n"
        "except r.RunInUse as e: print('refused', e)"
    )
    command = [sys.executable, "-c", attempt, str(tmp_path)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(RunInUse, match=f"Process {first.pid} is writing"), runs.locked(tmp_path):
        pass
    first.kill()
    first.wait()
    first.stdin.close()
    first.stdout.close()
    with runs.locked(tmp_path):
        pass


def test_a_command_refused_before_it_wrote_anything_leaves_no_trace(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="bad data"), runs.locked(folder):
        raise ValueError("bad data")
    assert not folder.exists()
    folder.mkdir()  # by the user, who may want it for something else
    with pytest.raises(ValueError, match="bad data"), runs.locked(folder):
        raise ValueError("bad data")
    assert list(folder.iterdir()) == []
    with runs.locked(folder):
        runs.claim(folder, {}, resume=False)
    assert folder.exists()


def test_a_finished_run_whose_settings_contradict_each_other_is_refused(tmp_path):
    split = {"train": [], "val": [], "test": []}
    resolved = {
        "data": "d",
        "data_sha256": "0",
        "split": split,
        "prompt": "box",
        "adapter": {"preset": "lora"},
    }
    record = {"weights": None, "dtype": "float32", "seed": 0, "adapter": "lora", "prompt": "auto"}
    (tmp_path / runs.DELTA).touch()
    runs.write_json(tmp_path / runs.CONFIG, record | {"resolved": resolved})
    assert runs.finished(tmp_path)["adapter"] == "lora"
    runs.write_json(tmp_path / runs.CONFIG, record | {"resolved": resolved, "adapter": "samed"})
    with pytest.raises(
        RunError, match=r"config\.json contradicts itself: its adapter is 'samed' and resolved"
    ):
        runs.finished(tmp_path)


def test_files_that_belong_to_no_run_are_left_alone(tmp_path):
    runs.refuse_existing(tmp_path / "new", resume=False)
    (tmp_path / ".config.json.1.tmp").write_text("cut off by a kill")
    runs.refuse_existing(tmp_path, resume=True)
    (tmp_path / "metrics.jsonl").write_text("mine")
    for resume in (False, True):
        with pytest.raises(RunExists, match=r"holds no run but other files \(metrics\.jsonl, \.\.\.\)"):
            runs.refuse_existing(tmp_path, resume=resume)


def test_a_run_that_has_not_ended_is_not_finished(tmp_path):
    with pytest.raises(RunError, match=r"is .* a run directory"):
        runs.finished(tmp_path)
    runs.write_json(tmp_path / runs.CONFIG, GOOD)
    with pytest.raises(RunError, match="the run has not ended"):
        runs.finished(tmp_path)
    (tmp_path / runs.DELTA).write_bytes(b"")
    assert runs.finished(tmp_path) == GOOD


def test_a_run_is_claimed_once_and_continued_only_when_asked(tmp_path):
    config = {"seed": 1, "out": "a", "resume": False, "rates": (0.1, 0.2)}
    assert runs.claim(tmp_path, config, resume=False) is False
    with pytest.raises(RunExists, match="already holds a run; add --resume"):
        runs.claim(tmp_path, config, resume=False)
    assert runs.claim(tmp_path, config | {"resume": True, "out": "b"}, resume=True) is True
    with pytest.raises(RunExists, match="started with seed=1, now it is 2"):
        runs.claim(tmp_path, config | {"seed": 2}, resume=True)


def test_what_differs_is_named_settings_first_and_shortly(tmp_path):
    resolved = {"split": {"train": ["a" * 200]}, "data_sha256": "1234"}
    runs.claim(tmp_path, {"steps": 5, "resolved": resolved}, resume=False)
    other = {"split": {}, "data_sha256": "1234"}
    with pytest.raises(RunExists, match=r"with steps=5, now it is 6;.*\(1 differ\)"):
        runs.claim(tmp_path, {"steps": 6, "resolved": other}, resume=True)
    with pytest.raises(RunExists, match=r"with split\.train=\['a.*\.\.\., now it is None;") as caught:
        runs.claim(tmp_path, {"steps": 5, "resolved": other}, resume=True)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 250
    assert runs.claim(tmp_path, {"steps": 5, "resolved": resolved}, resume=True) is True


def test_of_a_setting_of_several_parts_the_part_that_differs_is_named(tmp_path):
    """A teacher's record begins with its long digests, which agree, so its beginning would say nothing."""
    teacher = {"fingerprint": "a" * 200, "seen": {"d1": ["x"]}}
    runs.claim(tmp_path, {"teacher": teacher}, resume=False)
    with pytest.raises(RunExists, match=r"with teacher\.seen\.d1=\['x'\], now it is \['y'\];"):
        runs.claim(tmp_path, {"teacher": teacher | {"seen": {"d1": ["y"]}}}, resume=True)


def test_what_only_watches_a_run_may_change_and_the_digest_of_a_run_from_before_stays(tmp_path):
    before = {"seed": 1, "profile": None, "tensorboard": False}
    runs.claim(tmp_path, before, resume=False)
    assert runs.claim(tmp_path, before | {"profile": "20:25", "tensorboard": True}, resume=True) is True
    assert (
        settings_digest(before)
        == hashlib.sha256(b'[{"profile": null, "seed": 1, "tensorboard": false}, {}]').hexdigest()
    )


def test_an_option_that_came_later_stands_in_the_way_only_when_it_is_on(tmp_path):
    runs.claim(tmp_path, {"seed": 1}, resume=False)
    assert runs.claim(tmp_path, {"seed": 1, "shortcut": False}, resume=True) is True
    with pytest.raises(RunExists, match="started with shortcut=None, now it is True"):
        runs.claim(tmp_path, {"seed": 1, "shortcut": True}, resume=True)
    later = {"seed": 1, "base_dtype": "float32", "checkpoints": "whole"}
    assert runs.claim(tmp_path, later, resume=True) is True
    with pytest.raises(
        RunExists, match=r"started with base_dtype='float32', now it is 'bfloat16';.*\(1 differ\)"
    ):
        runs.claim(tmp_path, later | {"base_dtype": "bfloat16"}, resume=True)
    defaults = to_json(AdaptConfig(data="d")) | to_json(FederateConfig(data="d"))
    assert {name: defaults[name] for name in BEFORE_IT_EXISTED} == BEFORE_IT_EXISTED


def test_a_run_of_a_version_with_options_in_lists_of_their_own_is_continued_with_the_same_options(tmp_path):
    old = {
        "seed": 1,
        "set": ["lora.rank=8"],
        "algorithm_set": ["mu=0.1"],
        "codec_set": [],
        "down_codec_set": [],
    }
    runs.claim(tmp_path, old, resume=False)
    now = {"seed": 1, "set": ("lora.rank=8", "algorithm.mu=0.1")}
    assert runs.claim(tmp_path, now, resume=True) is True
    with pytest.raises(
        RunExists, match=r"with set=\['lora.rank=8', 'algorithm.mu=0.1'\], now it is \['lora.rank=8'\]"
    ):
        runs.claim(tmp_path, now | {"set": ["lora.rank=8"]}, resume=True)
    assert runs.read_record(tmp_path / runs.CONFIG) == old, "its digest stands in the delta"


def test_resume_of_nothing_is_a_new_run(tmp_path):
    assert runs.claim(tmp_path, {"seed": 1}, resume=True) is False


def test_metrics_after_the_checkpoint_are_forgotten_with_the_line_cut_by_a_kill(tmp_path):
    for step in (1, 2, 3):
        runs.append_metrics(tmp_path, {"step": step, "loss": 1.0 / step})
    with open(tmp_path / runs.METRICS, "a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in runs.read_metrics(tmp_path)] == [1, 2, 3]
    runs.truncate_metrics(tmp_path, 2, print)
    assert runs.read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_json_is_written_whole_with_null_for_nan(tmp_path):
    path = tmp_path / "scores.json"
    runs.write_json(
        path, {"a": float("nan"), "b": np.float32(0.5), "c": [np.inf, tmp_path], "d": np.arange(2)}
    )
    assert json.loads(path.read_text()) == {"a": None, "b": 0.5, "c": [None, str(tmp_path)], "d": [0, 1]}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "{", ""])
def test_missing_and_damaged_files_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / runs.CONFIG).write_text(content)
    with pytest.raises(RunError, match=r"config\.json"):
        runs.read_json(tmp_path / runs.CONFIG)


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="as a run directory"), runs.locked(tmp_path / "run"):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(tmp_path):
    (tmp_path / runs.METRICS).symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"Cannot write .*metrics\.jsonl: No space left on device; free space"):
        runs.append_metrics(tmp_path, {"step": 1})


def test_metrics_that_cannot_be_rewritten_are_one_sentence_and_stay(tmp_path, monkeypatch):
    runs.append_metrics(tmp_path, {"step": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        runs.truncate_metrics(tmp_path, 0, print)
    with pytest.raises(RunError, match="No space left"):
        runs.write_json(tmp_path / "scores.json", {})
    assert runs.read_metrics(tmp_path) == [{"step": 1}]
    assert not list(tmp_path.glob(".scores*"))


GOOD = {
    "weights": None, "dtype": "float32", "steps": 5,
    "resolved": {"data": "cells", "data_sha256": "12", "split": {"train": ["a"], "val": [], "test": ["b"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights", 5), ("weights", "gs://x"), ("weights", "a\0b"), ("weights", ""), ("weights", "n" * 300),
        ("dtype", None), ("dtype", ["float32"]), ("dtype", "float64"), ("allow_geometry_mismatch", "yes"),
     ("seed", "x"), ("seed", True),
        ("resolved", None), ("resolved", [1]), ("resolved.data", None), ("resolved.data", 5),
        ("resolved.data_sha256", 7), ("resolved.split", {}), ("resolved.split", {"train": [], "val": [], "test": [5]}),
        ("resolved.split", {"train": [], "val": [], "test": "ab"}),
        ("resolved.split", {"train": [], "val": [], "test": [], "more": []}),
    ],
)  # fmt: skip
def test_settings_that_no_run_writes_are_refused_by_name(tmp_path, name, value):
    (tmp_path / runs.DELTA).write_bytes(b"")
    record = json.loads(json.dumps(GOOD))
    runs.write_json(tmp_path / runs.CONFIG, record)
    assert runs.finished(tmp_path) == GOOD
    *above, last = name.split(".")
    part = record
    for key in above:
        part = part[key]
    part[last] = value
    runs.write_json(tmp_path / runs.CONFIG, record)
    named = name if name != "resolved" else "resolved.data"
    with pytest.raises(
        RunError, match=rf"config\.json is not what a run writes: '{named}' is missing or damaged"
    ):
        runs.finished(tmp_path)


@pytest.mark.parametrize("content", [b"[1]", b"3", b"null", b'"x"'])
def test_a_record_is_an_object(tmp_path, content):
    (tmp_path / runs.CONFIG).write_bytes(content)
    assert runs.read_json(tmp_path / runs.CONFIG) == json.loads(content)
    for read in (
        lambda: runs.read_record(tmp_path / runs.CONFIG),
        lambda: runs.claim(tmp_path, {"seed": 1}, resume=True),
        lambda: runs.finished(tmp_path),
    ):
        with pytest.raises(RunError, match=r"config\.json holds no JSON object; restore it"):
            read()


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 10_000, b'{"a": NaN}', b'{"a": 1e999}'])
def test_json_that_nobody_expects_is_one_sentence(tmp_path, content):
    (tmp_path / runs.CONFIG).write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json cannot be read as JSON \(.*\); restore it"):
        runs.read_json(tmp_path / runs.CONFIG)


def test_settings_to_resume_whose_resolved_part_is_damaged_are_other_settings(tmp_path):
    runs.write_json(tmp_path / runs.CONFIG, {"seed": 1, "resolved": [1]})
    with pytest.raises(RunExists, match="now it is"):
        runs.claim(tmp_path, {"seed": 1, "resolved": {"split": {}}}, resume=True)


DAMAGED = (
    b"\xff\xfe\x00",
    b"7",
    b"[1]",
    b"",
    b'{"step": "x"}',
    b'{"step": true}',
    b'{"step": -1}',
    b'{"a": NaN}',
)


def test_damaged_lines_of_the_metrics_are_counted_and_named(tmp_path):
    good = [b'{"step": %d}' % k for k in range(1, len(DAMAGED) + 1)]
    lines = [line for pair in zip(good, DAMAGED) for line in pair]
    (tmp_path / runs.METRICS).write_bytes(b"\n".join(lines) + b'\n{"step": 99, "lo')
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged at line 2 \(byte 0 is not UTF-8\)"):
        runs.read_metrics(tmp_path)
    damaged = []
    assert [r["step"] for r in runs.read_metrics(tmp_path, damaged)] == list(range(1, 9))
    assert damaged == [2, 4, 6, 8, 10, 12, 14, 16]
    said = []
    runs.truncate_metrics(tmp_path, 5, said.append)
    (sentence,) = said
    assert sentence.startswith(
        f"{tmp_path / runs.METRICS} has 8 damaged lines (2, 4, 6, 8, 10, ...), which are dropped"
    )
    assert [r["step"] for r in runs.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    runs.truncate_metrics(tmp_path, 5, said.append)
    assert len(said) == 1


def test_a_line_after_one_that_was_cut_off_is_a_line_of_its_own(tmp_path):
    runs.append_metrics(tmp_path, {"step": 1})
    with open(tmp_path / runs.METRICS, "a") as file:
        file.write('{"step": 2, "lo')
    runs.append_metrics(tmp_path, {"step": 2})
    damaged = []
    assert [r["step"] for r in runs.read_metrics(tmp_path, damaged)] == [1, 2]
    assert damaged == [2]


def test_folders_above_a_run_that_was_refused_go_too(tmp_path):
    with pytest.raises(ValueError, match="bad data"), runs.locked(tmp_path / "runs" / "new" / "a"):
        raise ValueError("bad data")
    assert list(tmp_path.iterdir()) == []
