"""The published LiteMedSAM weights against outputs of the PyTorch implementation."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.types import Prompts

PICTURES = ("hippocampus", "nuclei", "random")
ABSOLUTE, RELATIVE = 1e-3, 1e-4  # the second as a share of the largest logit


@functools.cache
def lite_medsam():
    """No fixture: one for the module would be made, and fetch the weights, before a test is skipped."""
    model, params = weights.load("lite-medsam")
    return params, jax.jit(model.encode), jax.jit(model.decode, static_argnames="multimask")


def build_prompts(kind: dict, golden) -> Prompts:
    """A stored question in our words; as in SAM, points without a box get a padding point, a box comes last."""
    points, labels = list(kind.get("points", [])), list(kind.get("labels", []))
    if "box" in kind:
        x0, y0, x1, y1 = kind["box"]
        points, labels = [*points, [x0, y0], [x1, y1]], [*labels, 2, 3]
    elif points:
        points, labels = [*points, [0, 0]], [*labels, -1]
    return Prompts(
        jnp.asarray(points, jnp.float32).reshape(1, -1, 2),
        jnp.asarray(labels, jnp.int32).reshape(1, -1),
        jnp.asarray(golden[kind["mask"]]).reshape(1, 256, 256, 1) if "mask" in kind else None,
    )


@pytest.mark.parametrize("name", PICTURES)
def test_all_prompt_kinds_match_pytorch(reference_data, name):
    """Box, one point, two points, point in a box, mask, three masks: embedding, logits and predicted IoU."""
    params, encode, decode = lite_medsam()
    golden = np.load(reference_data / "golden" / "lite_medsam_torch.npz")
    kinds = json.loads(str(golden["prompts_json"]))
    assert set(kinds) == {"box", "point", "points", "box_point", "mask", "multimask"}
    image = golden[f"{name}/image_u8"].astype(np.float32)
    image = (image - image.min()) / (image.max() - image.min())
    embedding, expected = encode(params, image), golden[f"{name}/embedding"]
    step = embedding.shape[0] // expected.shape[0]  # one picture's embedding is stored thinned out
    np.testing.assert_allclose(embedding[::step, ::step], expected, rtol=0, atol=ABSOLUTE)
    for kind, prompt in kinds.items():
        three = prompt.get("multimask", False)
        out = decode(params, embedding, build_prompts(prompt, golden), multimask=three)
        logits, iou = golden[f"{name}/{kind}/low_res_logits"], golden[f"{name}/{kind}/iou"]
        assert out.logits[0].shape == logits.shape
        assert out.iou[0].shape == iou.shape == ((3,) if three else (1,))
        tolerance = min(ABSOLUTE, RELATIVE * np.abs(logits).max())
        np.testing.assert_allclose(out.logits[0], logits, rtol=0, atol=tolerance, err_msg=kind)
        np.testing.assert_allclose(out.iou[0], iou, rtol=0, atol=min(ABSOLUTE, RELATIVE), err_msg=kind)
