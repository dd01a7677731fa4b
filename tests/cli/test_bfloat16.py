"""bfloat16 on a CPU is said to be slow, where it is computed here."""

import sys
import types

import jax
import pytest

from medvfm_jax.cli import main as module


@pytest.mark.parametrize(
    ("words", "backend", "warned"),
    [
        (["evaluate", "--model", "lite-medsam", "--data", "d", "--dtype", "bfloat16"], "cpu", True),
        (["evaluate", "--model", "lite-medsam", "--data", "d", "--dtype", "bfloat16"], "gpu", False),
        (["evaluate", "--model", "lite-medsam", "--data", "d"], "cpu", False),
    ],
)
def test_bfloat16_on_a_cpu_is_warned_of(monkeypatch, capsys, words, backend, warned):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setitem(sys.modules, "medvfm_jax.cli.evaluate", types.SimpleNamespace(run=lambda args: 0))
    assert module.main(words) == 0
    assert ("bfloat16 is slower than float32 on a CPU" in capsys.readouterr().err) == warned
