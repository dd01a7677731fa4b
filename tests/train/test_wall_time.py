import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvfm_jax.train.wall_time import Span, WallTime, added, divide


def test_what_the_host_does_while_the_device_works_costs_nothing():
    spans = [Span("data", 1.0, 5.0), Span("other", 5.0, 5.5)]
    assert divide(0.0, 6.0, "steps", 4.0, spans) == {"steps": 4.0, "data": 1.0, "other": 1.0}
    assert divide(0.0, 6.0, "steps", 9.0, spans) == {"steps": 6.0, "data": 0.0, "other": 0.0}
    assert divide(0.0, 6.0, "steps", -1.0, spans) == {"steps": 0.0, "data": 4.0, "other": 2.0}


def test_spans_count_within_the_stretch_alone():
    spans = [Span("checkpoint", -3.0, 1.0), Span("validation", 2.0, 9.0)]
    assert divide(0.0, 4.0, "steps", 0.5, spans) == {
        "steps": 0.5, "checkpoint": 0.5, "validation": 2.0, "other": 1.0,
    }  # fmt: skip


@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=10).map(sorted), st.floats(-10, 110), st.floats(0, 50),
    st.floats(50, 100),
)  # fmt: skip
def test_the_parts_add_up_to_the_stretch(cuts, until, begin, end):
    spans = [Span("data", a, b) for a, b in zip(cuts[::2], cuts[1::2])]
    found = divide(begin, end, "steps", until, spans)
    assert sum(found.values()) == pytest.approx(end - begin)
    assert min(found.values()) >= 0


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_clock_tells_start_compilation_steps_and_the_rest_apart():
    now = Clock()
    clock = WallTime(now)
    now.now += 3  # weights
    with clock.spending("data"):
        now.now += 1  # the first batch belongs to the start
    clock.giving()
    now.now += 10  # compiles
    clock.given(())
    with clock.spending("data"):
        now.now += 2  # the device is still busy
    now.now += 1
    clock.done()
    assert clock.take() == {"start": 4.0, "compilation": 13.0}
    with clock.spending("checkpoint"):
        now.now += 4
    clock.giving()
    now.now += 5
    clock.given(())
    clock.done()
    with clock.spending("validation"):
        now.now += 6
    now.now += 0.5
    assert clock.take() == {"checkpoint": 4.0, "steps": 5.0, "validation": 6.0, "other": 0.5}
    assert clock.take() == {}


class Slow:
    """An array that is there when it is told to be."""

    def __init__(self):
        self.there = threading.Event()

    def block_until_ready(self):
        self.there.wait(10)
        return self


def test_a_thread_notes_when_a_step_was_done_while_the_host_waited_for_data():
    with WallTime() as clock:
        clock.giving()
        first = Slow()
        clock.given(first)
        first.there.set()
        time.sleep(0.05)
        clock.take()
        clock.giving()
        step = Slow()
        clock.given({"loss": step})
        with clock.spending("data"):
            time.sleep(0.1)
            step.there.set()
            time.sleep(0.2)
        spent = clock.take()
    assert spent["steps"] == pytest.approx(0.1, abs=0.06)
    assert spent["data"] == pytest.approx(0.2, abs=0.06)


def test_sums_by_name():
    assert added({"a": 1.0}, {"a": 2.0, "b": 3.0}) == {"a": 3.0, "b": 3.0}
