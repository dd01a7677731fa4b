"""SAM against transformers' ``SamModel`` with random weights, all prompt kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from medvfm_jax.models import build  # noqa: E402
from medvfm_jax.types import Prompts  # noqa: E402
from medvfm_jax.weights.port import to_jax  # noqa: E402
from medvfm_jax.weights.tables import choose  # noqa: E402

pytestmark = pytest.mark.parity


def random_sam(config):
    """transformers initialises SAM near zero, which compares nothing: every tensor is drawn anew."""
    torch.manual_seed(0)
    model = transformers.SamModel(transformers.SamConfig(**config)).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            scale = 0.03 if tensor.ndim > 1 else 0.02
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.copy_(torch.randn_like(tensor) * scale + offset)
        matrix = model.shared_image_embedding.positional_embedding
        matrix.copy_(torch.randn_like(matrix))
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(matrix)
    return model


@pytest.mark.parametrize(("name", "config"), [("sam-b", {})], ids=["vit_b"])
def test_encoder_and_every_prompt_kind(name, config):
    hf = random_sam(config)
    model = build(name)
    state = {key: value.numpy() for key, value in hf.state_dict().items()}
    params = jax.tree.map(
        jnp.asarray, to_jax(choose(state), state, jax.eval_shape(model.init, jax.random.key(0)))
    )
    size, low = model.spec.input_size, model.spec.logits_size
    image = np.random.default_rng(0).normal(size=(size, size, 3)).astype(np.float32)
    box, points = np.array([[0.2, 0.3, 0.7, 0.8]]) * size, np.array([[[0.4, 0.5], [0.1, 0.2]]]) * size
    mask = np.random.default_rng(1).normal(size=(1, 1, low, low)).astype(np.float32)

    with torch.no_grad():
        pixels = torch.from_numpy(image.transpose(2, 0, 1))[None]
        features = hf.get_image_embeddings(pixels)

        def ask(**kw):
            kw = {
                k: torch.as_tensor(v, dtype=torch.int64 if "labels" in k else torch.float32)
                for k, v in kw.items()
            }
            out = hf(image_embeddings=features, multimask_output=False, **kw)
            return out.pred_masks[0, :, :1].numpy(), out.iou_scores[0, :, :1].numpy()

        expected = {
            "box": ask(input_boxes=box[None]),
            "points": ask(input_points=points[None], input_labels=[[[1, 0]]]),
            "mask": ask(input_boxes=box[None], input_masks=mask),
        }
    corners = box.reshape(1, 2, 2).astype(np.float32)
    prompts = {
        "box": Prompts(jnp.asarray(corners), jnp.array([[2, 3]])),
        "points": Prompts(
            jnp.asarray(np.concatenate([points, np.zeros((1, 1, 2))], 1), jnp.float32),
            jnp.array([[1, 0, -1]]),
        ),
        "mask": Prompts(jnp.asarray(corners), jnp.array([[2, 3]]), jnp.asarray(mask.transpose(0, 2, 3, 1))),
    }
    embedding = jax.jit(model.encode)(params, image)
    np.testing.assert_allclose(embedding, features[0].numpy().transpose(1, 2, 0), atol=1e-4)
    decode = jax.jit(model.decode)
    for kind, (logits, iou) in expected.items():
        out = decode(params, embedding, prompts[kind])
        assert np.abs(logits).std() > 0
        np.testing.assert_allclose(out.logits, logits, atol=1e-4, err_msg=kind)
        np.testing.assert_allclose(out.iou, iou, atol=1e-4, err_msg=kind)
