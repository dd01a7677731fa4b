"""A published model is loaded once; then segmenting imports and builds nothing of it."""

import inspect
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from medvfm_jax import fetch, traces
from medvfm_jax.catalog import Catalog
from medvfm_jax.models import catalog
from medvfm_jax.predict import ready
from medvfm_jax.train import base_model, stored_delta
from medvfm_jax.types import ModelSpec
from medvfm_jax.weights import export, load, registry

HEAVY = ("flax", "optax", "orbax", "grain", "scipy", "nibabel", "medvfm_jax.models", "medvfm_jax.adapters")


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The name of weights with a recorded digest, which lie in the cache; -> (name, file)."""
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path))
    load_base = inspect.unwrap(base_model.load_base)  # tests keep what it gives
    for module in (base_model, stored_delta):
        monkeypatch.setattr(module, "load_base", load_base)
    entry = replace(
        registry.WEIGHTS["lite-medsam"],
        name="small",
        model="lite-tiny-test",
        source="https://localhost/small.safetensors",
    )
    file = registry.cached_path(entry)
    file.parent.mkdir(parents=True)
    export.save_torch(tmp_path / "small.safetensors", load("lite-tiny-test")[1], {})
    (tmp_path / "small.safetensors").rename(file)
    tiny = catalog.MODELS["lite-tiny-test"]._replace(start="published")
    monkeypatch.setattr(
        catalog,
        "MODELS",
        Catalog("model", {**catalog.MODELS, "lite-tiny-test": tiny}, catalog.UnknownModel),
    )
    known = {
        **registry.WEIGHTS,
        "small": replace(entry, sha256=fetch.sha256_of(file), size=file.stat().st_size),
    }
    monkeypatch.setattr(registry, "WEIGHTS", Catalog("weights", known, registry.UnknownWeights))
    return "small", file


def found(name):
    return ready.without_delta(name, dtype="float32", file=None, offline=True)


def same(left, right):
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


def test_the_second_time_nothing_is_built_and_the_numbers_are_the_same(published, monkeypatch):
    first = found(published[0])
    monkeypatch.setattr(ready, "loaded_alone", None)  # would fail if anything were loaded
    second = found(published[0])
    assert second.spec == first.spec
    assert isinstance(second.spec, ModelSpec)
    assert same(second.params, first.params)
    assert second.words == first.words


def test_a_program_that_was_not_kept_is_traced_with_weights_that_were(published):
    found(published[0])
    kept = found(published[0])
    shape = jax.ShapeDtypeStruct(kept.spec.input_shape, np.float32)
    embedding = jax.eval_shape(lambda image: kept.adapted().encode(kept.params, {}, image), shape)
    assert embedding.shape == kept.spec.embedding


def test_a_file_that_is_gone_or_of_another_size_is_not_replaced_by_what_was_kept(published):
    name, file = published
    found(name)
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(fetch.WrongDigest):
        found(name)
    file.unlink()
    with pytest.raises(fetch.FetchError, match="not in the cache"):
        found(name)


@pytest.mark.parametrize("kind", ["facts", "arrays"])
def test_what_was_damaged_is_loaded_anew(published, tmp_path, kind):
    first = found(published[0])
    (kept,) = tmp_path.rglob(f"*.{kind}")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    assert same(found(published[0]).params, first.params)
    assert traces.facts(["as it is", published[0], "float32"]) is not None


def test_segment_imports_what_it_needs():
    ask = "import sys, medvfm_jax.cli.segment; print(*[n for n in sys.argv[1:] if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", ask, *HEAVY], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
