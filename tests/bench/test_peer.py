"""A peer is asked for rows in a process of its own; its refusals and its death are told, not raised through."""

import pytest

from medvfm_jax.bench import peer


@pytest.fixture
def running():
    started = peer.Peer("tests.bench.fake_peer")
    yield started
    started.stop()


def test_rows_are_prepared_and_run(running):
    running.prepare("lite-tiny-test", "encode", 4)
    assert running.run("lite-tiny-test", "encode") == 0.25


def test_a_row_it_does_not_know_leaves_the_others(running):
    with pytest.raises(peer.Lost, match="no samed of lite-tiny-test there"):
        running.prepare("lite-tiny-test", "samed", 4)
    running.prepare("lite-tiny-test", "encode", 4)


def test_its_last_words_are_the_reason_when_it_ends(running):
    for _ in range(2):  # also when it is gone already
        with pytest.raises(peer.Lost, match="no memory is left"):
            running.prepare("lite-tiny-test", "loader", 4)


def test_a_module_that_is_not_there():
    started = peer.Peer("tests.bench.no_such_peer")
    with pytest.raises(peer.Lost, match="No module named"):
        started.prepare("a", "b", 1)
    started.stop()


def test_why_there_is_no_peer(monkeypatch, tmp_path):
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    assert "PyTorch is not installed" in peer.missing()
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: "found")
    assert peer.missing() is None
    monkeypatch.setattr(peer, "ROOT", tmp_path)
    assert "run medvfm bench from a clone" in peer.missing()
