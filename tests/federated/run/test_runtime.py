"""`federate` with the frozen encoder outside JAX."""

import json

import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.settings.records import BadConfig
from tests.federated.small_federation import small

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 12, size=32)


@pytest.mark.slow
def test_a_run_learns_the_same_and_records_what_encoded(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    settings = {"rounds": 1, "embeddings": "disk"}
    ours = federate(small(cells, tmp_path / "jax", **settings))
    kept = {path.parent.name for path in (tmp_path / "cache" / "embeddings").rglob("*.npy")}
    theirs = federate(small(cells, tmp_path / "onnx", runtime="onnxruntime", **settings))
    both = {path.parent.name for path in (tmp_path / "cache" / "embeddings").rglob("*.npy")}
    assert len(kept) == 1
    assert len(both) == 2  # embeddings of two runtimes are never mixed
    record = json.loads((tmp_path / "onnx" / "config.json").read_text())
    assert record["resolved"]["runtime"] | {"version": ""} == {
        "name": "onnxruntime",
        "version": "",
        "bits": 32,
    }
    scores = [json.loads((result.folder / "scores.json").read_text()) for result in (ours, theirs)]
    assert "runtime" not in scores[0]
    assert scores[1]["runtime"]["name"] == "onnxruntime"
    for one, other in zip(scores[0]["cases"], scores[1]["cases"], strict=True):
        assert one.get("dice") == pytest.approx(other.get("dice"), abs=2e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "lora"}, "trains inside the encoder"),
        ({"embeddings": "off"}, "leave out --embeddings off"),
        ({"augment": "flips"}, "and --augment"),
    ],
)
def test_an_encoder_that_is_not_asked_once_is_refused(cells, tmp_path, settings, words):
    with pytest.raises(BadConfig, match=words):
        resolve(small(cells, tmp_path / "run", runtime="onnxruntime", **settings))
    assert not (tmp_path / "run").exists()
