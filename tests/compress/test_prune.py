"""Which heads and neurons go, and how the rest makes up for them."""

import numpy as np
import pytest

from medvfm_jax.compress import prune as module
from medvfm_jax.compress.prune import kept_parts, refitted
from tests.compress.toy import calibration, subject


def test_the_least_important_go_over_all_modules_after_their_norms_are_made_equal():
    scores = {"a": np.array([3.0, 4.0, 0.0]), "b": np.array([30.0, 0.1, 40.0, 0.2])}
    assert kept_parts(scores, 3 / 7, 1) == {"a": [0, 1], "b": [0, 2]}
    assert kept_parts(scores, 0.0, 1) == {"a": [0, 1, 2], "b": [0, 1, 2, 3]}
    # Of 0.6 and 0.8 in both, the first of "a" is as small as the first of "b".
    assert sum(map(len, kept_parts(scores, 4 / 7, 1).values())) == 3


def test_modules_are_compared_by_shares_of_their_norm():
    scores = {"a": np.array([3.0, 4.0, 1.0]), "b": np.array([30.0, 5.0, 40.0])}
    assert kept_parts(scores, 2 / 6, 1) == {"a": [0, 1], "b": [0, 2]}


@pytest.mark.parametrize("refit", [True, False])
def test_heads_and_neurons_go_by_their_own_shares_and_the_second_layer_is_fitted(monkeypatch, refit):
    own, (mlp, attn) = subject(), ("image_encoder/mlp", "image_encoder/attn")
    rng = np.random.default_rng(0)
    h = rng.normal(size=(50, 12)) @ rng.normal(size=(12, 12))
    moment = h.T @ h / len(h)
    scores = {f"{mlp}/fc2": np.arange(1.0, 13), f"{attn}/proj": np.array([2.0, 1.0])}
    monkeypatch.setattr(module, "importance", lambda *words: scores)
    monkeypatch.setattr(module, "moments", lambda *words: {f"{mlp}/fc2": moment})
    made = module._init(own, calibration(1), heads=0.5, neurons=0.25, refit=refit)
    assert made.facts == {"neurons": "9 of 12", "heads": "1 of 2"}
    second = own.params["params"]["image_encoder"]["mlp"]["fc2"]["kernel"]
    wanted = refitted(second, moment, list(range(3, 12))) if refit else second[3:]
    np.testing.assert_array_equal(made.delta["neurons"][mlp]["fc2/kernel"], wanted)
    alone = module._init(own, calibration(1), neurons=0.25, refit=refit)
    assert alone.facts == {"neurons": "9 of 12", "heads": "0 of 0"}
    most = module._init(own, calibration(1), neurons=0.95, refit=refit)
    assert most.facts["neurons"] == "8 of 12"  # so many stay in a perceptron


def test_a_few_of_every_module_stay():
    scores = {"a": np.zeros(5), "b": np.ones(5)}
    assert {path: len(left) for path, left in kept_parts(scores, 0.9, 2).items()} == {"a": 2, "b": 2}
    assert kept_parts({"a": np.array([0.3, 0.1, 0.2])}, 0.9, 1) == {"a": [0]}


def test_what_depends_on_the_rest_can_go_without_a_trace():
    rng = np.random.default_rng(0)
    h = rng.normal(size=(300, 5))
    h[:, 4] = 2 * h[:, 0] - h[:, 1]
    w = rng.normal(size=(5, 3)).astype(np.float32)
    kept = [0, 1, 2, 3]
    found = refitted(w, h.T @ h / len(h), kept)
    np.testing.assert_allclose(h[:, kept] @ found, h @ w, atol=1e-3)


def test_the_fit_is_that_of_least_squares_and_changes_nothing_where_nothing_goes():
    rng = np.random.default_rng(1)
    h = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    w = rng.normal(size=(6, 2)).astype(np.float32)
    moment, kept = h.T @ h / len(h), [0, 2, 3, 5]
    best = np.linalg.lstsq(h[:, kept], h @ w, rcond=None)[0]
    np.testing.assert_allclose(refitted(w, moment, kept), best, atol=1e-3)
    np.testing.assert_array_equal(refitted(w, moment, list(range(6))), w)
    lost = [np.square(h[:, kept] @ v - h @ w).sum() for v in (refitted(w, moment, kept), w[kept])]
    assert lost[0] < 0.7 * lost[1]
    assert lost[0] == pytest.approx(np.square(h[:, kept] @ best - h @ w).sum(), rel=1e-3)
