"""SAM 2's memory against transformers' ``Sam2VideoModel`` with random weights: its parts, and objects followed."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from medvfm_jax.models import build  # noqa: E402
from medvfm_jax.models.model import Model  # noqa: E402
from medvfm_jax.models.sam.root import as_model  # noqa: E402
from medvfm_jax.models.sam2.memory import MASK_OFFSET, MASK_SCALE, MemoryEncoder  # noqa: E402
from medvfm_jax.models.sam2.memory_attention import MemoryAttention, sine_map  # noqa: E402
from medvfm_jax.models.sam2.root import Sam2, tracker_of  # noqa: E402
from medvfm_jax.types import Params, Prompts  # noqa: E402
from medvfm_jax.weights.port import to_jax  # noqa: E402
from medvfm_jax.weights.tables import choose  # noqa: E402
from tests.parity.hf_sam2 import hf_sam2_video  # noqa: E402

pytestmark = pytest.mark.parity

FRAMES = 11  # more than the seven maps that are remembered


class Pair(NamedTuple):
    """The two models with the same weights; start and follow are compiled."""

    model: Model
    params: Params
    hf: torch.nn.Module
    encode: Callable
    start: Callable
    follow: Callable


@pytest.fixture(scope="module")
def both() -> Pair:
    tiny = build("sam2-tiny-test")
    spec = replace(tiny.spec, embedding=(4, 4, 1024))
    encoder = tiny.root.encoder.clone(config=replace(tiny.root.encoder.config, out_features=256))
    model = as_model(Sam2(encoder, spec, decoder_hidden=64, remembers=True))
    hf = hf_sam2_video(model)
    tracker = tracker_of(model)
    compiled = (jax.jit(f, static_argnums=3) for f in tracker)
    return Pair(model, ported(model, hf), hf, jax.jit(model.encode), *compiled)


def ported(model: Model, hf: torch.nn.Module) -> Params:
    state = {key: value.numpy() for key, value in hf.state_dict().items()}
    target = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(jnp.asarray, to_jax(choose(state), state, target))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def test_memory_attention(both):
    """Two maps of 16 tokens and eight pointers; leaving the second map out is the same as not giving it."""
    x, memories, positions = normal(4, 4, 256), normal(40, 64), normal(41, 64)[:40]
    attention, params = MemoryAttention(hidden=64), {"params": both.params["params"]["memory"]["attention"]}

    def theirs(kept: list[int]) -> np.ndarray:
        given = (torch.from_numpy(array[kept])[:, None] for array in (memories, positions))
        features, places = (torch.from_numpy(a.reshape(16, 1, 256)) for a in (x, sine_map(4, 4, 256)))
        with torch.no_grad():
            memory, place = given
            return both.hf.memory_attention(features, memory, places, place, 8).numpy().reshape(4, 4, 256)

    ours = attention.apply(params, x, memories, positions, 8)
    np.testing.assert_allclose(ours, theirs(list(range(40))), atol=1e-5)
    present = np.r_[np.ones(16, bool), np.zeros(16, bool), np.ones(8, bool)]
    ours = attention.apply(params, x, memories, positions, 8, present)
    np.testing.assert_allclose(ours, theirs([*range(16), *range(32, 40)]), atol=1e-5)


def test_memory_encoder(both):
    x, mask = normal(4, 4, 256), normal(64, 64, 1) * MASK_SCALE + MASK_OFFSET
    given = (torch.from_numpy(a.transpose(2, 0, 1))[None] for a in (x, mask))
    with torch.no_grad():
        memory, places = both.hf.memory_encoder(*given)
    ours = MemoryEncoder(64).apply({"params": both.params["params"]["memory"]["encoder"]}, x, mask)
    np.testing.assert_allclose(ours, memory[0].permute(1, 2, 0), atol=2e-5)
    np.testing.assert_allclose(sine_map(4, 4, 64), places[0].permute(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize(("prompt", "bias"), [("box", 20.0), ("point", 20.0), ("box", -20.0)])
def test_an_object_is_followed(both, prompt, bias):
    """Frame by frame, in either direction; with bias -20 the object is found nowhere and has the fixed pointer.

    What is remembered is rounded to bfloat16 in both, where numbers beside a rounding boundary fall to either side.
    """
    hf, model = both.hf, both.model
    with torch.no_grad():
        hf.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(bias)
    params = ported(model, hf)
    video = normal(FRAMES, 64, 64, 3)
    points = np.array([[[13.0, 20.0], [45.0, 50.0]]], np.float32)
    labels = np.array([[2, 3]])
    if prompt == "point":
        points, labels = points[:, :1], np.array([[1]])
    first = 3
    asked = Prompts(jnp.asarray(points), jnp.asarray(labels))
    for step in (1, -1):
        session = transformers.models.sam2_video.modeling_sam2_video.Sam2VideoInferenceSession(
            torch.from_numpy(video.transpose(0, 3, 1, 2)), 64, 64, dtype=torch.float32
        )
        index = session.obj_id_to_idx(1)
        asked_theirs = {
            "point_coords": torch.from_numpy(points)[None],
            "point_labels": torch.from_numpy(labels)[None],
        }
        session.add_point_inputs(index, first, asked_theirs)
        session.obj_with_new_inputs = [1]
        found, memories = both.start(params, both.encode(params, video[first]), asked, prompt == "point")
        theirs = hf(session, frame_idx=first)
        compare(found, theirs, bias)
        for frame in range(first + step, FRAMES if step > 0 else -1, step):
            found, memories = both.follow(params, both.encode(params, video[frame]), memories, FRAMES)
            compare(found, hf(session, frame_idx=frame, reverse=step < 0), bias)


def compare(ours, theirs, bias: float) -> None:
    expected = theirs.pred_masks.numpy().reshape(ours.logits.shape)
    if bias > 0:
        assert expected.std() > 0.03
    else:
        assert (expected == -1024).all()
    np.testing.assert_allclose(ours.logits, expected, atol=5e-3)
    np.testing.assert_allclose(ours.object_score, theirs.object_score_logits.reshape(-1), atol=5e-3)
