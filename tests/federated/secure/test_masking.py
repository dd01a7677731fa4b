"""Numbers of the field that masks live in; what is opened of masked messages: test_secure_sum.py."""

import jax.numpy as jnp
import numpy as np

from medvfm_jax.federated.secure import masking as sa


def test_the_field_wraps_and_the_scale_keeps_sums_from_wrapping():
    n, bound = 37, 0.3
    scale = sa.fixed_point_scale(bound, n)
    assert n * (scale * bound + 1) < 2**31 <= n * (2 * scale * bound + 1)
    worst = jnp.full((n, 2), jnp.float32(np.ceil(scale * bound))).astype(jnp.int32)
    for signed in (worst, -worst):
        total = sa.from_field(sa.to_field(signed).sum(axis=0, dtype=jnp.uint32))
        np.testing.assert_array_equal(total, np.asarray(signed, np.int64).sum(axis=0))
    too_large = sa.from_field(sa.to_field(2 * worst).sum(axis=0, dtype=jnp.uint32))
    assert (np.asarray(too_large) != 2 * np.asarray(worst, np.int64).sum(axis=0)).all()
