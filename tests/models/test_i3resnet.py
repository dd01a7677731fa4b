"""Merlin's encoder: shapes, counts, what its weights hold; parity with PyTorch is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models import catalog
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.i3resnet.modules import Stem
from medvfm_jax.models.i3resnet.port_table import I3RESNET
from medvfm_jax.models.model import BUFFERS
from medvfm_jax.weights import load, port
from medvfm_jax.weights.tree import flatten


def test_the_encoder_has_the_parameters_of_an_inflated_resnet_152():
    """117.5 million with the statistics of batch norm, as the weights' package says, in 930 - 155 arrays."""
    shapes = jax.eval_shape(models.build("merlin", classes=5).init, jax.random.key(0))
    published = flatten(catalog.published("merlin", shapes)["params"])
    assert len(published) == 930 - 155
    assert sum(leaf.size for leaf in published.values()) == 117_517_632
    trained = sum(leaf.size for path, leaf in published.items() if path.rsplit("/", 1)[-1] not in BUFFERS)
    assert trained == 117_366_208
    assert {path.split("/")[0] for path in published} == {"image_encoder"}


def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build("merlin-tiny-test", classes=3, window=(16, 64, 32), dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0))
    volume = jax.ShapeDtypeStruct(model.spec.input_shape, jnp.float32)
    embedding = jax.eval_shape(model.encode, params, volume)
    assert embedding[0].shape == (16, 32, 16, 4)
    assert embedding[-1].shape == model.spec.embedding == (1, 2, 1, 16)
    for logits in (
        jax.eval_shape(model.apply, params, volume).logits,
        jax.eval_shape(model.decode, params, embedding).logits,
    ):
        assert (logits.shape, logits.dtype) == ((3, 16, 64, 32), jnp.float32)


def test_the_stem_is_a_convolution_that_keeps_the_depth():
    x = jax.random.normal(jax.random.key(0), (4, 12, 8, 3))
    layer = Stem(5, jnp.float32)
    params = layer.init(jax.random.key(1), x)
    expected = jax.lax.conv_general_dilated(
        x[None],
        params["params"]["kernel"],
        (1, 2, 2),
        ((1, 1), (3, 3), (3, 3)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )[0]
    np.testing.assert_allclose(layer.apply(params, x), expected, atol=1e-4)


def test_kernels_are_turned_from_width_before_height():
    kernel = np.arange(2 * 3 * 3 * 7 * 5).reshape(2, 3, 3, 7, 5)
    layout = port.LAYOUTS["oidwh_to_dhwio"]
    ours = layout.to_jax(kernel)
    assert ours.shape == (3, 5, 7, 3, 2)
    assert ours[1, 4, 6, 2, 0] == kernel[0, 2, 1, 6, 4]
    np.testing.assert_array_equal(layout.to_torch(ours), kernel)


@pytest.mark.slow
def test_only_the_decoder_follows_the_seed():
    first, again, other = (load("merlin-tiny-test", seed=seed)[1]["params"] for seed in (1, 1, 2))
    same = jax.tree.map(np.array_equal, first, again)
    assert all(jax.tree.leaves(same))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, first["image_encoder"], other["image_encoder"])))
    assert not np.array_equal(
        first["mask_decoder"]["head"]["kernel"], other["mask_decoder"]["head"]["kernel"]
    )


@pytest.mark.slow
def test_a_file_of_the_encoder_alone_is_loaded(tmp_path):
    from tests.weights.torch_files import save

    params = load("merlin-tiny-test", seed=3)[1]
    state = port.to_torch(I3RESNET, catalog.published("merlin-tiny-test", params))
    state |= {
        f"{key.removesuffix('.running_mean')}.num_batches_tracked": np.array(7)
        for key in state
        if "mean" in key
    }
    path = save(tmp_path / "x.pt", {f"encode_image.i3_resnet.{k}": v for k, v in state.items()})
    found = load("merlin-tiny-test", path, seed=3, classes=4)[1]
    assert found["params"]["mask_decoder"]["head"]["bias"].shape == (16,)
    same = jax.tree.map(np.array_equal, found["params"]["image_encoder"], params["params"]["image_encoder"])
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("window", [(16, 16, 32), (8, 32, 32), (32, 32), (16, 32, 32.0)])
def test_windows_that_do_not_fit(window):
    with pytest.raises(BadModelOption, match="multiples of 16 32 32"):
        models.build("merlin-tiny-test", window=window)
