import jax
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.distill.blocks import NoBlocks, as_map, at_depths, block_paths, with_maps
from medvfm_jax.models import build


def test_depths_count_from_the_end():
    paths = tuple("abcdefgh")
    assert at_depths(paths, (0.25, 0.5, 1.0)) == ("b", "d", "h")
    assert at_depths(("a",), (0.1, 1.0)) == ("a", "a")


@pytest.mark.parametrize(
    ("name", "first", "count", "shape"),
    [
        ("lite-tiny-test", "image_encoder/layers_0/blocks_0", 4, (32, 32, 8)),
        ("sam-tiny-test", "image_encoder/blocks_0", 4, (4, 4, 16)),
        ("efficient-tiny-test", "image_encoder/blocks_0", 2, (4, 4, 16)),
        ("edge-tiny-test", "image_encoder/features_1", 10, (16, 16, 8)),
        ("vit-tiny-test", "image_encoder/blocks_0", 2, (2, 2, 16)),
        ("dinov3-tiny-test", "image_encoder/blocks_0", 2, (4, 4, 16)),
    ],
)
def test_blocks_come_in_order_as_maps(name, first, count, shape):
    model = build(name)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct(model.spec.input_shape, np.float32)
    found = block_paths(model.encode, params, image, name)
    assert next(iter(found)) == first
    assert found[first] == shape
    assert len(found) == count


def test_tokens_in_front_of_the_patches_are_no_place_of_a_map():
    tokens = np.arange(21 * 3).reshape(21, 3)  # class, four registers, 4 x 4 patches
    np.testing.assert_array_equal(as_map(tokens), tokens[5:].reshape(4, 4, 3))


def test_maps_come_beside_the_same_embedding():
    model, params = weights.load("sam-tiny-test")
    image = jax.random.normal(jax.random.key(0), model.spec.input_shape)
    path = "image_encoder/blocks_1"
    embedding, (first, again) = with_maps(model.encode, (path, path))(params, image)
    np.testing.assert_allclose(embedding, model.encode(params, image), atol=1e-5)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (4, 4, 16)


def test_an_encoder_without_blocks_is_refused():
    model = build("unet", base=2, depth=1, classes=2)
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(NoBlocks, match="unet has no blocks"):
        block_paths(
            lambda p, x, **kw: model.apply(p, x, None, **kw),
            params,
            jax.ShapeDtypeStruct(model.spec.input_shape, np.float32),
            "unet",
        )
