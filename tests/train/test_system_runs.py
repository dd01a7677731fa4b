"""Systems that add modules to a model: a run trains them, and its delta builds the model again without the system."""

import json

import jax
import numpy as np
import pytest

from medvfm_jax import systems
from medvfm_jax.adapters.parameter_paths import leaves_by_path
from medvfm_jax.train.adaptation import adapt
from medvfm_jax.train.stored_delta import load_adapted
from medvfm_jax.weights import artifacts
from tests.adapters.toy_sam import BOX
from tests.train.small_runs import build_models_once, small

SLABS = ("ma_sam", "3dmedsam", "3dsam_adapter")
THIN = {"ma_sam": ("fact.rank=4", "before_attention.width=4", "before_mlp.width=4")}


@pytest.fixture(autouse=True)
def models(monkeypatch):
    build_models_once(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["desam", "auto_sam", "h_sam", "trans_sam", "samus", *SLABS],
)
def test_what_trains_is_in_the_delta_with_the_model_that_it_belongs_to(name, cells, volumes, tmp_path):
    out = tmp_path / "run"
    more = {"window": (3,)} if name in SLABS else {}
    settings = small(
        volumes if name in SLABS else cells, out, adapter=name, prompt="auto", seed=5, batch_size=1, steps=2,
        validate_every=0, set=THIN.get(name, ()), **more,
    )  # fmt: skip
    adapt(settings)
    record = json.loads((out / "config.json").read_text())
    kinds = [change["kind"] for change in _nested(record["resolved"]["transform"])]
    assert kinds or name == "trans_sam"
    arrays, metadata = artifacts.load_delta(out / "delta.safetensors")
    assert metadata["transform"] == record["resolved"]["transform"]
    loaded = load_adapted(out / "delta.safetensors", model=None, dtype="float32", run=record)
    spec = loaded.adapted.spec
    given = (np.zeros(spec.input_shape, np.float32), *([BOX] if spec.task == "promptable" else []))
    logits = jax.jit(loaded.adapted.apply)(loaded.base.params, loaded.delta, *given).logits
    assert logits.shape[-len(spec.logits_shape) :] == spec.logits_shape
    assert np.isfinite(logits).all()
    # Every array of the parts that are stored whole moved from where the seed had put it.
    start = loaded.adapted.init(jax.random.key(0), loaded.base.params)
    parts = systems.SYSTEMS[name].adapter(spec)
    for part in (p for p, options in parts.items() if options["kind"] == "whole"):
        moved = [
            not np.array_equal(a, b)
            for a, b in zip(*(_values(d[part]) for d in (arrays, start)), strict=True)
        ]
        assert np.mean(moved) > 0.8


def _nested(change):
    while change is not None:
        yield change
        change = change.get("of")


def _values(tree):
    return [leaf for *_, leaf in sorted(leaves_by_path(tree), key=lambda entry: entry[:2])]
