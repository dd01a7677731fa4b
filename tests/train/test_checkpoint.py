import errno
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.train import checkpoint
from medvfm_jax.train.checkpoint import Checkpoint, CheckpointError, WrongCheckpoint
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.state import init_state
from medvfm_jax.train.step import make_step
from tests.json_mutations import variants
from tests.train import toy

ADAM = optax.adam(0.01)
STEP = functools.partial(make_step(toy.loss, ADAM), toy.PARAMS)


def fresh():
    return init_state(toy.delta(), ADAM, jax.random.key(5))


def make(steps, loader_state=b"\x00position\xff", stopping=None):
    state = fresh()
    for i in range(steps):
        state, _ = STEP(state, toy.batch(i))
    return Checkpoint(state, loader_state, stopping or EarlyStopping(3), {"seed": 0}, "base")


def same(a, b):
    def plain(s):
        return s._replace(key=jax.random.key_data(s.key))

    jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_a_checkpoint_with_a_secret_is_closed_to_others_and_can_be_the_only_one(tmp_path):
    checkpoint.write(tmp_path, make(1))
    path = checkpoint.write(tmp_path, make(2)._replace(private=True), kept=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000002"]
    assert sorted(p.stat().st_mode & 0o777 for p in (path, *path.iterdir())) == [0o600, 0o600, 0o700]


@pytest.mark.parametrize("loader_state", [b"\x00\xff", {"position": 3, "of": [1, 2]}, None])
def test_round_trip_is_exact(tmp_path, loader_state):
    stopping = EarlyStopping(3).update(0.7, 2, toy.delta() | {"scale": {"b": jnp.array([0.1, 1 / 3])}})
    written = make(3, loader_state, stopping)
    checkpoint.write(tmp_path, written)
    back = checkpoint.read(tmp_path, fresh(), "base")
    same(written.state, back.state)
    assert back.loader_state == loader_state
    assert back.stopping._replace(delta=None) == stopping._replace(delta=None)
    jax.tree.map(np.testing.assert_array_equal, stopping.delta, back.stopping.delta)
    assert (back.step, back.config, back.fingerprint) == (3, {"seed": 0}, "base")


def test_the_state_read_back_can_be_trained_on_and_gives_the_same_bits(tmp_path):
    written = make(2)
    checkpoint.write(tmp_path, written)
    back = checkpoint.read(tmp_path, fresh(), "base").state
    same(STEP(written.state, toy.batch(2))[0], STEP(back, toy.batch(2))[0])


def test_nothing_yet_is_none(tmp_path):
    assert checkpoint.read(tmp_path / "checkpoints", fresh(), "base") is None


def test_the_last_two_are_kept(tmp_path):
    for steps in (1, 2, 3):
        checkpoint.write(tmp_path, make(steps))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]


@pytest.mark.parametrize("name", ["arrays.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, name, damage):
    checkpoint.write(tmp_path, make(1))
    path = checkpoint.write(tmp_path, make(2)) / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) * 2 // 3] ^= 1
        path.write_bytes(content)
    warnings = []
    assert checkpoint.read(tmp_path, fresh(), "base", warnings.append).step == 1
    assert len(warnings) == 1
    assert "step_00000002 is damaged" in warnings[0]


def test_if_all_are_damaged_training_does_not_silently_start_again(tmp_path):
    (checkpoint.write(tmp_path, make(1)) / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has 1 checkpoint and none that is intact"):
        checkpoint.read(tmp_path, fresh(), "base", lambda _: None)


def test_other_base_weights_and_other_shapes_are_refused(tmp_path):
    checkpoint.write(tmp_path, make(1))
    with pytest.raises(WrongCheckpoint, match="other base weights"):
        checkpoint.read(tmp_path, fresh(), "another")
    wider = init_state({"w": {"kernel": jnp.zeros((3, 4))}}, ADAM, jax.random.key(0))
    with pytest.raises(WrongCheckpoint, match="other arrays"):
        checkpoint.read(tmp_path, wider, "base")


@pytest.mark.parametrize("when", ["fsync", "rename"])
def test_a_full_disk_is_one_sentence_and_the_previous_checkpoint_survives(tmp_path, monkeypatch, when):
    checkpoint.write(tmp_path, make(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, when, full)
    with pytest.raises(CheckpointError, match=r"disk is full.*step_00000001 is intact"):
        checkpoint.write(tmp_path, make(2))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoint.read(tmp_path, fresh(), "base").step == 1


def test_what_a_killed_writer_left_behind_is_ignored_and_removed(tmp_path):
    checkpoint.write(tmp_path, make(1))
    leftover = tmp_path / ".step_00000002.999.tmp"
    leftover.mkdir()
    (leftover / "arrays.safetensors").write_bytes(b"half")
    assert checkpoint.read(tmp_path, fresh(), "base").step == 1
    checkpoint.write(tmp_path, make(3))
    assert not leftover.exists()


def with_content(path, change):
    """The manifest of a checkpoint, changed, with a digest that fits: written by somebody, not damaged."""
    manifest = json.loads((path / "manifest.json").read_text())
    content = change(manifest["content"])
    text = json.dumps({"digest": checkpoint._digest(content), "content": content})
    (path / "manifest.json").write_text(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 2), ("step", -1), ("step", "1"), ("sha256", None), ("fingerprint", 5), ("config", [1]),
        ("loader_state", []), ("loader_state", {}), ("loader_state", {"base64": 5}), ("loader_state", {"base64": "?"}),
        ("early_stopping", None), ("early_stopping", {"best": "high"}),
        ("early_stopping", {"patience": 0, "best": [], "step": 1, "waited": 0}),
    ],
)  # fmt: skip
def test_a_manifest_that_this_program_does_not_write_is_damaged(tmp_path, name, value):
    first = make(1)
    checkpoint.write(tmp_path, first)
    path = checkpoint.write(tmp_path, make(2))
    for change in (lambda c: c | {name: value}, lambda c: {k: v for k, v in c.items() if k != name}):
        with_content(path, change)
        said = []
        found = checkpoint.read(tmp_path, fresh(), first.fingerprint, said.append)
        assert found.step == 1
        assert len(said) == 1
        assert f"'{name}' of manifest.json is missing or not what a run writes" in said[0]


@pytest.mark.parametrize(
    "content", [b"[1]", b"\xff", b"[" * 100_000, b'{"content": NaN}', b'{"content": [], "digest": 0}']
)
def test_a_manifest_of_another_kind_is_damaged(tmp_path, content):
    first = make(1)
    checkpoint.write(tmp_path, first)
    (checkpoint.write(tmp_path, make(2)) / "manifest.json").write_bytes(content)
    assert checkpoint.read(tmp_path, fresh(), first.fingerprint, lambda _: None).step == 1


def test_only_the_projects_own_error_comes_out_of_damaged_checkpoints(tmp_path):
    first = make(1)
    path = checkpoint.write(tmp_path, first)
    good = json.loads((path / "manifest.json").read_text())
    for seed, bad in enumerate(variants(good, 150, seed=3)):
        (path / "manifest.json").write_bytes(bad)
        if seed % 2:
            try:
                with_content(path, lambda content: content)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
        try:
            found = checkpoint.read(tmp_path, fresh(), first.fingerprint, lambda _: None)
        except checkpoint.CheckpointError:
            continue
        assert found.step == 1


def test_folders_of_other_names_are_no_checkpoints(tmp_path):
    checkpoint.write(tmp_path, make(1))
    (tmp_path / "step_backup").mkdir()
    assert checkpoint.read(tmp_path, fresh(), make(1).fingerprint).step == 1
    checkpoint.write(tmp_path, make(2))
    checkpoint.write(tmp_path, make(3))
    assert (tmp_path / "step_backup").exists()
