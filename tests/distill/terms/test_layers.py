import jax
import jax.numpy as jnp
import numpy as np

from medvfm_jax.distill.terms import TERMS, Answer, Compared, Sizes


def seen(student, teacher, regressors, weights):
    return Compared(
        Answer(jnp.zeros((2, 2, 1))), Answer(jnp.zeros((2, 2, 1))), None, jnp.ones(1), None, "medsam",
        helpers={"layers": regressors}, layers=tuple(zip(student, teacher)), layer_weights=jnp.asarray(weights),
    )  # fmt: skip


def test_maps_are_averaged_to_the_coarser_grid_and_projected_and_layers_weighed():
    fine = jnp.asarray(np.kron(np.arange(4.0).reshape(2, 2), np.ones((2, 2)))[..., None])
    coarse = jnp.asarray(np.arange(4.0).reshape(2, 2, 1))
    double = {"0": jnp.full((1, 1), 2.0), "1": jnp.full((1, 1), 2.0)}
    apart = 0.5 * np.mean(np.arange(4.0) ** 2)  # 2 x - x
    value = TERMS["layers"](seen([fine, coarse], [coarse, 2 * coarse], double, [1.0, 3.0]))
    np.testing.assert_allclose(value, apart / 4, rtol=1e-6)  # the second layer is met exactly
    value = TERMS["layers"](seen([coarse], [fine], {"0": jnp.full((1, 1), 2.0)}, [1.0]))
    np.testing.assert_allclose(value, apart, rtol=1e-6)


def test_there_is_a_projection_for_every_pair():
    found = TERMS["layers"].helper(jax.random.key(0), Sizes((2, 2, 1), ((3, 5), (4, 2))))
    assert {name: array.shape for name, array in found.items()} == {"0": (3, 5), "1": (4, 2)}
