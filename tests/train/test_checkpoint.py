import errno
import functools
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
    with pytest.raises(CheckpointError, match="All 1 checkpoints"):
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
