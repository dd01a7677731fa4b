"""What an error of a process among several leads to: of a lost one a sentence, of others the error itself."""

import atexit

import jax
import pytest

from medvfm_jax.parallel import BadProcesses, processes, with_others

GLOO = "UNKNOWN: Gloo all-reduce failed: Read error [10.0.0.2]:2680: Connection reset by peer\nmore"


@pytest.fixture
def registered(monkeypatch):
    found = []
    monkeypatch.setattr(atexit, "register", found.append)
    return found


@pytest.mark.parametrize(
    "message", [GLOO, "UNAVAILABLE: Task 1 heartbeat timeout", "INTERNAL: NCCL remote error"]
)
def test_a_lost_process_is_told_and_not_waited_for(monkeypatch, registered, message):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(BadProcesses, match=r"was lost .*--resume") as refused, with_others():
        raise jax.errors.JaxRuntimeError(message)
    assert "more" not in str(refused.value)
    assert registered == [processes._leave]


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"), ValueError("gloo")]
)
def test_an_error_of_its_own_stays_what_it_is(monkeypatch, registered, error):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(type(error)) as kept, with_others():
        raise error
    assert kept.value is error
    assert registered == [processes._leave]


def test_a_single_process_leaves_as_always(registered):
    with pytest.raises(jax.errors.JaxRuntimeError), with_others():
        raise jax.errors.JaxRuntimeError(GLOO)
    assert registered == []


def test_a_signal_to_all_is_answered_together(monkeypatch, registered):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(KeyboardInterrupt), with_others():
        raise KeyboardInterrupt
    assert registered == []
