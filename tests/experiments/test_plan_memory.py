"""Predicted against measured memory: the error is what it says, and both sides measure the same tiny step."""

import json

import pytest

from experiments.benchmarks import plan_memory

TINY = {"model": "sam-tiny-test", "adapter": "linear", "image_size": 32, "global_batch": 2}


def test_the_error_is_that_of_the_prediction(monkeypatch):
    asked = []
    monkeypatch.setattr(plan_memory, "predict", lambda settings: asked.append(settings) or {"peak_mib": 90.0})
    monkeypatch.setattr(
        plan_memory, "measure", lambda settings: asked.append(settings) or {"peak_mib": 100.0}
    )
    case = plan_memory.compare(TINY)
    assert case["error"] == pytest.approx(-0.1)
    assert case["settings"] == TINY
    assert asked == [TINY, TINY]


def test_the_command_is_asked_for_the_settings_and_bytes_become_mib(monkeypatch):
    asked = []
    memory = {"peak": 3 << 20, "arguments": 1 << 20, "temporaries": 2 << 20}
    monkeypatch.setattr(plan_memory, "_run", lambda command: asked.append(command[3:]) or {"memory": memory})
    assert plan_memory.predict(TINY) == {"peak_mib": 3.0, "arguments_mib": 1.0, "temporaries_mib": 2.0}
    words = "plan --json --model sam-tiny-test --adapter linear --image-size 32 --global-batch 2"
    assert asked == [words.split()]


def test_a_process_that_fails_ends_the_benchmark_with_its_last_line(monkeypatch):
    with pytest.raises(SystemExit, match="There is no model 'sam-x'"):
        plan_memory.measure({"model": "sam-x"})


@pytest.mark.slow
def test_a_tiny_step_takes_memory_and_trains(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # memory of the program that users run
    measured = plan_memory.measure(TINY | plan_memory._ALWAYS)
    assert measured["peak_mib"] >= measured["arguments_mib"] > 0
    assert json.loads(json.dumps(measured))["loss"] > 0
