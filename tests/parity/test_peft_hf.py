"""PEFT's files for transformers' ``SamModel``: its own module names, and W + lora_alpha / r B A there as PEFT adds it.

The peft library is not needed: what it does at a Linear layer is one line.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from medvfm_jax.models import build  # noqa: E402
from medvfm_jax.train.adopt import _from_peft  # noqa: E402
from medvfm_jax.train.base_model import Base, with_adapter  # noqa: E402
from medvfm_jax.types import Prompts  # noqa: E402
from medvfm_jax.weights import safetensors_files  # noqa: E402
from medvfm_jax.weights.peft import LowRank, load_peft, save_peft  # noqa: E402
from medvfm_jax.weights.port import to_jax  # noqa: E402
from medvfm_jax.weights.tables import choose  # noqa: E402
from tests.parity.hf_sam import hf_sam  # noqa: E402

pytestmark = pytest.mark.parity

PATHS = {
    "image_encoder/blocks_0/attn/qkv": (16, 48),
    "image_encoder/blocks_3/mlp/lin2": (32, 16),
    "mask_decoder/transformer/layers_1/cross_attn_image_to_token/v_proj": (32, 16),
}


def test_an_exported_adapter_is_that_of_sam_model(tmp_path):
    model = build("sam-tiny-test")
    hf = hf_sam(model)
    state = {key: value.numpy().copy() for key, value in hf.state_dict().items()}
    params = to_jax(choose(state), state, jax.eval_shape(model.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    made = {
        path: LowRank(*(rng.normal(size=s).astype(np.float32) for s in ((n, 2), (2, m))), 0.25)
        for path, (n, m) in PATHS.items()
    }
    save_peft(tmp_path, made, params, "sam-tiny-test", ["prompt_encoder"], names="transformers")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors, _ = safetensors_files.read(tmp_path / "adapter_model.safetensors")
    modules, whole = dict(hf.named_modules()), set()
    with torch.no_grad():
        for key, value in tensors.items():
            name = key.removeprefix("base_model.model.")
            module, _, end = name.rpartition(".lora_")
            if not module:
                assert state[name].shape == value.shape  # of modules_to_save
                whole.add(name.split(".")[0])
            elif end == "A.weight":
                b = tensors[key.replace("lora_A", "lora_B")]
                assert isinstance(modules[module], torch.nn.Linear)
                modules[module].weight += torch.tensor(config["lora_alpha"] / config["r"] * b @ value)
    assert whole == set(config["modules_to_save"]) == {"prompt_encoder", "shared_image_embedding"}

    read = load_peft(tmp_path, params)
    adapter, delta = _from_peft(read)
    base = Base(model, jax.tree.map(jnp.asarray, params), "")
    adapted = with_adapter(base, adapter)
    image = rng.normal(size=(64, 64, 3)).astype(np.float32)
    theirs = hf.get_image_embeddings(torch.tensor(image.transpose(2, 0, 1))[None])
    ours = jax.jit(adapted.encode)(base.params, delta, image)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).detach().numpy(), atol=1e-4)
    with torch.no_grad():
        out = hf(
            image_embeddings=theirs,
            input_boxes=torch.tensor([[[9.0, 9.0, 40.0, 50.0]]]),
            multimask_output=True,
        )
    box = Prompts(jnp.array([[[9.0, 9.0], [40.0, 50.0]]]), jnp.array([[2, 3]]))
    decode = jax.jit(adapted.decode, static_argnames="multimask")
    masks = decode(base.params, delta, ours, box, multimask=True)
    np.testing.assert_allclose(masks.logits[0], out.pred_masks[0, 0].numpy(), atol=1e-3)
