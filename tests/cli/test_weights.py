import json

import jax
import numpy as np
import pytest

from medvfm_jax import systems, weights
from medvfm_jax.cli.main import main
from medvfm_jax.models.transforms import seeded
from medvfm_jax.train import base_model, stored_delta
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.export import torch_state
from tests.weights.torch_files import Named, dumps, save, write_zip

MODEL = "lite-tiny-test"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))


def run(capsys, *arguments):
    code = main(["weights", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def checkpoint(tmp_path):
    return save(tmp_path / "w.pth", torch_state(weights.load(MODEL)[1]))


def test_list(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0
    assert "lite-medsam" in out
    assert "Apache-2.0" in out
    code, out, _ = run(capsys, "list", "--json")
    first = json.loads(out)["weights"][0]
    assert (first["name"], first["size"], first["cached"]) == ("lite-medsam", 39370479, None)


def test_get_refuses_the_wrong_file(capsys, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"x")
    code, out, err = run(capsys, "get", "sam-b", "--from", tmp_path / "x.pth")
    assert (code, out) == (1, "")
    assert "1 byte where 375042383" in err
    assert run(capsys, "get", "nothing")[0] == 1
    assert run(capsys, "get")[0] == 2


@pytest.mark.slow
def test_verify_and_convert(capsys, tmp_path):
    source, out_file = checkpoint(tmp_path), tmp_path / "own.safetensors"
    code, out, _ = run(capsys, "verify", source, "--json")
    assert code == 0
    assert json.loads(out)["fits"] == [MODEL]
    assert run(capsys, "convert", source, "--to", MODEL, "--out", out_file)[0] == 0
    _, expected = weights.load(MODEL)
    assert weights.fingerprint(weights.load(MODEL, out_file)[1]) == weights.fingerprint(expected)
    code, _, err = run(
        capsys, "convert", source, "--to", "vit-tiny-test", "--out", tmp_path / "no.safetensors"
    )
    assert code == 1
    assert "does not fit" in err
    assert not (tmp_path / "no.safetensors").exists()


def test_malicious_file(capsys, tmp_path):
    path = write_zip(tmp_path / "evil.pth", dumps(Named("os", "system", (f"touch {tmp_path}/pwned",))), {})
    for arguments in (("verify", path), ("convert", path, "--to", MODEL)):
        code, _, err = run(capsys, *arguments)
        assert code == 1
        assert "os.system" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "pwned").exists()


def adapted_run(folder, preset, prompt, classes=1):
    """A finished run directory with a random delta."""
    base = base_model.load_base(MODEL, classes=classes, seed=0, dtype="float32")
    system = systems.SYSTEMS[preset]
    change = seeded(system.transform(base.model.spec, prompt, classes), 0)
    base = base_model.transformed(base, change)
    config = systems.adapter_config(preset, base.model)
    adapted = base_model.with_adapter(base, config)
    shapes = jax.eval_shape(adapted.init, jax.random.key(0), base.params)
    rng = np.random.default_rng(0)
    delta = jax.tree.map(lambda s: rng.normal(size=s.shape, scale=0.1).astype(np.float32), shapes)
    metadata = {"base": MODEL, "fingerprint": base.fingerprint, "adapter": config}
    metadata |= {"prompt": prompt, "classes": classes, "transform": change, "preset": preset, "seed": 0}
    metadata["labels"] = {"background": 0} | {f"label {i}": i for i in range(1, classes)}
    weights.save_delta(folder / "delta.safetensors", delta, metadata)
    return base, adapted.merge(base.params, delta)


@pytest.mark.parametrize(("prompt", "classes"), [pytest.param("box", 1, marks=pytest.mark.slow), ("none", 3)])
def test_export_merged_weights(capsys, tmp_path, prompt, classes):
    base, merged = adapted_run(tmp_path, "samed", prompt, classes)
    code, _, _ = run(capsys, "export", tmp_path)
    assert code == 0
    arrays, metadata = safetensors_files.read(tmp_path / "merged.safetensors")
    assert metadata["base"] == MODEL
    for key, value in torch_state(merged).items():
        np.testing.assert_array_equal(arrays[key], value)
    tokens = 4 if prompt == "box" else classes
    assert arrays["mask_decoder.mask_tokens.weight"].shape[0] == tokens
    changed = [k for k, v in torch_state(base.params).items() if not np.array_equal(v, arrays[k])]
    assert any("qkv" in key for key in changed)


@pytest.mark.slow
def test_export_peft_equals_merging(capsys, tmp_path):
    base, merged = adapted_run(tmp_path, "samed", "box")
    code, _, _ = run(capsys, "export", tmp_path, "--format", "peft")
    assert code == 0
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    tensors, _ = safetensors_files.read(tmp_path / "peft" / "adapter_model.safetensors")
    assert config["modules_to_save"] == ["mask_decoder", "prompt_encoder"]
    before, after = torch_state(base.params), torch_state(merged)
    for module in config["target_modules"]:
        a = tensors[f"base_model.model.{module}.lora_A.weight"]
        b = tensors[f"base_model.model.{module}.lora_B.weight"]
        update = config["lora_alpha"] / config["r"] * b @ a
        key = f"{module}.weight"
        np.testing.assert_allclose(before[key] + update, after[key], atol=1e-5)
        after[key] = before[key]
    for key in after:
        stored = tensors.get(f"base_model.model.{key}", before[key])
        np.testing.assert_array_equal(stored, after[key], err_msg=key)


READ_AGAIN = ("samed", "lora", "instances_lora")
REFUSED = ("instances", "instances_full", "lora_sam", "dora", "auto_sam", "h_sam")


# In every run a file that is read again and one that is refused.
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "lora" else [pytest.mark.slow]) for n in (*READ_AGAIN, *REFUSED)],
)
def test_a_peft_folder_comes_back_as_the_model_it_was_or_is_refused(capsys, tmp_path, name):
    """Whatever the system changes of the model: the folder says it, or is not written."""
    prompt = systems.SYSTEMS[name].prompts
    _, merged = adapted_run(tmp_path, name, prompt, 3 if prompt == "none" else 2)
    code, _, err = run(capsys, "export", tmp_path, "--format", "peft")
    if name in REFUSED:
        assert code == 1
        assert err.count("\n") == 1
        assert err.startswith("medvfm: ")
        assert not (tmp_path / "peft").exists()
        return
    assert code == 0, err
    words = ("--to", MODEL, "--out", tmp_path / "back.safetensors")
    code, _, err = run(capsys, "import", tmp_path / "peft", *words)
    assert code == 0, err
    before = weights.load_delta(tmp_path / "delta.safetensors")[1]
    after = weights.load_delta(tmp_path / "back.safetensors")[1]
    same = ("transform", "prompt", "classes", "labels", "fingerprint")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    loaded = stored_delta.load_adapted(tmp_path / "back.safetensors", model=None, dtype="float32")
    again = loaded.adapted.merge(loaded.base.params, loaded.delta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, merged)
    code, _, err = run(capsys, "import", tmp_path / "peft", *words, "--overwrite", "--image-size", 32)
    assert "leave out --image-size" in err
    other = dict(after, fingerprint="0" * 64)
    arrays, header = safetensors_files.read(tmp_path / "peft" / "adapter_model.safetensors")
    header["medvfm"] = json.dumps(other)
    safetensors_files.write(tmp_path / "peft" / "adapter_model.safetensors", arrays, header)
    code, _, err = run(capsys, "import", tmp_path / "peft", *words, "--overwrite")
    assert code == 1
    assert "load the weights it was trained on" in err


def test_export_refuses(capsys, tmp_path):
    code, _, err = run(capsys, "export", tmp_path / "none")
    assert code == 1
    assert "does not exist" in err
    adapted_run(tmp_path, "samed", "box")
    delta, metadata = weights.load_delta(tmp_path / "delta.safetensors")
    weights.save_delta(tmp_path / "delta.safetensors", delta, {**metadata, "fingerprint": "0" * 64})
    code, _, err = run(capsys, "export", tmp_path)
    assert code == 1
    assert "made for 'lite-tiny-test' weights" in err
    assert not (tmp_path / "merged.safetensors").exists()
