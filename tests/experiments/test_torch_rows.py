"""The other side of `medvfm bench`, without PyTorch: what it answers, and that it fails by answering."""

from pathlib import Path

from experiments.benchmarks import torch_rows
from experiments.benchmarks.harness import Work
from medvfm_jax.settings.bench import ROW_NAMES

WORK = Work(Path(), None, 1, 1024, False)


def test_a_row_is_built_warmed_up_and_timed(monkeypatch):
    ran = []
    monkeypatch.setattr(torch_rows, "build", lambda work, *words: lambda: ran.append(words))
    calls = {}
    assert torch_rows.answer(calls, WORK, {"prepare": ["m", "encode", 4]}) == {}
    assert ran == [("m", "encode", 4)]
    assert torch_rows.answer(calls, WORK, {"run": ["m", "encode"]})["seconds"] >= 0
    assert len(ran) == 2


def test_failures_are_answers(monkeypatch):
    assert torch_rows.answer({}, WORK, {"run": ["m", "encode"]})["failed"].startswith("KeyError")
    assert torch_rows.answer({}, WORK, {"prepare": ["sam-b", "samed", 1]}) == {
        "failed": "no samed of sam-b there"
    }

    def breaks(*words):
        raise RuntimeError("no memory")

    monkeypatch.setattr(torch_rows, "build", breaks)
    assert torch_rows.answer({}, WORK, {"prepare": ["a", "b", 1]}) == {"failed": "RuntimeError: no memory"}


def test_the_rows_it_names_are_rows_of_the_command(monkeypatch):
    built = []
    for name in ("samed_step", "decoder_step", "sam_encoder"):
        monkeypatch.setattr(torch_rows, name, lambda *words, name=name: built.append(name) or name)
    for name in ("lite_encoder", "lite_box_to_mask"):
        monkeypatch.setattr(
            torch_rows.peers_torch, name, lambda *words, name=name: built.append(name) or name
        )
    for row in ROW_NAMES[:4]:
        torch_rows.build(WORK, "lite-medsam", row, 2)
    assert built == ["lite_encoder", "lite_box_to_mask", "samed_step", "decoder_step"]
