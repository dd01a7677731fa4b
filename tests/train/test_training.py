"""`resolve` and `train`: a run in memory, without a run directory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from medvfm_jax.train import make_loss, make_optimizer, make_step, resolve, train
from medvfm_jax.train.adaptation import adapt
from medvfm_jax.train.checkpoint import Checkpoint
from tests.train.small_runs import build_models_once, small


@pytest.fixture(autouse=True)
def models(monkeypatch):
    build_models_once(monkeypatch)


@pytest.mark.slow
def test_a_run_in_memory_has_the_bits_of_one_in_a_directory_and_writes_nothing(cells, tmp_path):
    config = small(cells, tmp_path / "memory")
    trained = train(resolve(config))
    assert not config.out.exists()
    result = adapt(small(cells, tmp_path / "disk"))
    stored = load_file(result.delta)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained.delta)) == sum(x.size for x in stored.values())
    leaves = sorted(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trained.delta))
    assert leaves == sorted(array.tobytes() for array in stored.values())
    assert (trained.step, trained.val_dice) == (result.step, result.val_dice)


def test_training_goes_on_from_a_state_in_memory(cells, tmp_path):
    run = resolve(small(cells, tmp_path / "run", validate_every=0))
    ends = []
    whole = train(run, [lambda end: ends.append(jax.tree.map(np.array, (end.state.delta, end.loader_state)))])
    seen = []

    def stop(end):
        seen.append(end)
        return end.step == 3

    half = train(run, [stop])
    assert half.step == 3
    middle = Checkpoint(half.state, seen[-1].loader_state, half.stopping, {}, "")
    rest = train(run, start=middle)
    assert (whole.step, rest.step) == (6, 6)
    jax.tree.map(np.testing.assert_array_equal, whole.delta, rest.delta)


@pytest.mark.slow
def test_many_seeds_train_side_by_side(cells, tmp_path):
    """What an ablation does: one step, mapped over the states of its seeds."""
    runs = [resolve(small(cells, tmp_path / str(seed), seed=seed, adapter="lora")) for seed in (0, 1)]
    assembled = runs[0].assembled
    step = make_step(make_loss(assembled.adapted, assembled.objective), make_optimizer(0.01))
    batch = next(runs[0].data.loader("none"))
    params = assembled.base.params
    alone = [step(params, run.start(), batch)[0].delta for run in runs]
    keys = jnp.stack([run.start().key for run in runs])
    states = [run.start()._replace(key=None) for run in runs]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)._replace(key=keys)
    together, _ = jax.vmap(step, in_axes=(None, 0, None))(params, stacked, batch)
    for i, expected in enumerate(alone):
        found = jax.tree.map(lambda x: x[i], together.delta)  # noqa: B023, used at once
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    first, second = (jax.tree.leaves(delta) for delta in alone)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second))
