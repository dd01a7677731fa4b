import functools
import os
import signal

import jax
import numpy as np
import optax
import pytest

from medvfm_jax.train import loop
from medvfm_jax.train.loop import AGREED, LoaderExhausted, NonFiniteLoss, fit
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
    ).state
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
    assert int(fit(STEP, start(), toy.Loader(), hooks, steps=9).state.step) == 2
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
    assert int(fit(STEP, start(), loader, steps=3).state.step) == 3


def test_a_finished_state_is_returned_untouched():
    state = fit(STEP, start(), toy.Loader(), steps=2).state
    assert fit(STEP, state, toy.Loader(length=0), steps=2).state is state


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_end_lets_the_step_finish_and_the_hooks_see_it_as_the_last(number):
    seen = []

    def hook(end):
        if end.step == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt, match=AGREED):
        fit(STEP, start(), toy.Loader(), [hook, lambda e: seen.append((e.step, e.last))], steps=9)
    assert seen == [(1, False), (2, False), (3, True)]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_processes_are_asked_every_few_steps_and_end_together_at_the_next_question():
    seen, asked = [], []

    def hook(end):
        if end.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def agree(flag):
        asked.append(flag)
        return flag

    with pytest.raises(KeyboardInterrupt):
        fit(STEP, start(), toy.Loader(), [hook, lambda e: seen.append((e.step, e.last))], steps=20, agree=agree,
            agree_every=4)  # fmt: skip
    assert asked == [True]
    assert seen == [(1, False), (2, False), (3, False), (4, True)]


class NumbersAlone:
    """A hook that reads the state at every third step and at the end."""

    def __init__(self):
        self.ends, self.seconds = [], []

    def reads_state(self, step, last):
        return last or step % 3 == 0

    def __call__(self, end):
        self.ends.append((end.step, end.metrics["loss"], end.last, end.state is not None))
        self.seconds.append(end.seconds)


def test_numbers_that_nobody_needs_at_once_leave_the_device_while_the_next_step_runs(monkeypatch):
    events = []

    class Number:
        def __init__(self, step):
            self.step = step

        def __array__(self, dtype=None, copy=None):
            events.append(("read", self.step))
            return np.float32(self.step)

    def step(state, batch):
        number = int(state.step) + 1
        events.append(("given", number))
        return state._replace(step=np.int32(number)), {"loss": Number(number)}

    hook = NumbersAlone()
    fitted = fit(step, start(), toy.Loader(), [hook], steps=7)
    assert int(fitted.state.step) == 7
    assert [what for what in events if what[0] == "given"] == [("given", n) for n in range(1, 8)]
    # 1, 2, 4, 5 are read when the next step was given to the device; 3, 6 and 7 at once.
    for number in range(1, 8):
        read, following = events.index(("read", number)), number + (number % 3 != 0 and number < 7)
        assert events[read - 1][0] == "given" or events[read - 1] == ("read", number - 1)
        assert max(n for what, n in events[:read] if what == "given") == following
    assert [end[:2] for end in hook.ends] == [(n, float(n)) for n in range(1, 8)]
    assert [end[0] for end in hook.ends if end[3]] == [3, 6, 7]
    assert [end[0] for end in hook.ends if end[2]] == [7]


def test_late_numbers_change_neither_the_result_nor_what_the_hooks_are_told():
    at_once, late = [], NumbersAlone()
    first = fit(STEP, start(), toy.Loader(), [lambda e: at_once.append((e.step, e.metrics["loss"]))], steps=8)
    second = fit(STEP, start(), toy.Loader(), [late], steps=8)
    assert [end[:2] for end in late.ends] == at_once
    jax.tree.map(np.testing.assert_array_equal, first.state.delta, second.state.delta)


def test_a_bad_step_is_named_though_its_numbers_come_late():
    hook = NumbersAlone()
    with pytest.raises(NonFiniteLoss, match="step 2"):
        fit(STEP, start(), toy.Loader(nan_at=1), [hook], steps=8)
    assert [end[0] for end in hook.ends] == [1]


def test_a_hook_that_is_told_late_and_asks_to_stop_ends_the_step_in_progress():
    hook = NumbersAlone()
    asks = lambda end: end.step == 4  # noqa: E731
    asks_late = type("Asks", (), {"reads_state": lambda *_: False, "__call__": lambda self, end: asks(end)})()
    assert int(fit(STEP, start(), toy.Loader(), [hook, asks_late], steps=20).state.step) == 5
    assert [end[0] for end in hook.ends if end[2]] == [5]


def test_every_step_is_told_with_its_own_seconds(monkeypatch):
    """A batch takes a second and nothing else any time, whether the numbers of a step come late or at once."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])

    class Slow(toy.Loader):
        def __next__(self):
            now[0] += 1
            return super().__next__()

    hook = NumbersAlone()
    fit(STEP, start(), Slow(), [hook], steps=8)
    assert hook.seconds == [1.0] * 7 + [0.0]  # nothing is fetched during the last
