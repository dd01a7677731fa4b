"""The published LiteMedSAM weights against outputs of the PyTorch implementation."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.types import Prompts


@pytest.fixture(scope="module")
def lite_medsam():
    model, params = weights.load("lite-medsam")
    return model, params, jax.jit(model.encode), jax.jit(model.decode, static_argnames="multimask")


def build_prompts(kind: dict, golden) -> Prompts:
    points, labels = list(kind.get("points", [])), list(kind.get("labels", []))
    if "box" in kind:
        x0, y0, x1, y1 = kind["box"]
        points, labels = [*points, [x0, y0], [x1, y1]], [*labels, 2, 3]
    elif points:
        points, labels = [*points, [0, 0]], [*labels, -1]
    mask = jnp.asarray(golden["random/mask_prompt"]).reshape(1, 256, 256, 1) if "mask" in kind else None
    return Prompts(
        jnp.asarray(points, jnp.float32).reshape(1, -1, 2),
        jnp.asarray(labels, jnp.int32).reshape(1, -1),
        mask,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hippocampus", "nuclei", "random"])
def test_all_prompt_kinds_match_pytorch(lite_medsam, reference_data, name):
    _, params, encode, decode = lite_medsam
    golden = np.load(reference_data / "golden" / "lite_medsam_torch.npz")
    image = golden[f"{name}/image_u8"].astype(np.float32)
    image = (image - image.min()) / (image.max() - image.min())
    embedding = encode(params, image)
    expected = golden[f"{name}/embedding"]
    step = embedding.shape[0] // expected.shape[0]
    np.testing.assert_allclose(embedding[::step, ::step], expected, atol=1e-3)
    for kind, prompt in json.loads(str(golden["prompts_json"])).items():
        out = decode(
            params, embedding, build_prompts(prompt, golden), multimask=prompt.get("multimask", False)
        )
        logits = golden[f"{name}/{kind}/low_res_logits"]
        tolerance = min(1e-3, 1e-4 * np.abs(logits).max())
        np.testing.assert_allclose(
            out.logits.reshape(logits.shape), logits, rtol=0, atol=tolerance, err_msg=kind
        )
        np.testing.assert_allclose(out.iou.ravel(), golden[f"{name}/{kind}/iou"].ravel(), atol=1e-3)
