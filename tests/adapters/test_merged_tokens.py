"""Token merging: which tokens become one, and what each of them is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from medvfm_jax.adapters import BadAdapterConfig, NotMergeable, WrongSite, from_config, to_config
from medvfm_jax.adapters.merged_tokens import bipartite_matching, merge, merged_tokens, unmerge
from medvfm_jax.models.vit.modules import Block, ViTConfig

X = jax.random.normal(jax.random.key(0), (11, 6))


@pytest.mark.parametrize("protected", [1, 10, 11])
def test_without_merging_every_token_is_its_own(protected):
    merging = bipartite_matching(X, 0, protected)
    assert sorted(np.asarray(merging.group)) == list(range(11))
    assert np.asarray(merging.size).tolist() == [1] * 11
    np.testing.assert_array_equal(unmerge(merging, merge(merging, X)), X)


@pytest.mark.parametrize("r", [1, 3, 5])
@pytest.mark.parametrize("protected", [0, 1])
def test_r_tokens_go_sizes_add_up_and_sums_stay(r, protected):
    merging = bipartite_matching(X, r, protected)
    merged = merge(merging, X)
    assert merged.shape == (11 - r, 6)
    assert float(merging.size.sum()) == 11
    assert float(merging.size.min()) >= 1
    np.testing.assert_allclose(merging.size @ merged, X.sum(0), atol=1e-5)
    back = unmerge(merging, merged)
    for token in range(11):
        same = np.asarray(merging.group == merging.group[token])
        np.testing.assert_allclose(back[token], X[same].mean(0), atol=1e-6)
    if protected:
        assert int((merging.group == merging.group[0]).sum()) == 1


def test_duplicates_merge_first_and_nothing_is_lost():
    x = X.at[3].set(X[0]).at[8].set(X[5])  # one of each pair lies in either set
    merging = bipartite_matching(x, 2)
    assert int(merging.group[3]) == int(merging.group[0])
    assert int(merging.group[8]) == int(merging.group[5])
    np.testing.assert_allclose(unmerge(merging, merge(merging, x)), x, atol=1e-6)


def test_tokens_are_alike_by_their_direction_and_not_by_their_length():
    """The first has a long neighbour at 45 degrees, whose product with it is larger than that of its double."""
    x = jnp.array([[1.0, 0], [50, 50], [0, 9], [2, 0], [-3, 1], [-1, -4]])
    merging = bipartite_matching(x, 1)
    assert int(merging.group[0]) == int(merging.group[3])
    assert sorted(np.asarray(merging.size)) == [1, 1, 1, 1, 2]


def test_more_than_half_cannot_be_merged():
    with pytest.raises(ValueError, match="at most 5"):
        bipartite_matching(X, 6)
    for options in ({"share": 0.6}, {"share": "a"}, {"share": 0.1, "protected": -1}):
        with pytest.raises(BadAdapterConfig):
            merged_tokens(".*", **options)


class Toy(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(6, name="mlp")(x)


def test_a_module_runs_on_fewer_tokens_and_every_token_keeps_its_residual():
    params = Toy().init(jax.random.key(1), X)
    adapter = from_config(to_config(merged_tokens("mlp", 0.3)))
    assert adapter.init(jax.random.key(0), Toy().apply, params, X) == {}
    found = adapter.wrap(Toy().apply)(params, {}, X)
    merging = bipartite_matching(X, 3)
    own = params["params"]["mlp"]
    expected = X + unmerge(merging, merge(merging, X) @ own["kernel"] + own["bias"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    none = merged_tokens("mlp", 0.0).wrap(Toy().apply)(params, {}, X)
    np.testing.assert_array_equal(none, Toy().apply(params, X))
    half = merged_tokens("mlp", 0.5, 3).wrap(Toy().apply)(params, {}, X)  # 4 of the 8 that are not protected
    merging = bipartite_matching(X, 4, 3)
    expected = X + unmerge(merging, merge(merging, X) @ own["kernel"] + own["bias"])
    np.testing.assert_allclose(half, expected, atol=1e-5)
    with pytest.raises(NotMergeable):
        adapter.merge(params, {})
    with pytest.raises(WrongSite, match="tokens"):
        adapter.init(jax.random.key(0), Toy().apply, params, X[None])


@pytest.mark.parametrize("options", [{"segments": 2}, {"dilation": 2}, {"causal": True}])
def test_attention_that_depends_on_the_order_of_tokens_is_refused_and_its_perceptron_is_not(options):
    block = Block(ViTConfig(6, 1, 2, mlp_ratio=1, **options))
    x = X[:10]
    params = jax.eval_shape(block.init, jax.random.key(1), x)
    for path in ("attn", "attn|mlp"):
        with pytest.raises(WrongSite, match="order of its tokens"):
            merged_tokens(path, 0.3).init(jax.random.key(0), block.apply, params, x)
    assert merged_tokens("mlp", 0.3).init(jax.random.key(0), block.apply, params, x) == {}
