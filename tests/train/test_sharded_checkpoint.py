"""Checkpoints in parts: exact, onto any mesh, whole or not at all."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.parallel import fsdp, make_mesh, replicated, state_shardings
from medvfm_jax.train.checkpoint import CheckpointError, WrongCheckpoint
from medvfm_jax.train.early_stopping import EarlyStopping
from medvfm_jax.train.loop import StepEnd
from medvfm_jax.train.sharded_checkpoint import ShardedCheckpoints, read
from medvfm_jax.train.state import init_state

ADAM = optax.adam(1e-3)


def state_of(seed=0, width=16):
    rng = np.random.default_rng(seed)
    delta = {"tune": {"image_encoder/a": {"kernel": jnp.asarray(rng.normal(size=(8, width)), jnp.float32)}}}
    state = init_state(delta, ADAM, jax.random.key(seed))
    _, opt_state = ADAM.update(delta, state.opt_state)
    return state._replace(opt_state=opt_state, step=jnp.asarray(7 + seed, jnp.int32))


def end(state, *, last=False, stopping=None):
    step = int(state.step)
    return StepEnd(step, 100, state, {"epoch": 1}, {}, 2, 0.1, last, stopping=stopping)


def placed(state, text, rules):
    mesh = make_mesh(text, jax.devices()[: np.prod([int(p.split("=")[1]) for p in text.split(",")])])
    where = state_shardings(rules, mesh, state, ADAM)
    return jax.tree.map(jax.device_put, state, where), where


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def written(folder, *states, stopping=None):
    with ShardedCheckpoints(folder, {"a": 1}, "base", every=1) as hook:
        for state in states:
            hook(end(state, last=state is states[-1], stopping=stopping))


def test_a_state_is_read_with_its_bits(tmp_path):
    state = state_of()
    stopping = EarlyStopping(3, 0.5, 4, 1, jax.tree.map(np.asarray, state_of(5).delta))
    written(tmp_path / "c", state, stopping=stopping)
    found = read(tmp_path / "c", state_of(9), None, "base")
    same(found.state, state)
    same(found.stopping.delta, stopping.delta)
    assert (found.stopping.best, found.stopping.step, found.stopping.waited) == (0.5, 4, 1)
    assert (found.loader_state, found.config, found.step) == ({"epoch": 1}, {"a": 1}, 7)


@pytest.mark.parametrize(("text", "rules"), [("data=2", fsdp(0)), ("data=8", replicated())])
def test_any_mesh_reads_what_another_wrote_in_parts(tmp_path, text, rules):
    state = state_of()
    divided, _ = placed(state, "data=4", fsdp(0))
    kernel = divided.delta["tune"]["image_encoder/a"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (8, 4)
    written(tmp_path / "c", divided)
    _, where = placed(state, text, rules)
    found = read(tmp_path / "c", state_of(9), where, "base")
    same(found.state, state)
    assert jax.tree.map(lambda x: x.sharding, found.state) == where


def test_only_due_steps_are_written_the_last_two_are_kept_and_none_is_written_over(tmp_path):
    with ShardedCheckpoints(tmp_path / "c", {}, "base", every=4) as hook:
        for step in (3, 4, 8, 12, 14):
            hook(end(state_of()._replace(step=jnp.asarray(step, jnp.int32)), last=step == 14))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["12", "14"]
    written(tmp_path / "c", state_of()._replace(step=jnp.asarray(14, jnp.int32)))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["12", "14"]


def test_a_damaged_one_is_passed_over_and_what_was_never_finished_is_not_seen(tmp_path):
    folder = tmp_path / "c"
    written(folder, state_of(0), state_of(1))
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    (folder / "9.orbax-checkpoint-tmp" / "state").mkdir()
    shutil.rmtree(folder / "8" / "state")
    said: list[str] = []
    same(read(folder, state_of(9), None, "base", warn=said.append).state, state_of(0))
    assert "checkpoint 8 is damaged" in said[0]
    shutil.rmtree(folder / "7" / "state")
    with pytest.raises(CheckpointError, match="has 2 checkpoints and none that is intact"):
        read(folder, state_of(9), None, "base", warn=said.append)
    assert read(tmp_path / "none", state_of(), None, "base") is None


@pytest.mark.parametrize("step", [8, 9])
def test_after_a_damaged_one_was_passed_over_new_ones_are_written_before_it_and_over_it(step, tmp_path):
    """orbax itself leaves such saves out without a word."""
    folder = tmp_path / "c"
    written(folder, state_of(0), state_of(2))  # steps 7 and 9
    shutil.rmtree(folder / "9" / "state")
    state = state_of(5)._replace(step=jnp.asarray(step, jnp.int32))
    with ShardedCheckpoints(folder, {}, "base", every=1, taken=7) as hook:
        hook(end(state))
    assert sorted(p.name for p in folder.iterdir()) == sorted(["7", str(step)])
    same(read(folder, state_of(9), None, "base").state, state)


def test_those_of_another_run_are_refused(tmp_path):
    written(tmp_path / "c", state_of())
    with pytest.raises(WrongCheckpoint, match="other base weights"):
        read(tmp_path / "c", state_of(), None, "other")
    with pytest.raises(WrongCheckpoint, match=r"other arrays.*kernel"):
        read(tmp_path / "c", state_of(width=12), None, "base")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    with ShardedCheckpoints(tmp_path / "c", {}, "base", every=1) as hook:

        def full(*args, **kw):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(hook._manager, "save", full)
        with pytest.raises(CheckpointError, match=r"The disk is full.*free some space"):
            hook(end(state_of()))


@pytest.mark.parametrize("ended_by", [None, ArithmeticError])
def test_a_disk_that_is_full_in_the_background_is_one_sentence_and_hides_no_other_error(
    ended_by, tmp_path, monkeypatch, caplog
):
    def full(*args, **kw):
        raise OSError(28, "No space left on device")

    kind, said = (CheckpointError, "The disk is full") if ended_by is None else (ended_by, "not finite")
    hook = ShardedCheckpoints(tmp_path / "c", {}, "base", every=1)

    def train():
        with hook:
            monkeypatch.setattr(hook._manager, "close", full)
            hook(end(state_of()))
            hook._manager.wait_until_finished()
            if ended_by is not None:
                raise ended_by("not finite")

    with pytest.raises(kind, match=said):
        train()
    assert caplog.records == []


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path):
    """Each would take the room of a checkpoint for ever."""
    written(tmp_path / "c", state_of(0))
    part = tmp_path / "c" / "9.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp"
    part.mkdir(parents=True)
    (part / "part").write_text("x")
    read(tmp_path / "c", state_of(9), None, "base")
    assert part.exists()  # every process reads, and one may still write
    written(tmp_path / "c", state_of(1))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["7", "8"]
