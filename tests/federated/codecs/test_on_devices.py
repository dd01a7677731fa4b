"""Codecs where rounds use them: states made from shapes, clients spread over devices by shard_map."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from medvfm_jax.federated.codecs import CODECS, flattened, make_codec, powersgd, top_k
from medvfm_jax.federated.codecs.feedback import ef21, error_feedback
from medvfm_jax.federated.core.records import Codec

LIKE = {"w": jax.ShapeDtypeStruct((6, 8), jnp.float32), "v": jax.ShapeDtypeStruct((6, 8), jnp.float32)}
OPTIONS: dict[str, dict[str, Any]] = {
    "top_k": {"fraction": 0.2},
    "rand_k": {"fraction": 0.2},
    "powersgd": {"rank": 1},
    "count_sketch": {"rows": 3, "columns": 8},
}
BUILT = {name: make_codec(name, **OPTIONS.get(name, {})) for name in CODECS} | {
    "ef21": ef21(flattened(top_k(0.2))),
    "error_feedback": error_feedback(powersgd(1)),
}
GROUPS = [list(BUILT)[i::3] for i in range(3)]  # some compilations, but not one for every codec


def two_messages(codec: Codec, key: jax.Array, state: Any, update: Any) -> Any:
    first, state = codec.encode(jax.random.fold_in(key, 0), state, update)
    second, state = codec.encode(jax.random.fold_in(key, 1), state, update)
    return codec.decode(first, update), codec.decode(second, update), state


@pytest.mark.parametrize("group", [0, *(pytest.param(g, marks=pytest.mark.slow) for g in (1, 2))])
def test_devices_change_nothing(group: int) -> None:
    """Eight clients on four devices receive and remember what they do under vmap alone."""
    rng = np.random.default_rng(0)
    updates = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(8, *x.shape)), x.dtype), LIKE)
    keys = jax.random.split(jax.random.key(0), 8)
    codecs = {name: BUILT[name] for name in GROUPS[group]}
    states = {name: codec.init(LIKE) for name, codec in codecs.items()}
    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), states)

    def client(key: jax.Array, states: Any, update: Any) -> Any:
        return {name: two_messages(codec, key, states[name], update) for name, codec in codecs.items()}

    mesh = jax.make_mesh((4,), ("clients",), axis_types=(AxisType.Auto,))
    over = partial(
        jax.shard_map, mesh=mesh, in_specs=PartitionSpec("clients"), out_specs=PartitionSpec("clients")
    )
    want = jax.jit(jax.vmap(client))(keys, states, updates)
    got = jax.jit(over(jax.vmap(client)))(keys, states, updates)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)
    chex.assert_tree_all_finite(got)
