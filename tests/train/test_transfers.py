"""In its steady state training moves nothing between host and device but what it says it moves."""

import jax
import numpy as np
import pytest

from medvfm_jax.train import resolve, train
from medvfm_jax.train.hooks import MetricsLog
from tests.train.small_runs import build_models_once, small


class Guarded:
    """Hook: from the end of step ``first`` on every transfer that nobody asked for is an error, until the end."""

    def __init__(self, first=2):
        self.first, self.steps = first, []

    def reads_state(self, step, last):
        return step == 1

    def __call__(self, end):
        self.steps.append(end.step)
        if end.step == self.first:
            jax.config.update("jax_transfer_guard", "disallow")


@pytest.fixture(autouse=True)
def allowed_again(monkeypatch):
    build_models_once(monkeypatch)
    yield
    jax.config.update("jax_transfer_guard", "allow")


@pytest.mark.parametrize(
    "settings",
    [
        {"embeddings": "device"},
        pytest.param({"augment": "flips", "accumulate": 1}, marks=pytest.mark.slow),
        pytest.param(
            {"model": "lite-tiny-test", "adapter": "samed", "prompt": "none", "augment": "full"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["bank", "images", "adapted-encoder"],
)
def test_steady_steps_transfer_nothing_that_was_not_asked_for(cells, tmp_path, settings):
    run = resolve(small(cells, tmp_path / "run", validate_every=0, steps=8, **settings))
    guard, lines = Guarded(), []
    trained = train(run, [MetricsLog(lines.append, run.schedule), guard])
    assert guard.steps == list(range(1, 9))
    assert trained.step == 8
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_the_guard_notices_a_batch_that_nobody_put_on_the_device(cells, tmp_path, monkeypatch):
    from medvfm_jax.parallel.placement import Placement

    monkeypatch.setattr(Placement, "put_share", lambda self, batch: batch)
    run = resolve(small(cells, tmp_path / "run", validate_every=0, steps=8))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(run, [Guarded()])
