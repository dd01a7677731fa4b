"""CLIP against HF's ``CLIPModel`` with the same random weights, under its own names."""

import jax
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.clip import embed_image, embed_text, similarity
from medvfm_jax.models.clip.root import VARIANTS
from medvfm_jax.models.vit.modules import encode_tokens
from medvfm_jax.weights.port import to_jax
from medvfm_jax.weights.tables import choose

pytestmark = pytest.mark.parity

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5


def reference(name):
    """HF model of a variant's shape, every array drawn anew."""
    config = VARIANTS[name]
    towers = {}
    for part, blocks in (("vision_config", config.image), ("text_config", config.text.blocks)):
        towers[part] = {
            "hidden_size": blocks.dim,
            "intermediate_size": 4 * blocks.dim,
            "num_hidden_layers": blocks.depth,
            "num_attention_heads": blocks.heads,
            "projection_dim": config.embedding,
        }
    towers["vision_config"] |= {
        "image_size": config.image.pretrain_size,
        "patch_size": config.image.patch_size,
    }
    end = config.text.vocabulary - 1
    towers["text_config"] |= {
        "vocab_size": end + 1,
        "max_position_embeddings": config.text.context,
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    return transformers.CLIPModel(transformers.CLIPConfig(projection_dim=config.embedding, **towers)).eval()


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    hf = reference("clip-tiny-test")
    with torch.no_grad():
        for name, value in hf.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            matrix = name.endswith("weight") and value.ndim > 1
            table = "embedding" in name and "patch" not in name
            spread = 0.5 if table or not value.ndim else value[0].numel() ** -0.5 if matrix else 0.1
            value.normal_(centre, spread)
    state = {key: value.numpy() for key, value in hf.state_dict().items()}
    assert choose(state).name == "hf_clip"
    model = models.build("clip-tiny-test")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return hf, model, to_jax(choose(state), state, shapes)


IMAGES = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
TEXTS = np.array([[38, 4, 8, 1, 39], [38, 5, 39, 39, 39], [38, 6, 21, 39, 0]])


def test_embeddings_and_logits(both):
    hf, model, params = both
    with torch.no_grad():
        out = hf(torch.from_numpy(TEXTS), torch.from_numpy(IMAGES.transpose(0, 3, 1, 2)))
    image = jax.vmap(lambda one: embed_image(model, params, one))(IMAGES)
    text = np.stack([embed_text(model, params, one) for one in TEXTS])
    np.testing.assert_allclose(image, out.image_embeds.numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(text, out.text_embeds.numpy(), atol=TOLERANCE)
    logits = similarity(model, params, IMAGES, TEXTS)
    np.testing.assert_allclose(logits, out.logits_per_image.numpy(), atol=TOLERANCE)
    assert np.std(out.logits_per_image.numpy()) > 0.05


@pytest.mark.parametrize("side", [32, 48])
def test_all_tokens_of_the_image_tower(both, side):
    hf, _, params = both
    model = models.build("clip-tiny-test", image_size=side)
    image = np.random.default_rng(1).normal(size=(side, side, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(image.transpose(2, 0, 1)[None])
        tokens = hf.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        tokens = hf.vision_model.post_layernorm(tokens)[0].numpy()  # HF gives it to the class token alone
    class_token, patches = encode_tokens(model, params, image)
    got = np.concatenate([class_token[None], patches.reshape(-1, 16)])
    np.testing.assert_allclose(got, tokens, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["clip-vit-b16", "clip-vit-b32", "clip-vit-l14"])
def test_counts_are_those_of_transformers(name):
    with torch.device("meta"):
        hf = reference(name)
    assert models.build(name).parameters == sum(value.numel() for value in hf.parameters())
