"""Seeds that train as one program end where each of them ends alone."""

import jax
import numpy as np
import pytest

from medvfm_jax.adapters import sites
from medvfm_jax.train import adapt, resolve, train, training_data
from medvfm_jax.train.adaptation import adapt_together
from medvfm_jax.train.loop import NonFiniteLoss
from medvfm_jax.train.together import NotAlike, check_alike, train_together
from medvfm_jax.weights import artifacts
from tests.train.small_runs import small


def runs(cells, tmp_path, seeds=(0, 1, 2), **settings):
    return [small(cells, tmp_path / f"{seed}", seed=seed, validate_every=0, **settings) for seed in seeds]


def test_data_are_opened_and_the_sites_of_an_adapter_looked_for_once(cells, tmp_path, monkeypatch):
    traced, trace, opened, open_it = [], sites._traced_sites, [], training_data.open_dataset
    monkeypatch.setattr(
        sites, "_traced_sites", lambda *args, **kw: (traced.append(args), trace(*args, **kw))[1]
    )
    monkeypatch.setattr(
        training_data, "open_dataset", lambda *args, **kw: (opened.append(args), open_it(*args, **kw))[1]
    )
    monkeypatch.setattr(
        "medvfm_jax.train.together.train_together", lambda runs, told, say: [NonFiniteLoss("none")] * 3
    )
    adapter = {
        "adapter": "lora",
        "set": (
            "lora.at=mask_decoder/.*/q_proj",
            "lora.slices=none",
            "lora.layout=none",
            "lora.head_dim=none",
        ),
    }
    assert len(adapt_together(runs(cells, tmp_path, **adapter))) == 3
    assert (len(traced), len(opened)) == (1, 1)
    resolve(runs(cells, tmp_path / "alone")[0])
    assert len(opened) == 2


@pytest.mark.slow
def test_each_seed_ends_where_it_ends_alone(cells, tmp_path):
    together = adapt_together(runs(cells, tmp_path / "together"))
    for config, result in zip(runs(cells, tmp_path / "alone"), together):
        alone = adapt(config)
        arrays, metadata = artifacts.load_delta(result.delta)
        expected, alone_metadata = artifacts.load_delta(alone.delta)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), arrays, expected)
        assert metadata["fingerprint"] == alone_metadata["fingerprint"]
        assert (result.step, result.trained) == (alone.step, alone.trained)
        lines = [
            (folder / "metrics.jsonl").read_text().splitlines() for folder in (result.folder, alone.folder)
        ]
        assert len(lines[0]) == len(lines[1]) == config.steps
    kept = [artifacts.load_delta(result.delta)[0] for result in together]
    first, second = (np.concatenate([x.ravel() for x in jax.tree.leaves(delta)]) for delta in kept[:2])
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"steps": 3}, "differ in steps"), ({"validate_every": 1}, "differ in validate_every")],
)
def test_runs_that_differ_in_more_than_their_seed_are_refused(cells, tmp_path, settings, said):
    (one,) = runs(cells, tmp_path, seeds=(0,))
    changed = [resolve(one), resolve(small(cells, tmp_path / "x", **{"validate_every": 0} | settings))]
    with pytest.raises(NotAlike, match=said):
        train_together(changed)


def test_validation_is_refused(cells, tmp_path):
    with pytest.raises(NotAlike, match="validate_every=0"):
        check_alike([resolve(small(cells, tmp_path))])


def test_encoders_that_train_are_not_put_side_by_side_on_a_cpu(cells, tmp_path):
    with pytest.raises(NotAlike, match="encoder"):
        adapt_together(runs(cells, tmp_path, seeds=(0,), adapter="lora"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_its_own_run_alone(cells, tmp_path):
    good, bad = (resolve(config) for config in runs(cells, tmp_path, seeds=(0, 1)))
    start = bad.start()
    broken = start._replace(delta=jax.tree.map(lambda leaf: leaf * np.nan, start.delta))

    class Broken(type(bad)):
        def start(self):
            return broken

    ended, lost = train_together([good, Broken(*bad)])
    assert isinstance(lost, NonFiniteLoss)
    assert "step 1" in str(lost)
    alone = train(good)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ended.delta, alone.delta
    )
