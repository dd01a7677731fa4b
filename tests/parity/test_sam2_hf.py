"""SAM 2 against transformers' ``Sam2Model`` with random weights: encoder, every prompt kind, scores, gradients."""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from medvfm_jax.models import build  # noqa: E402
from medvfm_jax.models.model import BUFFERS, Model  # noqa: E402
from medvfm_jax.models.sam2.encoder import unpack  # noqa: E402
from medvfm_jax.models.sam2.mask_decoder import STABILITY_LEAST, stability  # noqa: E402
from medvfm_jax.types import Params, Prompts  # noqa: E402
from medvfm_jax.weights.port import to_jax  # noqa: E402
from medvfm_jax.weights.tables import choose  # noqa: E402
from tests.parity.hf_sam2 import hf_sam2, sections  # noqa: E402
from tests.parity.test_sam_hf import KINDS, image_of, our_prompts, rough_mask  # noqa: E402

pytestmark = pytest.mark.parity


class Pair(NamedTuple):
    """The two models with the same weights, and what both make of one image."""

    model: Model
    params: Params
    hf: torch.nn.Module
    theirs: list[torch.Tensor]  # fine, middle and coarse level, (1, c, h, w)
    ours: jax.Array


def ported(model: Model, state: dict[str, torch.Tensor]) -> Params:
    arrays = {key: value.numpy() for key, value in state.items()}
    target = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(jnp.asarray, to_jax(choose(arrays), arrays, target))


@pytest.fixture(scope="module")
def both() -> Pair:
    model = build("sam2-tiny-test")
    hf = hf_sam2(model)
    params = ported(model, hf.state_dict())
    image = image_of(model.spec.input_size)
    theirs = hf.get_image_embeddings(torch.from_numpy(image.transpose(2, 0, 1))[None])
    return Pair(model, params, hf, theirs, jax.jit(model.encode)(params, image))


def asked_theirs(model: Model, kind: str) -> dict[str, torch.Tensor]:
    """The question in the words of transformers."""
    size, asked = model.spec.input_size, {}
    for key, value in KINDS[kind].items():
        if key == "input_labels":
            asked[key] = torch.as_tensor(value)[None]
        elif key == "input_masks":
            asked[key] = torch.from_numpy(rough_mask(model)).permute(0, 3, 1, 2)
        else:
            asked[key] = torch.as_tensor(value * size, dtype=torch.float32)[None]
    return asked


def asked_ours(model: Model, kind: str) -> Prompts:
    """Of a question without points and boxes transformers makes two padding points, the release's predictor none."""
    prompts = our_prompts(model, kind)
    if prompts is not None and prompts.labels.shape[1]:
        return prompts
    mask = None if prompts is None else prompts.mask
    return Prompts(jnp.zeros((1, 2, 2)), jnp.full((1, 2), -1), mask)


def test_encoder(both):
    """Windows of 6 do not divide the third stage's 4: they are padded, with and without pooling."""
    config = both.model.root.encoder.config
    assert both.model.spec.embedding[0] % config.windows[2]
    no_memory = both.params["params"]["mask_decoder"]["no_mem_embed"][0, 0]
    coarse, middle, fine = unpack(both.ours)
    for ours, theirs in zip((fine, middle, coarse + no_memory), both.theirs, strict=True):
        theirs = theirs[0].permute(1, 2, 0).numpy()
        assert theirs.std() > 0.5
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_another_image_size_repeats_and_resizes_positions(both):
    """192 pixels: the table of the whole map is enlarged to 48 x 48, the window's is repeated 12 times."""
    large = build("sam2-tiny-test", image_size=192)
    hf = transformers.Sam2Model(transformers.Sam2Config(**sections(large))).eval()
    hf.load_state_dict(both.hf.state_dict())
    image = image_of(192)
    with torch.no_grad():
        theirs = hf.vision_encoder(torch.from_numpy(image.transpose(2, 0, 1))[None]).fpn_hidden_states[-1]
    ours = unpack(jax.jit(large.encode)(both.params, image)).coarse
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0), atol=2e-5)


def test_every_prompt_kind_with_one_mask_and_with_three(both):
    decode = jax.jit(lambda *inputs: [both.model.decode(*inputs, multimask=many) for many in (False, True)])
    tolerance, seen = {"rtol": 0, "atol": 1e-5}, []
    for kind in KINDS:
        answers = decode(both.params, both.ours, asked_ours(both.model, kind))
        for many, ours in zip((False, True), answers, strict=True):
            with torch.no_grad():
                asked = asked_theirs(both.model, kind)
                theirs = both.hf(image_embeddings=both.theirs, multimask_output=many, **asked)
            logits, words = theirs.pred_masks[0].numpy(), f"{kind}, {many=}"
            assert ours.logits.shape == logits.shape
            np.testing.assert_allclose(ours.logits, logits, **tolerance, err_msg=words)
            np.testing.assert_allclose(ours.iou, theirs.iou_scores[0], **tolerance, err_msg=words)
            scores = theirs.object_score_logits[0, :, 0]
            np.testing.assert_allclose(ours.object_score, scores, **tolerance, err_msg=words)
            seen += [*logits.reshape(-1, *logits.shape[2:])]
    assert min(mask.std() for mask in seen) > 0.03


@pytest.mark.parametrize("factor", [1.0, 300.0])
def test_one_mask_falls_back_where_it_is_unstable(both, factor):
    """Logits of mask 0 near zero are unstable; 300 times as large they are stable, and mask 0 is given."""
    hf, kind = copy.deepcopy(both.hf), "three boxes"
    with torch.no_grad():
        for tensor in hf.mask_decoder.output_hypernetworks_mlps[0].proj_out.parameters():
            tensor.mul_(factor)
        asked = asked_theirs(both.model, kind)
        theirs = hf(image_embeddings=both.theirs, multimask_output=False, **asked)
    params = ported(both.model, hf.state_dict())
    decode = jax.jit(both.model.decode, static_argnames="training")
    ours, trained = (
        decode(params, both.ours, asked_ours(both.model, kind), training=t) for t in (False, True)
    )
    np.testing.assert_allclose(ours.logits, theirs.pred_masks[0], rtol=0, atol=1e-5 * factor)
    np.testing.assert_allclose(ours.iou, theirs.iou_scores[0], atol=1e-5)
    stable = stability(trained.logits[:, 0]) >= STABILITY_LEAST
    np.testing.assert_array_equal(stable, factor > 1)
    np.testing.assert_array_equal((ours.logits == trained.logits).all((1, 2, 3)), stable)


def test_gradients(both):
    """Of one number made of masks, IoU and object score, with respect to every parameter and the image."""
    model, hf, kind = both.model, both.hf, "points in a box"
    image = image_of(model.spec.input_size)
    pixels = torch.from_numpy(image.transpose(2, 0, 1))[None].requires_grad_()
    hf.zero_grad()
    out = hf(pixels, multimask_output=True, **asked_theirs(model, kind))
    (out.pred_masks.sin().mean() + out.iou_scores.square().sum() + out.object_score_logits.sum()).backward()

    def value(params, image):
        found = model.apply(params, image, asked_ours(model, kind), multimask=True)
        return jnp.sin(found.logits).mean() + jnp.square(found.iou).sum() + found.object_score.sum()

    ours, of_image = jax.jit(jax.grad(value, (0, 1)))(both.params, image)
    np.testing.assert_allclose(of_image, pixels.grad[0].permute(1, 2, 0), atol=1e-4)
    state = {key: torch.zeros_like(tensor) for key, tensor in hf.state_dict().items()}
    state |= {key: tensor.grad for key, tensor in hf.named_parameters() if tensor.grad is not None}
    expected, flat = flatten_dict(ported(model, state)), flatten_dict(ours)
    nothing = []
    for path, theirs in expected.items():
        if path[-1] in BUFFERS:
            continue
        scale = np.abs(theirs).max()
        nothing += [path] * bool(scale < 1e-6)
        np.testing.assert_allclose(flat[path], theirs, atol=max(1e-6, 2e-4 * scale), err_msg="/".join(path))
    # Without effect: what makes mask 0, what reads a mask prompt, and keys' biases, which the softmax ignores.
    first, rough = (
        (lambda path: "output_hypernetworks_mlps_0" in path),
        (lambda path: "downscaling" in path[-2]),
    )
    rest = [path for path in nothing if not first(path) and not rough(path)]
    assert sum(map(first, nothing)) == 6
    assert sum(map(rough, nothing)) == 10
    assert {path[-2:] for path in rest} == {("k_proj", "bias")}
