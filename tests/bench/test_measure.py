"""The numbers of the table as closed forms of what the clocks say."""

import contextlib

import pytest

from medvfm_jax.bench import machine, measure, peer, rows
from medvfm_jax.bench.measure import bench
from medvfm_jax.settings.bench import BadBench, BenchConfig

MODEL = "lite-tiny-test"
SECONDS = {"encode": 2.0, "loader": 0.5, "product": 0.1, "copy": 0.2}


class Fakes:
    """Rows, ceilings and a peer whose clocks say what is planned; ``asked`` has what happened, in order."""

    def __init__(self, patch):
        self.asked = []
        patch.setattr(rows, "subject", lambda name, dtype: name)
        patch.setattr(rows, "build", self.build)
        patch.setattr(measure, "alone", self.alone)
        patch.setattr(machine, "product", lambda dtype: machine.Ceiling("product", 3e9))
        patch.setattr(machine, "copy", lambda: machine.Ceiling("copy", 4e9))
        patch.setattr(measure, "timed", lambda call: lambda: SECONDS[getattr(call, "row", call)])
        patch.setattr(peer, "missing", lambda: None)
        patch.setattr(peer, "started", lambda: contextlib.nullcontext(self))

    def build(self, row, given, batch_size):
        def call():
            self.asked.append(("first", row))

        call.row = row
        return rows.Row(call, batch_size, 12e9 if row == "encode" else None)

    def alone(self, *words):
        self.asked.append(("alone", words[1]))
        return {"first_s": 9.0, "loaded_mib": 50.0, "peak_mib": 70.0, "device_peak_mib": None}

    def prepare(self, model, row, batch_size):
        if row == "loader":
            raise peer.Lost("no loader there")

    def run(self, model, row):
        return 3.0


@pytest.fixture
def fakes(monkeypatch):
    return Fakes(monkeypatch)


def test_every_number_of_a_row(fakes):
    found = bench(BenchConfig((MODEL,), ("encode", "loader"), rounds=3, batch_size=4))
    assert found.product_gflop_per_s == {"best": pytest.approx(30), "median": pytest.approx(30)}
    assert found.copy_gb_per_s["best"] == pytest.approx(20)
    encode, loader = found.rows
    assert encode.seconds == [2.0] * 3
    assert (encode.median_s, encode.images_per_s, encode.gflop) == (2.0, 2.0, 12.0)
    assert encode.share == pytest.approx(12 / 2 / 30)
    assert (encode.first_s, encode.peak_mib, encode.peak_of) == (9.0, 70.0, "process")
    assert encode.peer_seconds == [3.0] * 3
    assert encode.peer_over_ours == 1.5
    assert encode.note is None
    assert (loader.images_per_s, loader.gflop, loader.share, loader.peer_over_ours) == (8.0, None, None, None)
    assert loader.note == "PyTorch: no loader there"
    assert found.comparison.startswith("compared with eager PyTorch")


def test_fresh_processes_come_first_and_every_row_is_warm(fakes):
    bench(BenchConfig((MODEL,), ("encode", "loader"), rounds=1))
    assert fakes.asked == [("alone", "encode"), ("alone", "loader"), ("first", "encode"), ("first", "loader")]


def test_a_quick_look_has_no_memory(fakes):
    found = bench(BenchConfig((MODEL,), ("encode",), quick=True))
    assert ("alone", "encode") not in fakes.asked
    row = found.rows[0]
    assert (row.peak_mib, row.peak_of, row.first_s, row.images) == (None, None, None, 1)
    assert len(row.seconds) == 2


def test_an_accelerator_counts_its_own_memory_and_a_failure_is_noted(fakes, monkeypatch):
    answers = {"encode": {"device_peak_mib": 5.0, "peak_mib": 70.0}, "loader": {"failed": "killed"}}
    monkeypatch.setattr(measure, "alone", lambda model, row, *rest: answers[row])
    encode, loader = bench(BenchConfig((MODEL,), ("encode", "loader"), rounds=1)).rows
    assert (encode.peak_mib, encode.peak_of) == (5.0, "device")
    assert loader.peak_mib is None
    assert loader.note == "killed; PyTorch: no loader there"


@pytest.mark.parametrize(
    ("settings", "missing", "reason"),
    [
        ({"without_pytorch": True}, None, "as asked"),
        ({"dtype": "bfloat16"}, None, "its rows are in float32 on a CPU"),
        ({}, "PyTorch is not installed", "PyTorch is not installed"),
    ],
)
def test_why_nothing_is_compared(fakes, monkeypatch, settings, missing, reason):
    monkeypatch.setattr(peer, "missing", lambda: missing)
    found = bench(BenchConfig((MODEL,), ("encode",), rounds=1, **settings))
    assert found.comparison == f"not compared with PyTorch: {reason}"
    assert found.rows[0].peer_seconds is None


def test_the_median_ratio_is_that_of_rounds(fakes, monkeypatch):
    """A slow moment hits both sides: the ratio of the medians would be 3 / 2."""
    ours, theirs = iter([1.0, 4.0, 2.0]), iter([3.0, 8.0, 2.0])
    monkeypatch.setattr(
        measure, "timed", lambda call: (lambda: next(ours)) if hasattr(call, "row") else lambda: 1.0
    )
    fakes.run = lambda model, row: next(theirs)
    assert bench(BenchConfig((MODEL,), ("encode",), rounds=3)).rows[0].peer_over_ours == 2.0


def test_models_are_checked_before_anything_runs(fakes):
    with pytest.raises(BadBench, match="takes no prompts"):
        bench(BenchConfig((MODEL, "vit-b")))
    assert fakes.asked == []


def test_rounds_can_be_tracked_and_steps_are_said(fakes):
    said, tracked = [], []
    bench(
        BenchConfig((MODEL,), ("encode",), rounds=2),
        said.append,
        lambda rounds: (tracked.append(i) or i for i in rounds),
    )
    assert tracked == [0, 1]
    assert any("alone in a fresh process" in line for line in said)
    assert any("compiling" in line for line in said)
    assert said[-1].endswith("PyTorch")
