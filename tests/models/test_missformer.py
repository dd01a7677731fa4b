"""MISSFormer: count, what a block and the bridge do to tokens, the ways from the image to the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import models
from medvfm_jax.models.context.context_bridge import BridgeLayer
from medvfm_jax.models.missformer.entries import VARIANTS
from medvfm_jax.models.missformer.modules import EnhancedBlock

TINY = VARIANTS["missformer-tiny-test"]


@pytest.fixture(scope="module")
def tiny():
    model = models.build("missformer-tiny-test", classes=3)
    return model, model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (32, 32, 3))


def standard(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def zeroed(params, *names):
    """Parameters with those of some modules, by their names, at zero."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if any(key.key in names for key in path) else x, params
    )


def test_it_has_the_parameters_of_the_published_network_but_for_what_the_docstring_names():
    """42.46 million for the 9 classes of Synapse, with two more norms in every mix-FFN and one more joining layer."""
    model = models.build("missformer", classes=9)
    assert model.parameters == 41_806_665
    shapes = jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, jax.random.key(0)))
    norms = sum(x.size for path, x in shapes if path[-2].key == "norm1")
    joining = 1024 * 512 + 512
    assert (2 * norms, joining) == (131_072, 524_800)
    assert round((model.parameters + 2 * norms + joining) / 1e6, 2) == 42.46


def test_its_encoder_is_that_of_segformer():
    """MiT-B1 without its classifier has 13,151,424 parameters; a mix-FFN here has a norm over its hidden units more."""
    params = jax.eval_shape(models.build("missformer").init, jax.random.key(0))["params"]["image_encoder"]
    encoder = {name: x for name, x in params.items() if name.startswith(("patches_", "down_", "norm_"))}
    hidden = 2 * 4 * sum(VARIANTS["missformer"].widths)
    assert sum(x.size for x in jax.tree.leaves(encoder)) == 13_151_424 + 2 * hidden


@pytest.mark.slow
def test_shapes_are_those_of_the_spec_in_every_function():
    model = models.build("missformer", classes=5, image_size=256, dtype=jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((256, 256, 3), jnp.float32)
    features = jax.eval_shape(model.encode, params, image)
    assert features.shape == model.spec.embedding == (256, 256, 64)
    for prediction in (
        jax.eval_shape(model.apply, params, image),
        jax.eval_shape(model.decode, params, features),
    ):
        assert (prediction.logits.shape, prediction.logits.dtype) == ((5, 256, 256), jnp.float32)


@pytest.mark.slow
def test_a_block_adds_the_average_of_the_reduced_map_where_all_keys_are_equal():
    x = jax.random.normal(jax.random.key(0), (4, 6, 8))
    block = EnhancedBlock(heads=2, window=2)
    params = zeroed(block.init(jax.random.key(1), x), "q", "last", "v", "proj")["params"]
    np.testing.assert_array_equal(block.apply({"params": params}, x), x)
    params["attn"]["v"]["kernel"], params["attn"]["proj"]["kernel"] = jnp.eye(8), 2.0 * jnp.eye(8)
    # The means of 2 x 2 places.
    params["reduce"]["kernel"] = jnp.broadcast_to(jnp.eye(8) / 4, (2, 2, 8, 8))
    keys = standard(standard(x).reshape(2, 2, 3, 2, 8).mean((1, 3)))
    expected = x + 2.0 * keys.mean((0, 1))
    np.testing.assert_allclose(block.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.slow
def test_the_mix_ffn_of_a_block_sees_its_neighbours_alone():
    x = jax.random.normal(jax.random.key(0), (5, 5, 4))
    block = EnhancedBlock(heads=1, window=1)
    params = block.init(jax.random.key(1), x)["params"]
    params["attn"] = zeroed(params["attn"], "proj")
    change = block.apply({"params": params}, x.at[2, 2].add(jnp.arange(4.0))) - block.apply(
        {"params": params}, x
    )
    reached = np.zeros((5, 5), bool)
    reached[1:4, 1:4] = True
    np.testing.assert_array_equal(jnp.abs(change).max(-1) > 1e-6, reached)


@pytest.mark.slow
def test_the_bridge_cuts_wide_maps_into_tokens_of_the_narrowest_width():
    """With equal keys every token gets the average over the tokens of all scales, one norm for all of them."""
    maps = [jax.random.normal(jax.random.key(i), (2, 2, c)) for i, c in enumerate((4, 8, 20))]
    layer = BridgeLayer(heads=1)
    params = zeroed(layer.init(jax.random.key(3), maps), "q", "v", "proj", "fc2_0", "fc2_1", "fc2_2")[
        "params"
    ]
    params["attn"]["v"]["kernel"], params["attn"]["proj"]["kernel"] = jnp.eye(4), 2.0 * jnp.eye(4)
    params["norm"]["scale"] = jnp.arange(1.0, 5.0)
    tokens = jnp.concatenate([x.reshape(-1, 4) for x in maps])
    average = standard(standard(tokens) * jnp.arange(1.0, 5.0)).mean(0)
    for found, x in zip(layer.apply({"params": params}, maps), maps, strict=True):
        expected = (x.reshape(-1, 4) + 2.0 * average).reshape(x.shape)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_bridge_reduces_every_scale_to_the_coarsest():
    maps = [jax.ShapeDtypeStruct((8 // 2**i, 8 // 2**i, c), jnp.float32) for i, c in enumerate((4, 8, 20))]
    params = jax.eval_shape(BridgeLayer().init, jax.random.key(0), maps)["params"]
    kernels = {name: x["kernel"].shape for name, x in params.items() if name.startswith("reduce")}
    assert kernels == {"reduce_0": (4, 4, 4, 4), "reduce_1": (2, 2, 8, 8)}


@pytest.mark.slow
def test_the_bridge_carries_the_coarsest_scale_to_the_finest():
    maps = [jax.random.normal(jax.random.key(i), (8 // 2**i, 8 // 2**i, c)) for i, c in enumerate((4, 8, 20))]
    layer = BridgeLayer()
    params = layer.init(jax.random.key(3), maps)
    moved = [*maps[:2], maps[2] + jnp.arange(20.0)]
    finest = jax.jit(lambda params, maps: layer.apply(params, maps)[0])
    assert jnp.abs(finest(params, moved) - finest(params, maps)).max() > 1e-3
    cut = {"params": params["params"] | {"attn": zeroed(params["params"]["attn"], "proj")}}
    np.testing.assert_array_equal(finest(cut, moved), finest(cut, maps))


@pytest.mark.slow
def test_the_image_reaches_the_logits_by_the_skip_and_by_the_deep_path_and_by_no_other(tiny):
    model, params, image = tiny
    logits = jax.jit(lambda params, image: model.apply(params, image).logits)
    changed = image.at[16, 16].add(3.0)

    def change(skip: float, deep: float) -> float:
        body = dict(params["params"]["image_encoder"])
        kernel, channels = body["join_0"]["kernel"], TINY.widths[1] // 2
        kernel = jnp.concatenate([deep * kernel[:channels], skip * kernel[channels:]])
        body["join_0"] = body["join_0"] | {"kernel": kernel}
        cut = {"params": {**params["params"], "image_encoder": body}}
        return jnp.abs(logits(cut, changed) - logits(cut, image)).max()

    assert change(skip=1.0, deep=0.0) > 1e-3
    assert change(skip=0.0, deep=1.0) > 1e-3
    assert change(skip=0.0, deep=0.0) == 0


@pytest.mark.slow
def test_every_parameter_has_a_finite_gradient(tiny):
    model, params, image = tiny
    weights = jax.random.normal(jax.random.key(2), (3, 32, 32))
    grads = jax.jit(jax.grad(lambda params: (model.apply(params, image).logits * weights).sum()))(params)
    idle = set()
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.isfinite(grad).all(), path
        if jnp.abs(grad).max() < 1e-5:
            idle.add((path[-2].key, path[-1].key))
    assert idle <= {("k", "bias")}  # softmax ignores what is added to every key alike
