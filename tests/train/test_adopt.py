"""Adapters of other programs become deltas: every array under its name, once, with the same bits, and what it does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.adapters import delta_leaves
from medvfm_jax.cli.main import main
from medvfm_jax.images import Image
from medvfm_jax.models.sam.encoder import Block
from medvfm_jax.models.sam.input_rule import with_input
from medvfm_jax.models.sam.prompt_free import to_semantic
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.adopt import adopt
from medvfm_jax.train.base_model import Base, transformed, with_adapter
from medvfm_jax.weights import safetensors_files
from medvfm_jax.weights.adapter_files import BadAdapterFile
from medvfm_jax.weights.export import torch_state
from medvfm_jax.weights.peft import LowRank, load_peft, save_peft
from tests.weights.torch_files import save

MODEL, DIM, BLOCKS, RANK, CLASSES = "sam-tiny-test", 16, 4, 2, 3
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def base():
    return weights.load(MODEL)


def of_sam(model, params):
    """State of prompt encoder and mask decoder, all numbers new; SAMed has an IoU head beside its classes."""
    semantic = to_semantic(model, params, CLASSES)[1]
    state = torch_state(semantic) | {
        f"mask_decoder.iou_prediction_head.layers.{i}.{name}": np.zeros((3,) * (1 + (name == "weight")))
        for i in range(3)
        for name in ("weight", "bias")
    }
    kept = {k: v for k, v in state.items() if not k.startswith("image_encoder")}
    return {k: normal(*v.shape) * 0.1 for k, v in kept.items()}


def samed_file(model, params, blocks=BLOCKS, dim=DIM):
    state = of_sam(model, params)
    for i in range(2 * blocks):
        state[f"w_a_{i:03d}"], state[f"w_b_{i:03d}"] = normal(RANK, dim), normal(dim, RANK)
    return state


def samed_s_file(model, params):
    """Two layers of the decoder, 32 wide, half of it inside the attentions with the image."""
    state = {k: v for k, v in samed_file(model, params).items() if "transformer" not in k}
    for i in range(4):
        for word, inner in (("sa", 32), ("cti", 16), ("cit", 16)):
            state[f"{word}_a_{i:03d}"], state[f"{word}_b_{i:03d}"] = normal(RANK, 32), normal(inner, RANK)
    for letter in "qv":
        state[f"fati_{letter}a"], state[f"fati_{letter}b"] = normal(RANK, 32), normal(16, RANK)
    return state


def med_sa_file(params):
    """A whole checkpoint: the base's encoder, relative positions under another name and left at zero, adapters."""
    state = {}
    for key, value in torch_state(params).items():
        if "rel_pos" in key:
            state[key.replace("rel_pos", "rel")] = np.zeros_like(value)
        else:
            state[key] = value if key.startswith("image_encoder") else normal(*value.shape) * 0.1
    for i in range(BLOCKS):
        for word in ("Space", "MLP", "Depth"):
            name = f"image_encoder.blocks.{i}.{word}_Adapter"
            state |= {f"{name}.D_fc1.weight": normal(4, DIM), f"{name}.D_fc1.bias": normal(4)}
            state |= {f"{name}.D_fc2.weight": normal(DIM, 4), f"{name}.D_fc2.bias": normal(DIM)}
    return state


def bytes_of(arrays):
    return sorted(np.ascontiguousarray(a, np.float32).tobytes() for a in arrays)


def same_bits(delta, state):
    """Every array of the file is in the delta once, and nothing else; matrices may lie the other way round."""
    found = bytes_of(leaf.array for leaf in delta_leaves(delta))
    flat = bytes_of(np.sort(leaf.array, None) for leaf in delta_leaves(delta))
    assert len(found) == len(state)
    assert flat == bytes_of(np.sort(np.asarray(a, np.float32), None) for a in state.values())


def test_a_samed_file_gives_what_samed_computes(tmp_path, base):
    """qkv's columns of q and v get (w_b w_a)^T: index 2 i is q, 2 i + 1 is v of block i; the decoder is the file's."""
    model, params = base
    state = samed_file(model, params)
    save(tmp_path / "epoch.pth", state)
    found = adopt(tmp_path / "epoch.pth", MODEL, image_size=32, labels=("background", "liver", "spleen"))
    assert found.metadata["preset"] == "samed"
    assert found.metadata["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    assert found.left_out == ("6 arrays of the IoU head, which a model of classes does not have",)
    used = {k: v for k, v in state.items() if "iou_prediction_head" not in k}
    same_bits(found.delta, used)
    np.testing.assert_array_equal(
        found.delta["lora"]["image_encoder/blocks_1/attn/qkv"]["b_v"], state["w_b_003"].T
    )

    changed = transformed(Base(model, params, ""), found.metadata["transform"])
    spec = changed.model.spec
    assert (spec.input_size, spec.normalise, spec.resize, spec.classes) == (32, "unit", "stretch", CLASSES)
    by_hand = torch_state(changed.params) | {
        k: v for k, v in used.items() if k.startswith(("mask", "prompt"))
    }
    for i in range(BLOCKS):
        key = f"image_encoder.blocks.{i}.attn.qkv.weight"
        by_hand[key] = np.array(by_hand[key])
        by_hand[key][:DIM] += state[f"w_b_{2 * i:03d}"] @ state[f"w_a_{2 * i:03d}"]
        by_hand[key][-DIM:] += state[f"w_b_{2 * i + 1:03d}"] @ state[f"w_a_{2 * i + 1:03d}"]
    expected = weights.to_jax(weights.tables.choose(by_hand), by_hand, changed.params)
    image = normal(32, 32, 3)
    run = jax.jit(lambda params: changed.model.apply(params, image).logits)
    merged = with_adapter(changed, found.metadata["adapter"]).merge(changed.params, found.delta)
    np.testing.assert_allclose(run(merged), run(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_volumes_are_seen_in_the_range_that_samed_was_trained_on(tmp_path, base):
    """-125 to 275 HU, kept by the delta: what lies outside changes nothing, what lies inside does."""
    save(tmp_path / "epoch.pth", samed_file(*base))
    image = rng.integers(-125, 275, (12, 10, 4, 1)).astype(np.int16)
    image[0, 0], image[1, 1] = -125, 275

    def masks(array, **options):
        found = adopt(tmp_path / "epoch.pth", MODEL, image_size=32, **options)
        weights.save_delta(tmp_path / "delta.safetensors", found.delta, found.metadata)
        seen = []
        segmenter = load_segmenter(delta=tmp_path / "delta.safetensors")
        segmenter._labels = lambda picture: seen.append(picture) or np.zeros(picture.shape[:2], np.int32)
        segmenter(Image(array, (1.0, 1.0, 3.0), np.diag([1.0, 1.0, 3.0, 1.0])))
        return np.stack(seen, 2).swapaxes(0, 1)  # a plane has its second axis first

    usual = masks(image)
    np.testing.assert_allclose(usual, (image + 125.0) / 400.0, atol=1e-6)
    beyond = np.where(image == 275, 3000, np.where(image == -125, -1024, image)).astype(np.int16)
    np.testing.assert_array_equal(masks(beyond), usual)
    np.testing.assert_allclose(
        masks(beyond, intensity=(-200.0, 300.0)), np.clip((beyond + 200.0) / 500.0, 0, 1), atol=1e-6
    )
    for wrong in ((275.0, -125.0), (0.0, float("inf"))):
        with pytest.raises(BadConfig, match="two numbers, the least first"):
            adopt(tmp_path / "epoch.pth", MODEL, image_size=32, intensity=wrong)


def test_a_samed_s_file_and_the_size_it_is_released_for(tmp_path, base):
    state = samed_s_file(*base)
    save(tmp_path / "s.pth", state)
    found = adopt(tmp_path / "s.pth", MODEL)
    assert found.metadata["transform"]["image_size"] == 512
    same_bits(found.delta, {k: v for k, v in state.items() if "iou_prediction_head" not in k})
    decoder = found.delta["decoder_lora"]
    root = "mask_decoder/transformer"
    np.testing.assert_array_equal(
        decoder[f"{root}/layers_1/cross_attn_image_to_token/v_proj"]["b"], state["cit_b_003"].T
    )
    np.testing.assert_array_equal(
        decoder[f"{root}/final_attn_token_to_image/q_proj"]["a"], state["fati_qa"].T
    )


@pytest.mark.slow
def test_a_checkpoint_of_medical_sam_adapter(tmp_path, base):
    """Adapters and decoder are the file's; the frozen encoder has to be the base's, but for positions left at zero."""
    _, params = base
    state = med_sa_file(params)
    save(tmp_path / "med.pth", state)
    found = adopt(tmp_path / "med.pth", MODEL, prompt="point")
    used = {k: v for k, v in state.items() if "Adapter" in k or ".rel_" in k or "image_encoder" not in k}
    same_bits(found.delta, {k: v for k, v in used.items() if "Depth" not in k})
    assert found.left_out[0] == "16 arrays of adapters that med_sa does not use on pictures"
    assert "image encoder, which are those of the base" in found.left_out[1]
    assert found.metadata["prompt"] == "point"
    assert found.metadata["transform"]["pad_before_norm"] is True
    assert found.metadata["adapter"]["parts"]["space"]["width"] == 4
    volumes = {k: v for k, v in state.items() if "iou_prediction_head" not in k}
    save(tmp_path / "volumes.pth", volumes)
    found = adopt(tmp_path / "volumes.pth", MODEL, system="sd_trans")
    same_bits(found.delta, {k: v for k, v in used.items() if "iou_prediction_head" not in k})
    assert found.metadata["transform"]["kind"] == "slab"
    assert found.metadata["classes"] == 4
    state["image_encoder.blocks.0.mlp.lin1.bias"] = normal(32)
    save(tmp_path / "med.pth", state)
    with pytest.raises(BadAdapterFile, match=r"1 array of its image encoder differ .*lin1/bias first"):
        adopt(tmp_path / "med.pth", MODEL)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("w_b_003"), r"1 array is not in the file \(w_b_003\)"),
        (
            lambda s: s.pop("mask_decoder.iou_token.weight"),
            r"lacks 1 parameter of the model, mask_decoder/iou_token/embedding;",
        ),
        (
            lambda s: [s.pop(key) for key in list(s) if key.startswith("prompt_encoder.")],
            r"lacks \d+ parameters of the model, prompt_encoder/",
        ),
        (lambda s: s.update(w_a_008=s["w_a_000"]), r"1 array has no place in the model \(w_a_008\)"),
        (lambda s: s.update(w_a_002=normal(3, DIM)), r"blocks_1/attn/qkv has shape \(16, 3\)"),
        (lambda s: s.update(w_b_001=normal(DIM + 8, RANK)), "was made for another backbone"),
        (lambda s: s.update(w_b_001=s["w_b_001"] * np.nan), "holds NaN"),
        (lambda s: s.update(w_a_000=normal(DIM)), r"w_a_000 has shape \(16,\)"),
        (lambda s: s.update(w_a_000=normal(0, DIM)), r"w_a_000 has shape \(0, 16\)"),
        (lambda s: s.pop("mask_decoder.mask_tokens.weight"), "number of classes is not known"),
    ],
)
def test_a_file_that_does_not_fit(tmp_path, base, change, sentence):
    state = samed_file(*base)
    change(state)
    save(tmp_path / "x.pth", state)
    with pytest.raises(BadAdapterFile, match=sentence):
        adopt(tmp_path / "x.pth", MODEL, image_size=32)


def test_files_of_other_backbones_and_options_that_do_not_go_with_a_file(tmp_path, base):
    save(tmp_path / "deep.pth", samed_file(*base, blocks=6))
    with pytest.raises(BadAdapterFile, match=r"8 arrays have no place in the model .*another backbone"):
        adopt(tmp_path / "deep.pth", MODEL)
    state = samed_file(*base)
    for i in range(2 * BLOCKS):
        state[f"w_a_{i:03d}"], state[f"w_b_{i:03d}"] = normal(17, DIM), normal(DIM, 17)
    save(tmp_path / "rank.pth", state)
    with pytest.raises(BadAdapterFile, match=r"rank\.pth: a rank of 17 is larger .*; the file was made"):
        adopt(tmp_path / "rank.pth", MODEL)
    save(tmp_path / "sam.pth", torch_state(base[1]))
    with pytest.raises(BadAdapterFile, match="no adapter of SAMed"):
        adopt(tmp_path / "sam.pth", MODEL)
    save(tmp_path / "good.pth", samed_file(*base))
    with pytest.raises(BadConfig, match=r"has 3 outputs; give as many different --labels"):
        adopt(tmp_path / "good.pth", MODEL, labels=("a", "b"))
    with pytest.raises(BadConfig, match="leave out --system"):
        adopt(tmp_path / "good.pth", MODEL, system="sd_trans")


def test_the_command_makes_a_delta_that_segments(tmp_path, base, capsys):
    save(tmp_path / "epoch.pth", samed_file(*base))
    out = tmp_path / "delta.safetensors"
    words = ["weights", "import", str(tmp_path / "epoch.pth"), "--to", MODEL, "--out", str(out)]
    assert main([*words, "--image-size", "32"]) == 0
    assert "samed on sam-tiny-test (decoder, lora)" in capsys.readouterr().out
    assert main(words) != 0
    assert "exists; add --overwrite" in capsys.readouterr().err
    np.save(tmp_path / "picture.npy", rng.integers(0, 255, (20, 24), np.uint8))
    mask = tmp_path / "mask.png"
    assert main(["segment", str(tmp_path / "picture.npy"), "--delta", str(out), "--out", str(mask)]) == 0
    assert mask.is_file()
    assert load_segmenter(delta=out).labels == {0: "background", 1: "class_1", 2: "class_2"}


@pytest.mark.parametrize("names", ["original", "transformers"])
def test_a_peft_folder_is_read_as_it_was_written(tmp_path, base, names):
    """Two ranks and scales, and a decoder as a whole: the same updates, the same values, the same masks."""
    model, params = base
    qkv, lin1 = "image_encoder/blocks_0/attn/qkv", "image_encoder/blocks_1/mlp/lin1"
    updates = {
        qkv: LowRank(normal(16, 2), normal(2, 48), 0.5),
        lin1: LowRank(normal(16, 3), normal(3, 32), 1.0),
    }
    trained = jax.tree.map(lambda a: a + 0.1, params)
    saved = ("mask_decoder", "prompt_encoder")
    save_peft(tmp_path / "peft", updates, trained, MODEL, saved, names)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    tensors, _ = safetensors_files.read(tmp_path / "peft" / "adapter_model.safetensors")
    layer = "vision_encoder.layers.0" if names == "transformers" else "image_encoder.blocks.0"
    assert f"base_model.model.{layer}.attn.qkv.lora_A.weight" in tensors
    more = ["shared_image_embedding"] if names == "transformers" else []
    assert config["modules_to_save"] == [*saved, *more]
    read = load_peft(tmp_path / "peft", params)
    assert read.updates.keys() == updates.keys()
    for path, update in updates.items():
        np.testing.assert_array_equal(read.updates[path].a, update.a)
        np.testing.assert_array_equal(read.updates[path].b, update.b)
    found = adopt(tmp_path / "peft", MODEL)
    assert found.metadata["transform"] is None
    merged = with_adapter(Base(model, params, ""), found.metadata["adapter"]).merge(params, found.delta)
    for path, update in updates.items():
        *_, block, module, layer = path.split("/")
        kernel = params["params"]["image_encoder"][block][module][layer]["kernel"]
        np.testing.assert_allclose(
            merged["params"]["image_encoder"][block][module][layer]["kernel"],
            kernel + update.scale * update.a @ update.b,
            rtol=1e-6,
            atol=1e-6,
        )
    for root in saved:
        jax.tree.map(np.testing.assert_array_equal, merged["params"][root], trained["params"][root])


def test_a_peft_folder_of_a_model_without_prompts_has_its_classes(tmp_path, base):
    """As `weights export --format peft` writes a run of samed: told from the mask tokens and the missing IoU head."""
    params = to_semantic(*base, CLASSES)[1]
    qkv = "image_encoder/blocks_0/attn/qkv"
    save_peft(
        tmp_path,
        {qkv: LowRank(normal(16, 2), normal(2, 48), 1.0)},
        params,
        MODEL,
        ["mask_decoder"],
        "transformers",
    )
    found = adopt(tmp_path, MODEL)
    assert found.metadata["transform"] == {"kind": "prompt_free", "classes": CLASSES}
    assert found.metadata["prompt"] == "none"
    assert found.delta["decoder"]["mask_decoder/mask_tokens"]["embedding"].shape == (CLASSES, 32)


def test_padding_before_the_norm_is_its_bias(base):
    """A map filled up with zeros by the caller, before the block's norm, shows what padding before the norm must do."""
    model, params = base
    plain = model.root.encoder.config
    before = with_input(model, pad_before_norm=True).root.encoder.config
    moved = jax.tree.map(lambda a: a + 0.1, params)["params"]["image_encoder"][
        "blocks_0"
    ]  # norms with biases
    x = normal(4, 5, DIM)  # windows of 3
    filled = np.pad(x, ((0, 2), (0, 1), (0, 0)))

    def run(config, x):
        return jax.jit(Block(config, is_global=False).apply)({"params": moved}, x)

    found, expected, after = run(before, x), run(plain, filled)[:4, :5], run(plain, x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert float(jnp.abs(after - found).max()) > 1e-3
