"""An encoder outside JAX: the same embeddings, exported once, never another's; what it cannot do is one sentence."""

import functools

import jax
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.adapters import adapt_model, lora
from medvfm_jax.export import CannotExport, checking, export_encoder, formats
from medvfm_jax.export import frozen_encoder as module
from medvfm_jax.export.frozen_encoder import cores, frozen_encoder
from medvfm_jax.models import build
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.settings.runtime import described

pytest.importorskip("onnxruntime")
NAME = "lite-tiny-test"


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVFM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(weights, "load", functools.lru_cache(weights.load))
        yield


def image(model):
    return np.random.default_rng(0).uniform(size=model.spec.input_shape).astype(np.float32)


def test_jax_needs_none():
    model, params = weights.load(NAME)
    assert frozen_encoder("jax", model, params) is None
    assert described(None) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "bits", "error"), [("onnxruntime", 32, 1e-5), ("onnxruntime-int8", 8, 0.1)]
)
def test_embeddings_are_those_of_jax_and_the_record_says_whose(runtime, bits, error):
    model, params = weights.load(NAME)
    if bits == 8:  # somebody allowed more before: the bound of a runtime is its own
        export_encoder(model, params, int8=True, int8_bound=0.7)
    found = frozen_encoder(runtime, model, params)
    wanted, got = np.asarray(model.encode(params, image(model))), found.encode(image(model))
    assert (got.shape, got.dtype) == (wanted.shape, np.float32)
    off = np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean())
    assert (bits == 8) == (off > 1e-4)
    assert off < error
    assert (found.record["name"], found.record["bits"]) == ("onnxruntime", bits)
    assert found.record["error"] <= found.record["bound"] == (0.1 if bits == 8 else 1e-4)
    assert described(found.record) == f"encoder by onnxruntime, {bits} bits"
    assert not found.adapted


@pytest.mark.slow
def test_it_is_exported_once_and_caches_can_tell_it_from_others(monkeypatch):
    model, params = weights.load(NAME)
    written = []
    real = formats.FORMATS["onnx"].write
    fake = formats.FORMATS["onnx"]._replace(write=lambda part, path: (written.append(path), real(part, path)))
    monkeypatch.setattr(module, "export_encoder", _with_format(fake, module.export_encoder))
    other = jax.tree.map(lambda leaf: leaf * 1.01, params)
    words = [frozen_encoder("onnxruntime", model, tree).words for tree in (other, other, params)]
    words.append(frozen_encoder("onnxruntime-int8", model, params).words)
    assert words[0] == words[1]
    assert len(set(words)) == 3
    assert len(written) <= 3


def _with_format(fake, real):
    from medvfm_jax.export import run

    def exported(*args, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "require_installed", lambda *a, **k: fake)
            return real(*args, **options)

    return exported


def with_lora(model, params):
    adapted = adapt_model(lora(2, None, ".*/qkv"), model)
    delta = adapted.init(jax.random.key(0), params)
    return adapted, jax.tree.map(lambda leaf: leaf + 0.05, delta)


@pytest.mark.slow
def test_an_adapter_in_the_encoder_is_folded_in():
    model, params = weights.load(NAME)
    adapted, delta = with_lora(model, params)
    found = frozen_encoder("onnxruntime", model, params, adapted, delta)
    assert found.adapted
    wanted = np.asarray(adapted.encode(params, delta, image(model)))
    plain = np.asarray(model.encode(params, image(model)))
    np.testing.assert_allclose(found.encode(image(model)), wanted, atol=1e-4)
    assert np.abs(wanted - plain).max() > 1e-2


def test_what_cannot_be_folded_in_is_refused():
    from medvfm_jax.adapters import NotMergeable

    model, params = weights.load(NAME)
    adapted, delta = with_lora(model, params)

    def merge(params, delta):
        raise NotMergeable("a nonlinearity stands between its layers.")

    with pytest.raises(
        BadConfig, match="nonlinearity stands between its layers\\); leave out --runtime onnxruntime"
    ):
        frozen_encoder("onnxruntime", model, params, adapted._replace(merge=merge), delta)


def test_more_than_its_bound_is_refused_with_the_figure(monkeypatch):
    model, params = weights.load(NAME)
    monkeypatch.setattr(module, "INT8_BOUND", 1e-5)
    with pytest.raises(
        CannotExport, match=r"off by 0\.0\d+ of its embedding .* more than 1e-05; take --runtime onnx"
    ):
        frozen_encoder("onnxruntime-int8", model, params)


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "onnx"), ("litert", "litert")])
def test_a_runtime_that_is_missing_is_named_with_its_extra(monkeypatch, runtime, extra):
    model, params = weights.load(NAME)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CannotExport, match=rf"pip install 'medvfm-jax\[{extra}\]'"):
        frozen_encoder(runtime, model, params)


def test_bfloat16_and_volumes_are_refused():
    import jax.numpy as jnp

    model, params = weights.load(NAME, dtype=jnp.bfloat16)
    with pytest.raises(BadConfig, match="leave out --dtype bfloat16"):
        frozen_encoder("onnxruntime", model, params)
    volumes = build("unet-3d")
    with pytest.raises(BadConfig, match="sees volumes, which JAX alone encodes"):
        frozen_encoder("onnxruntime", volumes, {})


def test_threads_are_the_cores_of_the_process():
    import os

    assert cores() == len(os.sched_getaffinity(0))
    assert checking.FLOAT_BOUND == 1e-4
