"""Reading activations: shapes in every style, gradients, dropped collections."""

import chex
import flax.linen as nn
import jax
import pytest
from jax import Array

from medvfm_jax.adapters import NoSuchSite, bind, lora, tap
from tests.adapters.toy_sam import BOX, toy_sam
from tests.adapters.toy_sam import IMAGE as SAM_IMAGE
from tests.adapters.toy_vit import DIM, IMAGE, KEY, Style, init_delta, perturbed, toy

PATTERN = r"blocks(_\d+)?/attn/qkv"


@pytest.mark.parametrize("style", ["loop", "remat_scan"])
def test_tap_returns_activations_and_their_gradient(style: Style) -> None:
    vit, params = toy(style)
    adapter = lora(2, 4.0, r".*/attn/out|.*/qkv")
    delta, adapted = perturbed(init_delta(adapter, vit, params)), adapter.wrap(vit.apply)

    def distance(d: dict) -> tuple[Array, tuple]:
        out, taps = tap(bind(adapted, d), PATTERN)(params, IMAGE)
        return sum((y**2).sum() for y in taps.values()), (out, taps)

    (_, (out, taps)), grads = jax.jit(jax.value_and_grad(distance, has_aux=True))(delta)
    chex.assert_trees_all_close(out, jax.jit(adapted)(params, delta, IMAGE), atol=1e-5)
    tokens = (4, 3 * DIM)
    looped = {f"blocks_{i}/attn/qkv": tokens for i in range(2)}
    shapes = {path: y.shape for path, y in taps.items()}
    assert shapes == ({"blocks/attn/qkv": (2, *tokens)} if "scan" in style else looped)
    assert all(bool((g != 0).any()) for path, g in grads.items() if path.endswith("qkv") for g in g.values())


@pytest.mark.slow
def test_tap_on_a_model_record() -> None:
    model, params = toy_sam()
    embedding, taps = tap(model.encode, "image_encoder/neck_0")(params, SAM_IMAGE)
    chex.assert_trees_all_equal(embedding, taps["image_encoder/neck_0"])
    prediction, taps = tap(model.apply, ".*layers_2")(params, SAM_IMAGE, BOX)
    assert len(taps) == 4
    assert prediction.logits.shape == (1, 1, 4, 4)


def test_a_scan_that_drops_the_taps_is_an_error() -> None:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: Array, _: None) -> tuple[Array, None]:
            return nn.Dense(3, name="dense")(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            return layers(name="layers")(x, None)[0]

    net, x = Net(), jax.numpy.ones(3)
    params = net.init(KEY, x)
    with pytest.raises(NoSuchSite, match="drops the 'taps' collection"):
        tap(net.apply, "layers/dense")(params, x)
