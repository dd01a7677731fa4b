"""Everybody gets one turn per round, in an order that rotates; a clock measures the call and nothing else."""

import time

import pytest

from medvfm_jax.bench.turns import rotated, take_turns, timed


def test_the_order_rotates_and_every_clock_has_one_turn_per_round():
    order = []

    def clock(name, seconds):
        return lambda: order.append(name) or seconds

    seconds = take_turns({name: clock(name, i) for i, name in enumerate("abc")}, range(4))
    assert "".join(order) == "abc" "bca" "cab" "abc"  # fmt: skip
    assert seconds == {"a": [0] * 4, "b": [1] * 4, "c": [2] * 4}


def test_rotation():
    assert rotated(["a", "b", "c"], 4) == ["b", "c", "a"]
    assert rotated([], 3) == []


def test_a_clock_measures_its_call():
    assert timed(lambda: time.sleep(0.05))() == pytest.approx(0.05, abs=0.045)
    assert timed(lambda: time.sleep(0.05))() >= 0.05
