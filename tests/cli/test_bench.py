"""`medvfm bench`: the same numbers for people, for programs and in a file; nothing is overwritten unasked."""

import json

import pytest

import medvfm_jax.cli.bench as command
from medvfm_jax.bench.measure import BenchResult, RowResult
from medvfm_jax.settings.bench import BenchConfig


def row(name, **changes):
    facts = {
        "model": "lite-medsam", "row": name, "measures": "what", "pixels": 256, "images": 4,
        "seconds": [2.0, 2.5, 2.25], "median_s": 2.25, "images_per_s": 1.78, "gflop": 100.0, "share": 0.4,
        "first_s": 30.0, "peak_mib": 1200.0, "peak_of": "process", "peer_seconds": None, "peer_over_ours": None,
        "note": None,
    }  # fmt: skip
    return RowResult(**facts | changes)


def result(*rows, config=None):
    environment = {
        "versions": {"jax": "0.0"}, "cpu": "Some CPU", "cores_of_the_machine": 8, "cores_of_this_process": 2,
    }  # fmt: skip
    speeds = {"best": 300.0, "median": 280.0}, {"best": 20.0, "median": 15.0}
    return BenchResult(config or BenchConfig(), environment, "cpu", *speeds, "not compared: why", list(rows))


@pytest.fixture
def bench(monkeypatch):
    """What `bench` gives, and the settings it was asked with."""
    asked = []

    def give(found):
        monkeypatch.setattr(command, "bench", lambda config, *words: asked.append(config) or found)
        return asked

    return give


def test_the_table_and_what_it_says_about_limits(medvfm, bench):
    asked = bench(
        result(
            row("samed", peer_seconds=[4.0, 6.0, 5.0], peer_over_ours=2.2),
            row("decoder", images_per_s=100.0, note="a note"),
            row("loader", images_per_s=17.8, gflop=None, share=None),
        )
    )
    text = medvfm("bench", "--models", "lite-medsam", "--rounds", 3).out
    assert asked == [BenchConfig(("lite-medsam",), rounds=3)]
    assert "Some CPU, 2 of 8 cores, cpu, float32, jax 0.0, 3 rounds" in text
    assert "matrix product 300 GFLOP/s best, 280 median" in text
    assert "fewer than 15 FLOP per byte is bound by memory" in text
    lines = {line.split(",")[0]: line.split() for line in text.splitlines() if ", 256 px" in line}
    assert lines["lite-medsam samed"][4:] == [
        "4", "2.2500", "1.78", "100.0", "40%", "30.0", "1,200", "5.0000", "2.20",
    ]  # fmt: skip
    assert lines["lite-medsam loader"][4:] == ["4", "2.2500", "17.80", "30.0", "1,200"]
    assert "lite-medsam decoder: a note" in text
    assert "one loader thread makes 10.0 times the images a samed step takes; it keeps up" in text
    assert "one loader thread makes 0.2 times the images a decoder step takes; it holds it up" in text
    assert text.rstrip().endswith("not compared: why")


def test_columns_that_would_be_empty_are_left_out(medvfm, bench):
    bench(result(row("encode", first_s=None, peak_mib=None)))
    head = next(line for line in medvfm("bench", "--quick").out.splitlines() if line.startswith("row"))
    assert "PyTorch" not in head
    assert "MiB" not in head
    assert head.rstrip().endswith("of product")


def test_json_on_stdout_and_in_a_file_that_is_not_overwritten_unasked(medvfm, bench, tmp_path):
    asked = bench(result(row("encode")))
    file = tmp_path / "new" / "bench.json"
    record = medvfm("bench", "--out", file, "--json").json
    assert record["rows"][0]["seconds"] == [2.0, 2.5, 2.25]
    assert json.loads(file.read_text()) == record
    before = file.read_text()
    medvfm("bench", "--out", file).refused(f"{file} exists; add --overwrite", code=2)
    assert file.read_text() == before
    assert len(asked) == 1  # refused before anything was measured
    bench(result(row("segment")))
    said = medvfm("bench", "--out", file, "--overwrite").out
    assert f"wrote {file}" in said
    assert json.loads(file.read_text())["rows"][0]["row"] == "segment"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--models", "lite-medsma"], "There is no model 'lite-medsma', the nearest is 'lite-medsam'"),
        (["--models", "unet"], "Model 'unet' takes no prompts"),
        (["--rounds", "0"], "rounds is 0; expected at least 1"),
        (["--rows", "encoder"], "--rows is 'encoder'; expected encode, segment, samed, decoder or loader"),
    ],
)
def test_what_does_not_exist_is_refused(medvfm, words, sentence):
    medvfm("bench", *words).refused(sentence)
