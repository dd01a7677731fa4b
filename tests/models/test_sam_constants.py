"""Constants of SAM that hardly show in outputs of usual size: epsilons of its norms, the half pixel of its points."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.models import build
from medvfm_jax.models.layers import LayerNorm
from medvfm_jax.models.sam.prompt_encoder import PromptEncoder
from medvfm_jax.types import Prompts


def epsilons(name):
    """Path of every layer norm -> its epsilon."""
    found, model = {}, build(name)
    params, spec = jax.eval_shape(model.init, jax.random.key(0)), model.spec
    given, low = [jnp.zeros((spec.input_size, spec.input_size, 3))], spec.logits_size
    if spec.task == "promptable":
        given.append(Prompts(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, low, low, 1))))

    def note(call, args, kwargs, context):
        if isinstance(context.module, LayerNorm):
            found["/".join(context.module.path)] = context.module.epsilon
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(model.apply, params, *given)
    return found


def test_epsilons_are_those_of_the_released_code():
    """1e-6 in the encoder and in every norm over the channels of a map; PyTorch's 1e-5 in the decoder's transformer."""
    found = epsilons("sam-tiny-test")
    expected = {path: 1e-5 if "transformer" in path else 1e-6 for path in found}
    assert found == expected
    parts = ("image_encoder", "neck", "mask_downscaling", "transformer", "output_upscaling")
    assert all(any(part in path for path in found) for part in parts)


def test_epsilons_of_the_other_encoders_are_those_of_their_code():
    """TinyViT's blocks have PyTorch's 1e-5, its neck SAM's; ViT and DINOv2 1e-6."""
    of_tiny = {path: e for path, e in epsilons("lite-tiny-test").items() if path.startswith("image_encoder")}
    assert of_tiny == {path: 1e-6 if "neck" in path else 1e-5 for path in of_tiny}
    assert len(set(of_tiny.values())) == 2
    assert set(epsilons("vit-tiny-test").values()) == {1e-6}


def test_a_small_input_sees_the_epsilon():
    x = jnp.array([[1e-3, -1e-3]])
    for epsilon in (1e-5, 1e-6):
        y = LayerNorm(epsilon).init_with_output(jax.random.key(0), x)[0]
        np.testing.assert_allclose(y[0, 0], 1e-3 / np.sqrt(1e-6 + epsilon), rtol=1e-5)


def test_points_are_centres_of_pixels():
    encoder = PromptEncoder(dim=8, image_size=64, grid=(4, 4))
    prompts = Prompts(jnp.array([[[10.0, 20.0], [0.0, 0.0]]]), jnp.array([[1, -1]]))
    (sparse, _, _), params = encoder.init_with_output(jax.random.key(0), prompts)
    tables = params["params"]
    matrix = np.asarray(tables["pe_layer"]["positional_encoding_gaussian_matrix"], float)
    angle = 2 * np.pi * ((2 * (np.array([10.0, 20.0]) + 0.5) / 64 - 1) @ matrix)
    position = np.concatenate([np.sin(angle), np.cos(angle)])
    foreground = np.asarray(tables["point_embeddings_1"]["embedding"])[0]
    np.testing.assert_allclose(sparse[0, 0], position + foreground, atol=1e-5)
    np.testing.assert_allclose(
        sparse[0, 1], np.asarray(tables["not_a_point_embed"]["embedding"])[0], atol=1e-6
    )


def test_positions_of_the_embedding_are_centres_of_its_cells():
    encoder = PromptEncoder(dim=8, image_size=64, grid=(2, 4))
    positions, params = encoder.init_with_output(jax.random.key(0), method="image_positions")
    matrix = np.asarray(params["params"]["pe_layer"]["positional_encoding_gaussian_matrix"], float)
    angle = 2 * np.pi * ((2 * np.array([2.5 / 4, 1.5 / 2]) - 1) @ matrix)  # row 1, column 2; x before y
    np.testing.assert_allclose(positions[1, 2], np.concatenate([np.sin(angle), np.cos(angle)]), atol=1e-5)
