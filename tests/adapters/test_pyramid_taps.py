"""A context block that reads several modules of the frozen model: which, in which order, and who sees them."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import unflatten_dict
from jax import Array

from medvfm_jax.adapters import NoSuchSite, WrongSite, bind, chain, context, context_block, lora, tap
from medvfm_jax.models.context.token_aggregation import TokenAggregation

KEY = jax.random.key(0)
IMAGE = jax.random.normal(KEY, (4, 4, 3))


class Stem(nn.Module):
    """Twelve layers of maps, then a scan of two, then a map of another size."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(12):
            x = nn.Dense(3, name=f"layer_{i}")(x)
        stack = nn.scan(
            Scanned, variable_axes={"params": 0, "taps": 0}, split_rngs={"params": True}, length=2
        )
        x, _ = stack(name="stack")(x, None)
        return nn.Dense(5, name="flat")(x.reshape(16, 3))[:, :3].reshape(4, 4, 3)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: Array, _: None) -> tuple[Array, None]:
        return nn.remat(nn.Dense)(3, name="dense")(x), None


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dense(2, name="head")(Stem(name="stem")(x))


NET = Net()
PARAMS = NET.init(KEY, IMAGE)
LEVELS = r"stem/(layer_(2|10)|stack/dense)"


def block() -> nn.Module:
    return TokenAggregation(4, zero_init=False)


def test_the_block_gets_the_levels_in_order_and_the_map_last() -> None:
    adapter = context(block, "stem", levels=LEVELS)
    both = chain(context=adapter, lora=lora(1, 1.0, "stem/layer_2"))
    delta = both.init(KEY, NET.apply, PARAMS, IMAGE)
    own = {**delta["context"]["stem"], "gate": jnp.ones(3)}
    delta = {"context": {"stem": own}, "lora": delta["lora"]}
    seen = []

    @jax.jit
    def run(image: Array) -> tuple:
        out, taps = tap(bind(both.wrap(NET.apply), delta), "head|stem/layer_2")(PARAMS, image)
        _, frozen = tap(NET.apply, f"{LEVELS}|stem")(PARAMS, image)
        seen.extend([*taps])
        maps = [frozen["stem/layer_2"], frozen["stem/layer_10"], *frozen["stem/stack/dense"], frozen["stem"]]
        arrays = unflatten_dict({k: v for k, v in own.items() if k != "gate"}, sep="/")
        changed = maps[-1] + block().apply({"params": arrays}, maps)
        head = PARAMS["params"]["head"]
        return out, taps["head"], changed @ head["kernel"] + head["bias"]

    out, tapped, expected = run(IMAGE)
    chex.assert_trees_all_close(out, expected, atol=1e-5)
    chex.assert_trees_all_close(out, tapped)
    assert sorted(seen) == ["head", "stem/layer_2"]


def test_levels_that_are_no_maps_or_have_not_run_are_refused() -> None:
    with pytest.raises(WrongSite, match=re.escape("level 'stem/flat': its output (16, 5)")):
        context_block("bifpn", "stem", 4, "stem/flat").init(KEY, NET.apply, PARAMS, IMAGE)
    with pytest.raises(NoSuchSite, match="matches no module"):
        context_block("bifpn", "stem", 4, "nowhere").init(KEY, NET.apply, PARAMS, IMAGE)
    late = context_block("bifpn", "stem", 4, "head")
    delta = jax.eval_shape(lambda key: late.init(key, NET.apply, PARAMS, IMAGE), KEY)
    with pytest.raises(NoSuchSite, match="has run before 'stem' ends"):
        jax.eval_shape(late.wrap(NET.apply), PARAMS, delta, IMAGE)
