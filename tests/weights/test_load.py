import importlib
import os

import jax
import numpy as np
import pytest

from medvfm_jax.models import catalog
from medvfm_jax.weights import artifacts, export, load, registry, safetensors_files
from medvfm_jax.weights.fitting import fitting_models, port_file, set_aside_in
from medvfm_jax.weights.port import PortError, PortTable, Row, to_jax
from medvfm_jax.weights.torch_opcodes import BadCheckpoint, UnsafeCheckpoint
from medvfm_jax.weights.tree import flatten
from tests.weights.torch_files import Named, dumps, save, write_zip

TINY = ("sam-tiny-test", "lite-tiny-test", "vit-tiny-test")


def random_params(name, **options):
    """Parameters that are all different from each other and from any initialisation."""
    shapes = jax.eval_shape(catalog.build(name, **options).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)


def same(left, right):
    return jax.tree.all(jax.tree.map(np.array_equal, left, right))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "lite-tiny-test")) for n in TINY]
)
def test_pth_safetensors_and_own_files_give_the_same_parameters(tmp_path, name):
    params = random_params(name)
    state = export.torch_state(params)
    assert all("." in key or key in ("cls_token", "pos_embed") for key in state)
    save(tmp_path / "a.pth", state)
    export.save_torch(tmp_path / "b.safetensors", params, {})
    export.save_own(tmp_path / "c.safetensors", params, name)
    for file in ("a.pth", "b.safetensors", "c.safetensors"):
        model, loaded = load(name, tmp_path / file)
        assert same(loaded, params)
        assert model.spec.name == name
        assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", [pytest.param("sam-tiny-test", marks=pytest.mark.slow), "vit-tiny-test"])
def test_scanned_models_get_the_same_numbers_stacked(tmp_path, name):
    params = random_params(name)
    export.save_torch(tmp_path / "b.safetensors", params, {})
    model, stacked = load(name, tmp_path / "b.safetensors", scan_blocks=True)
    expected = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda a: a.shape, stacked) == jax.tree.map(lambda a: a.shape, expected)
    back = export.torch_state(stacked)
    for key, value in export.torch_state(params).items():
        np.testing.assert_array_equal(back[key], value)


@pytest.mark.parametrize("name", [*TINY, pytest.param("unet", marks=pytest.mark.slow)])
def test_models_without_weights_start_from_a_fixed_seed(name, monkeypatch):
    monkeypatch.setattr(registry, "fetch", None)  # would fail if anything were fetched
    small = {"classes": 2, "base": 4, "depth": 2} if name == "unet" else {}
    first, second = load(name, **small)[1], load(name, **small)[1]
    assert artifacts.fingerprint(first) == artifacts.fingerprint(second)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))


def test_a_file_is_converted_once_and_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    module = importlib.import_module("medvfm_jax.weights.load")
    converted = []

    def counted(file, *rest):
        converted.append(file)
        return port_file(file, *rest)

    monkeypatch.setattr(module, "port_file", counted)
    params, file = random_params("lite-tiny-test"), tmp_path / "a.safetensors"
    export.save_torch(file, params, {})
    before = file.stat()
    for _ in range(2):
        assert same(load("lite-tiny-test", file)[1], params)
    assert len(converted) == 1
    other = jax.tree.map(lambda a: a + 1, params)
    export.save_torch(file, other, {})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # same name, size and time
    assert file.stat().st_size == before.st_size
    assert same(load("lite-tiny-test", file)[1], other)
    assert len(converted) == 2


def test_unknown_names(tmp_path):
    with pytest.raises(Exception, match="sam-b"):
        load("sam-bb")


def test_checkpoint_of_another_model_loads_nothing(tmp_path):
    export.save_torch(tmp_path / "vit.safetensors", random_params("vit-tiny-test"), {})
    with pytest.raises(PortError) as caught:
        load("lite-tiny-test", tmp_path / "vit.safetensors")
    assert caught.value.unused_sources
    assert caught.value.missing_targets
    export.save_own(tmp_path / "own.safetensors", random_params("vit-tiny-test"), "vit-tiny-test")
    with pytest.raises(PortError):
        load("lite-tiny-test", tmp_path / "own.safetensors")


def test_own_file_of_another_shape_is_refused(tmp_path):
    params = random_params("vit-tiny-test")
    arrays = flatten(params["params"])
    arrays["image_encoder/norm/bias"] = np.zeros(7, np.float32)
    safetensors_files.write(tmp_path / "x.safetensors", arrays, {"format": "medvfm-params"})
    with pytest.raises(PortError, match=r"norm/bias has shape \(7,\)"):
        load("vit-tiny-test", tmp_path / "x.safetensors")


def test_bad_files(tmp_path):
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        load("sam-tiny-test", tmp_path / "missing.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x50\0\0\0\0\0\0\0{")
    with pytest.raises(BadCheckpoint, match="cannot be read as safetensors"):
        load("sam-tiny-test", tmp_path / "cut.safetensors")
    evil = write_zip(tmp_path / "evil.pth", dumps(Named("os", "system", (f"touch {tmp_path}/pwned",))), {})
    with pytest.raises(UnsafeCheckpoint, match="nothing was executed"):
        load("sam-tiny-test", evil)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.slow
def test_fitting_models(tmp_path):
    export.save_torch(tmp_path / "t.safetensors", random_params("lite-tiny-test"), {})
    assert fitting_models(tmp_path / "t.safetensors") == (["lite-tiny-test"], None)
    state = export.torch_state(random_params("lite-tiny-test"))
    state["image_encoder.neck.1.bais"] = state.pop("image_encoder.neck.1.bias")
    save(tmp_path / "typo.pth", state)
    fits, nearest = fitting_models(tmp_path / "typo.pth")
    assert fits == []
    assert "as lite-tiny-test" in str(nearest)
    assert nearest.unused_sources == ("image_encoder.neck.1.bais",)


@pytest.mark.slow
def test_a_checkpoint_of_the_video_model_says_what_the_image_predictor_leaves_out(tmp_path, capsys):
    """160 arrays of the memory, by the names of the release; an image predictor loads the other 239."""
    params, file = random_params("sam2-tiny-test", memory=True), tmp_path / "sam2.pt"
    state = export.torch_state(params)
    assert len(state) == 399
    assert {"image_encoder.trunk.blocks.0.attn.qkv.weight", "sam_mask_decoder.conv_s0.weight"} <= set(state)
    save(file, state, lambda tensors: {"model": tensors})
    image = {name: part for name, part in params["params"].items() if name != "memory"}
    assert same(load("sam2-tiny-test", file)[1]["params"], image)
    said = capsys.readouterr().err
    assert (
        f"{file}: not used by this model: the memory of the video model, 160 arrays with 236,769 numbers"
        in said
    )
    assert "memory_attention, memory_encoder" in said
    assert set_aside_in(file, "sam2-tiny-test") in said
    assert same(load("sam2-tiny-test", file, memory=True)[1], params)
    assert capsys.readouterr().err == ""
    save(file, {key: value for key, value in state.items() if not key.startswith("memory_encoder.")})
    with pytest.raises(PortError, match=r"parameters of the model are not filled:\n  memory_encoder"):
        load("sam2-tiny-test", file, memory=True)


@pytest.mark.parametrize("kind", ["own", "torch", "pth"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a * np.float32(np.nan), "holds NaN or infinite values"),
        (lambda a: a.astype(np.int32), "holds int32 where floating-point numbers were expected"),
        (lambda a: np.full(a.shape, 1e300), "holds values too large for float32"),
    ],
)
def test_every_source_is_checked_alike(tmp_path, kind, change, words):
    params = random_params("vit-tiny-test")
    state = flatten(params["params"]) if kind == "own" else export.torch_state(params)
    key = next(name for name in state if name.endswith("bias"))
    state[key] = change(state[key])
    path = tmp_path / ("x.pth" if kind == "pth" else "x.safetensors")
    if kind == "pth":
        save(path, state)
    else:
        safetensors_files.write(path, state, {"format": "medvfm-params" if kind == "own" else "pt"})
    with pytest.raises(PortError, match=f"{key} {words}"):
        load("vit-tiny-test", path)
    if kind == "own" or "NaN" not in words:  # to try every model of the family takes seconds
        return
    fits, error = fitting_models(path)
    assert fits == []
    assert words in str(error)


def test_keys_that_become_equal_without_a_prefix_are_refused(tmp_path):
    table = PortTable("t", (Row(("a.weight",), "a/kernel", "none"),), prefixes=("vit.",))
    one = np.ones(2, np.float32)
    target = {"params": {"a": {"kernel": one}}}
    for state in ({"vit.a.weight": one, "a.weight": 0 * one}, {"a.weight": 0 * one, "vit.a.weight": one}):
        with pytest.raises(BadCheckpoint, match=r"are both a\.weight"):
            to_jax(table, state, target)
    np.testing.assert_array_equal(to_jax(table, {"vit.a.weight": one}, target)["params"]["a"]["kernel"], one)
