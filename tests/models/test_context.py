import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.adapters.context_blocks import BLOCKS
from medvfm_jax.models.context.aspp import ASPP
from medvfm_jax.models.context.cross_scale_attention import CrossScaleAttention
from medvfm_jax.models.context.errors import MapTooSmall
from medvfm_jax.models.context.feature_pyramid import FeaturePyramid
from medvfm_jax.models.context.pyramid_pooling import PyramidPooling
from medvfm_jax.models.context.scales import enlarge, region_means

SMALL = {"width": 8}
QUICK = ("aggregation", "interactive", "mix_ffn")
NAMES = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in sorted(BLOCKS)]
)


def feature_map(h=9, w=14, c=6, seed=0):
    return jax.random.normal(jax.random.key(seed), (h, w, c))


@NAMES
def test_residual_use_starts_as_the_identity_and_can_leave_it(name):
    block, x = BLOCKS[name].make(**SMALL), feature_map()
    params = block.init(jax.random.key(1), x)

    def loss(params):
        y = block.apply(params, x)
        return jnp.square(y - 1.0).sum(), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert y.shape == x.shape
    np.testing.assert_array_equal(y, 0.0)
    assert jnp.abs(grads["params"]["last"]["proj"]["kernel"]).max() > 0


@NAMES
def test_without_zero_init_every_parameter_matters(name):
    block, x = BLOCKS[name].make(**SMALL, zero_init=False), feature_map()
    params = block.init(jax.random.key(1), x)
    weights = feature_map(seed=2)
    grads = jax.jit(jax.grad(lambda params: (block.apply(params, x) * weights).sum()))(params)
    idle = {
        "/".join(k.key for k in path)
        for path, g in jax.tree.leaves_with_path(grads)
        if jnp.abs(g).max() < 1e-6
    }
    # Softmax ignores what is added to every key alike.
    assert all(path.endswith("/k/bias") for path in idle)


@NAMES
def test_a_batch_is_single_images(name):
    block = BLOCKS[name].make(**SMALL, zero_init=False)
    batch = jnp.stack([feature_map(8, 8, seed=s) for s in range(2)])
    params = block.init(jax.random.key(1), batch[0])
    both = jax.jit(jax.vmap(block.apply, in_axes=(None, 0)))(params, batch)
    np.testing.assert_allclose(both[1], block.apply(params, batch[1]), atol=1e-4)


@NAMES
def test_bfloat16_stays_bfloat16(name):
    block = BLOCKS[name].make(**SMALL, dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((8, 8, 6), jnp.bfloat16)
    y, params = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_aspp_samples_at_its_rate_and_the_mean_sees_everything():
    x = feature_map(21, 21, 3)
    block = ASPP(width=8, rates=(4,), zero_init=False)
    params = block.init(jax.random.key(1), x)
    centre = lambda x: jnp.square(block.apply(params, x)[10, 10]).sum()  # noqa: E731
    influence = jnp.abs(jax.jit(jax.grad(centre))(x)).sum(axis=-1)
    on_rate, beside, far = influence[10, 14], influence[10, 13], influence[0, 0]
    assert on_rate > 5 * beside
    np.testing.assert_allclose(beside, far, rtol=1e-3)
    assert far > 0


def test_region_means_share_a_row_when_the_side_does_not_divide():
    x = jnp.arange(5.0)[:, None, None] * jnp.ones((5, 4, 1))
    np.testing.assert_allclose(region_means(x, 2)[:, 0, 0], [1.0, 3.0], atol=1e-6)
    x = feature_map(6, 6, 2)
    np.testing.assert_allclose(region_means(x, 6), x, atol=1e-6)
    np.testing.assert_allclose(region_means(x, 1)[0, 0], x.mean((0, 1)), atol=1e-6)


def test_enlarge_repeats_and_cuts():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None]
    np.testing.assert_array_equal(enlarge(x, (3, 4))[..., 0], [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]])


def test_the_pyramid_is_top_down():
    """Coarse maps change every finer level, fine maps no coarser one."""
    maps = [feature_map(8, 8, 4), feature_map(4, 4, 5, seed=1), feature_map(2, 2, 6, seed=2)]
    pyramid = FeaturePyramid(width=8)
    params = pyramid.init(jax.random.key(0), maps)
    run = jax.jit(lambda maps: pyramid.apply(params, maps))
    before, changes = run(maps), []
    for level in range(3):
        touched = [m + (i == level) for i, m in enumerate(maps)]
        changes.append(
            [float(jnp.abs(a - b).max()) > 1e-4 for a, b in zip(run(touched), before, strict=True)]
        )
    assert changes == [[True, False, False], [True, True, False], [True, True, True]]
    assert [m.shape for m in before] == [(8, 8, 8), (4, 4, 8), (2, 2, 8)]


@pytest.mark.slow
def test_cross_scale_tokens_split_the_width_and_reach_everywhere():
    block, x = CrossScaleAttention(width=16, zero_init=False), feature_map(16, 16, 6)
    params = block.init(jax.random.key(0), x)
    shapes = {k: v["kernel"].shape for k, v in params["params"].items() if k.startswith("scale_")}
    assert shapes == {"scale_4": (4, 4, 16, 8), "scale_8": (8, 8, 16, 4), "scale_16": (16, 16, 16, 4)}
    change = block.apply(params, x.at[0, 0].add(2.0)) - block.apply(params, x)
    assert jnp.abs(change[15, 15]).max() > 1e-6


def test_maps_that_are_too_small_are_refused():
    with pytest.raises(MapTooSmall, match="6x6"):
        PyramidPooling(8).init(jax.random.key(0), feature_map(4, 4))
    with pytest.raises(MapTooSmall, match="smaller stride"):
        CrossScaleAttention(8).init(jax.random.key(0), feature_map(2, 2))
