"""Windows, shifts and tables in closed form, counts, shapes; parity with transformers is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from medvfm_jax import models, weights
from medvfm_jax.models.errors import BadModelOption
from medvfm_jax.models.swin.entries import encode_stages
from medvfm_jax.models.swin.modules import (
    APART,
    Block,
    PatchMerging,
    WindowAttention,
    offsets,
    wrapping_mask,
)
from medvfm_jax.models.swin.port_table import SWIN
from medvfm_jax.models.vit.modules import NoDecoder
from medvfm_jax.weights.port import to_jax, to_torch
from medvfm_jax.weights.tables import choose


@pytest.fixture(scope="module")
def tiny():
    model, params = weights.load("swin-tiny-test")
    return model, params, jax.random.normal(jax.random.key(1), (32, 32, 3))


@pytest.mark.parametrize(
    ("name", "classified", "features"),
    [("swin-t", 28_288_354, 768), ("swin-s", 49_606_258, 768), ("swin-b", 87_768_224, 1024)],
)
def test_parameter_counts_are_those_of_the_published_models(name, classified, features):
    """The authors count the head of 1000 classes too."""
    model = models.build(name)
    assert model.parameters == classified - 1000 * (features + 1)
    assert model.spec.embedding == (7, 7, features)


@pytest.mark.slow
def test_shapes_are_those_of_the_spec_at_any_size(tiny):
    model, params, image = tiny
    assert [x.shape for x in encode_stages(model, params, image)] == [(8, 8, 8), (4, 4, 16)]
    assert jax.eval_shape(model.apply, params, image).shape == model.spec.embedding == (4, 4, 16)
    larger = models.build("swin-tiny-test", image_size=56, dtype=jnp.bfloat16)
    out = jax.eval_shape(larger.encode, params, jnp.zeros((56, 56, 3)))
    assert (out.shape, out.dtype) == (larger.spec.embedding, jnp.bfloat16) == ((7, 7, 16), jnp.bfloat16)


def test_the_table_is_read_by_query_minus_key():
    """In a window of 2 x 2, token 3 lies one row below and one column right of token 0."""
    assert offsets(2)[3, 0] == 2 * 3 + 2
    assert offsets(2)[0, 3] == 0
    assert offsets(2)[1, 2] == 0 * 3 + 2  # one row above, one column right
    assert (np.diag(offsets(7)) == 84).all()
    assert len(np.unique(offsets(7))) == 169


@pytest.mark.slow
def test_a_large_bias_lets_a_token_see_its_right_neighbour_only():
    module = WindowAttention(heads=1, window=2)
    x = jax.random.normal(jax.random.key(0), (1, 4, 3))
    params = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(1), x)["params"])
    params["qkv"]["kernel"] = params["qkv"]["kernel"].at[:, 6:].set(jnp.eye(3))
    params["proj"]["kernel"] = jnp.eye(3)
    table = params["relative_position_bias_table"]
    params["relative_position_bias_table"] = table.at[offsets(2)[0, 1], 0].set(100.0)
    out = module.apply({"params": params}, x)[0]
    np.testing.assert_allclose(out[jnp.array([0, 2])], x[0, jnp.array([1, 3])], atol=1e-5)
    np.testing.assert_allclose(out[1], x[0].mean(0), atol=1e-5)


def test_shifted_windows_see_only_what_lay_together():
    """8 x 8 tokens, windows of 4 shifted by 2: the first window is whole, the last has four parts."""
    mask = wrapping_mask((8, 8), (4, 4), (2, 2))
    assert mask.shape == (4, 16, 16)
    assert (mask[0] == 0).all()
    for window, parts in ((1, 2), (2, 2), (3, 4)):
        assert len(np.unique(mask[window], axis=0)) == parts
        assert (mask[window] == APART).mean() == 1 - 1 / parts


def reached(block, size, place):
    """Tokens of a map that change when one of them does."""
    x = jax.random.normal(jax.random.key(0), (*size, 4))
    params = block.init(jax.random.key(1), x)
    change = jnp.abs(block.apply(params, x.at[place].add(jnp.arange(4.0))) - block.apply(params, x)).max(-1)
    return {tuple(map(int, found)) for found in np.argwhere(change > 1e-6)}


@pytest.mark.parametrize(
    ("shifted", "place", "rows", "columns"),
    [
        (False, (1, 5), range(4), range(4, 8)),
        (True, (3, 5), range(2, 6), range(2, 6)),
        (True, (0, 7), range(2), range(6, 8)),
        (True, (1, 3), range(2), range(2, 6)),
    ],
)
def test_a_token_reaches_those_of_its_window(shifted, place, rows, columns):
    found = reached(Block(heads=1, window=4, shifted=shifted), (8, 8), place)
    assert found == {(i, j) for i in rows for j in columns}


@pytest.mark.slow
def test_a_map_as_large_as_a_window_is_not_shifted():
    found = reached(Block(heads=1, window=4, shifted=True), (4, 4), (0, 0))
    assert found == {(i, j) for i in range(4) for j in range(4)}


def test_merging_takes_rows_before_columns():
    """Channels of the four tokens: (0, 0), (1, 0), (0, 1), (1, 1), as in the checkpoints."""
    x = jnp.arange(16.0).reshape(4, 4, 1)
    module = PatchMerging()
    params = module.init(jax.random.key(0), x)["params"]
    params["norm"]["scale"] = jnp.array([1.0, 0.0, 0.0, 0.0])
    params["reduction"]["kernel"] = jnp.ones((4, 2))
    first = module.apply({"params": params}, x)
    params["norm"]["scale"] = jnp.array([0.0, 1.0, 0.0, 0.0])
    second = module.apply({"params": params}, x)
    group = np.array([0.0, 4.0, 1.0, 5.0])
    standard = (group - group.mean()) / np.sqrt(group.var() + 1e-5)
    np.testing.assert_allclose(first[0, 0], standard[[0, 0]], atol=1e-5)
    np.testing.assert_allclose(second[0, 0], standard[[1, 1]], atol=1e-5)
    assert module.apply({"params": params}, x[:3, :3]).shape == (2, 2, 2)


def test_every_parameter_has_one_row_under_the_names_of_the_release(tiny):
    model, params, _ = tiny
    state = to_torch(SWIN, params)
    assert choose(state) is SWIN
    assert state["layers.0.blocks.1.attn.relative_position_bias_table"].shape == (49, 1)
    unused = {
        "layers.0.blocks.1.attn_mask": np.zeros((4, 16, 16), np.float32),
        "layers.1.blocks.0.attn.relative_position_index": np.zeros((16, 16), np.int64),
        "head.bias": np.ones(5, np.float32),
    }
    back = to_jax(SWIN, state | unused, jax.eval_shape(model.init, jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert all(path[0] == "image_encoder" for path in flatten_dict(params["params"]))


def test_wrong_requests_are_one_sentence(tiny):
    model, params, _ = tiny
    with pytest.raises(BadModelOption, match="image_size 225 is no positive multiple of 32"):
        models.build("swin-t", image_size=225)
    with pytest.raises(NoDecoder, match="swin-tiny-test gives features only"):
        model.decode(params, jnp.zeros((4, 4, 16)))
