import functools
import os
import signal

import jax
import numpy as np
import optax
import pytest

from medvfm_jax.train.loop import LoaderExhausted, NonFiniteLoss, fit
from medvfm_jax.train.state import init_state
from medvfm_jax.train.step import make_step
from tests.train import toy

OPTIMIZER = optax.adam(0.01)
STEP = functools.partial(make_step(toy.loss, OPTIMIZER), toy.PARAMS)


def start():
    return init_state(toy.delta(), OPTIMIZER, jax.random.key(5))


def test_takes_the_planned_steps_and_tells_each_hook_in_order():
    seen = []
    state = fit(
        STEP,
        start(),
        toy.Loader(),
        [lambda e: seen.append(("a", e)), lambda e: seen.append(("b", e))],
        steps=3,
    )
    assert int(state.step) == 3
    assert [(name, e.step, e.last) for name, e in seen] == [
        (name, step, step == 3) for step in (1, 2, 3) for name in ("a", "b")
    ]
    assert [e.loader_state["position"] for _, e in seen[::2]] == [1, 2, 3]  # of the batch used, not the next
    assert all(e.examples == 4 and np.isfinite(e.metrics["loss"]) for _, e in seen)


def test_the_loss_falls():
    losses = []
    fit(STEP, start(), toy.Loader(), [lambda e: losses.append(e.metrics["loss"])], steps=200)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])


def test_a_hook_that_says_stop_ends_it_and_later_hooks_see_the_last_step():
    seen = []
    hooks = [lambda e: e.step == 2, lambda e: seen.append(e.last)]
    assert int(fit(STEP, start(), toy.Loader(), hooks, steps=9).step) == 2
    assert seen == [False, True]


def test_a_loss_that_is_not_finite_names_the_step_and_reaches_no_hook():
    seen = []
    with pytest.raises(NonFiniteLoss, match="loss is not finite at step 3"):
        fit(STEP, start(), toy.Loader(nan_at=2), [lambda e: seen.append(e.step)], steps=5)
    assert seen == [1, 2]


def test_data_that_end_too_early_are_named():
    with pytest.raises(LoaderExhausted, match="after 2 of 5 steps"):
        fit(STEP, start(), toy.Loader(length=2), steps=5)


def test_nothing_is_fetched_beyond_the_last_step():
    loader = toy.Loader(length=3)
    assert int(fit(STEP, start(), loader, steps=3).step) == 3


def test_a_finished_state_is_returned_untouched():
    state = fit(STEP, start(), toy.Loader(), steps=2)
    assert fit(STEP, state, toy.Loader(length=0), steps=2) is state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_lets_the_step_finish_and_the_hooks_see_it_as_the_last(number):
    seen = []

    def hook(end):
        if end.step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        fit(STEP, start(), toy.Loader(), [hook, lambda e: seen.append((e.step, e.last))], steps=9)
    assert seen == [(1, False), (2, False), (3, True)]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
