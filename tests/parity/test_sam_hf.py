"""SAM against transformers' ``SamModel`` with random weights: encoder, every prompt kind, one mask and three."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from medvfm_jax.models import build  # noqa: E402
from medvfm_jax.models.model import Model  # noqa: E402
from medvfm_jax.types import Params, Prompts  # noqa: E402
from medvfm_jax.weights.port import to_jax  # noqa: E402
from medvfm_jax.weights.tables import choose  # noqa: E402
from tests.parity.hf_sam import hf_sam  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE = {"sam-b": 1e-4, "sam-tiny-test": 1e-5}
BOX = np.array([[0.2, 0.3, 0.7, 0.8]])  # in units of the image's side
BOXES = np.array([[0.2, 0.3, 0.7, 0.8], [0.0, 0.1, 0.5, 0.45], [0.6, 0.05, 1.0, 0.3]])
POINTS, LABELS = np.array([[0.4, 0.5], [0.1, 0.2], [0.85, 0.3]]), np.array([1, 0, 1])
SEVERAL, THEIR_LABELS = np.array([POINTS[:2], POINTS[1:]]), np.array([[1, 0], [0, 1]])
ROUGH_MASK = "mask"  # stands for a low-resolution mask of the model's size

# What transformers is asked -> the same prompt as points and labels of ours.  transformers appends a padding
# point to points without a box, as SAM does, and puts boxes behind points.
KINDS = {
    "box": {"input_boxes": BOX},
    "three boxes": {"input_boxes": BOXES},
    "point": {"input_points": POINTS[None, :1], "input_labels": LABELS[None, :1]},
    "points": {"input_points": POINTS[None], "input_labels": LABELS[None]},
    "two queries of points": {"input_points": SEVERAL, "input_labels": THEIR_LABELS},
    "points in a box": {
        "input_points": POINTS[None, :2],
        "input_labels": LABELS[None, :2],
        "input_boxes": BOX,
    },
    "mask in a box": {"input_boxes": BOX, "input_masks": ROUGH_MASK},
    "mask alone": {"input_masks": ROUGH_MASK},
    "nothing": {},
}


class Pair(NamedTuple):
    """The two models with the same weights, and what both make of one image."""

    model: Model
    params: Params
    hf: torch.nn.Module
    embedding: np.ndarray  # theirs, (h, w, c)
    ours: jax.Array


def pair(name: str) -> Pair:
    model = build(name)
    hf = hf_sam(model)
    state = {key: value.numpy() for key, value in hf.state_dict().items()}
    target = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(jnp.asarray, to_jax(choose(state), state, target))
    image = image_of(model.spec.input_size)
    return Pair(model, params, hf, their_embedding(hf, image), jax.jit(model.encode)(params, image))


def image_of(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(size, size, 3)).astype(np.float32)


def their_embedding(hf: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    return (
        hf.get_image_embeddings(torch.from_numpy(image.transpose(2, 0, 1))[None])[0].permute(1, 2, 0).numpy()
    )


def rough_mask(model: Model) -> np.ndarray:
    low = model.spec.logits_size
    return np.random.default_rng(1).normal(size=(1, low, low, 1)).astype(np.float32)


def ask_theirs(both: Pair, kind: str, multimask: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits (Q, M, h, w) and IoU (Q, M) of transformers."""
    size, asked = both.model.spec.input_size, {}
    for key, value in KINDS[kind].items():
        if key == "input_labels":
            asked[key] = torch.as_tensor(value)[None]
        elif key == "input_masks":
            asked[key] = torch.from_numpy(rough_mask(both.model)).permute(0, 3, 1, 2)
        else:
            asked[key] = torch.as_tensor(value * size, dtype=torch.float32)[None]
    features = torch.from_numpy(both.embedding).permute(2, 0, 1)[None]
    with torch.no_grad():
        out = both.hf(image_embeddings=features, multimask_output=multimask, **asked)
    return out.pred_masks[0].numpy(), out.iou_scores[0].numpy()


def our_prompts(model: Model, kind: str) -> Prompts | None:
    """The same question in our words."""
    asked = KINDS[kind]
    if not asked:
        return None
    queries = len(asked.get("input_boxes", asked.get("input_points", [None])))
    points = [asked.get("input_points", np.zeros((queries, 0, 2))) * model.spec.input_size]
    labels = [asked.get("input_labels", np.zeros((queries, 0)))]
    if "input_boxes" in asked:
        points.append(asked["input_boxes"].reshape(queries, 2, 2) * model.spec.input_size)
        labels.append(np.broadcast_to([2, 3], (queries, 2)))
    elif "input_points" in asked:
        points.append(np.zeros((queries, 1, 2)))
        labels.append(np.full((queries, 1), -1))
    mask = jnp.asarray(rough_mask(model)) if "input_masks" in asked else None
    return Prompts(
        jnp.asarray(np.concatenate(points, 1), jnp.float32),
        jnp.asarray(np.concatenate(labels, 1), jnp.int32),
        mask,
    )


@pytest.fixture(scope="module", params=["sam-tiny-test", "sam-b"])
def both(request) -> Pair:
    return pair(request.param)


def test_encoder(both):
    """The tiny model's windows of 3 do not divide its grid of 4, nor do ViT-B's 14 its 64: both are padded."""
    config = both.model.root.encoder.config
    assert both.embedding.shape[0] % config.window
    assert both.embedding.std() > 0.5
    np.testing.assert_allclose(both.ours, both.embedding, atol=TOLERANCE[both.model.spec.name])


def test_every_prompt_kind_with_one_mask_and_with_three(both):
    decode = jax.jit(lambda *inputs: [both.model.decode(*inputs, multimask=many) for many in (False, True)])
    tolerance = {"rtol": 0, "atol": TOLERANCE[both.model.spec.name]}
    seen = []
    for kind in KINDS:
        answers = decode(both.params, both.embedding, our_prompts(both.model, kind))
        for many, ours in zip((False, True), answers, strict=True):
            logits, iou = ask_theirs(both, kind, many)
            assert ours.logits.shape == logits.shape
            np.testing.assert_allclose(ours.logits, logits, **tolerance, err_msg=f"{kind}, {many=}")
            np.testing.assert_allclose(ours.iou, iou, **tolerance, err_msg=f"{kind}, {many=}")
            seen += [*logits.reshape(-1, *logits.shape[2:])]
    # Not one of the reference's masks is flat, and no two are the same but the box asked twice.
    assert min(mask.std() for mask in seen) > 0.03
    distances = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
    assert sorted(distances)[4] > 0.01


def test_a_parameter_that_changes_is_seen_by_the_comparison():
    """Each array of the tiny model, changed, moves an answer by far more than the tolerance.

    Not so the biases of keys: one number more for all keys of a query, which the softmax ignores.
    """
    both = pair("sam-tiny-test")
    image = image_of(both.model.spec.input_size)

    @jax.jit
    def answers(params):
        embedding = both.model.encode(params, image)
        kinds = ("points", "points in a box", "mask alone", "nothing")
        return [both.model.decode(params, embedding, our_prompts(both.model, kind), multimask=many)
                for kind in kinds for many in (False, True)]  # fmt: skip

    base, flat = answers(both.params), flatten_dict(both.params)
    rng = np.random.default_rng(2)
    seen = {path: leaf for path, leaf in flat.items() if path[-2:] != ("k_proj", "bias")}
    assert len(flat) - len(seen) == 7
    for path, leaf in seen.items():
        changed = unflatten_dict({**flat, path: leaf + 0.3 * rng.normal(size=leaf.shape)})
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), base, answers(changed))
        assert max(jax.tree.leaves(moved)) > 30 * TOLERANCE["sam-tiny-test"], path


def test_another_image_size_resizes_positions_as_torch_does():
    """Weights of a grid of 4 on a grid of 6: ``pos_embed`` bilinearly, global relative positions linearly."""
    small, large = build("sam-tiny-test"), build("sam-tiny-test", image_size=96)
    theirs = hf_sam(small).vision_encoder
    params = pair("sam-tiny-test").params
    with torch.no_grad():
        positions = theirs.pos_embed.permute(0, 3, 1, 2)
        positions = torch.nn.functional.interpolate(positions, size=(6, 6), mode="bilinear")
        theirs.pos_embed = torch.nn.Parameter(positions.permute(0, 2, 3, 1))
        theirs.patch_embed.image_size = (96, 96)
        image = image_of(96)
        expected = theirs(torch.from_numpy(image.transpose(2, 0, 1))[None])[0][0].permute(1, 2, 0)
    assert expected.std() > 0.5
    np.testing.assert_allclose(jax.jit(large.encode)(params, image), expected.numpy(), atol=1e-5)
