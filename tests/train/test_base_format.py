"""Frozen weights in bfloat16: half the bytes, what must not be rounded is not, a run close to that in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models import catalog
from medvfm_jax.plan.abstract_training import abstract_training
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.settings.plan import Training
from medvfm_jax.train import adapt
from medvfm_jax.train.base_format import in_format
from medvfm_jax.weights import artifacts, load
from tests.train.small_runs import small


def size(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_matrices_are_rounded_and_nothing_else():
    params = catalog.build("sam-tiny-test").init(jax.random.key(0))
    rounded = in_format(params, "bfloat16")
    assert in_format(params, "float32") is params
    assert jax.tree.structure(rounded) == jax.tree.structure(params)
    found = {}
    for (keys, before), after in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(rounded)):
        found.setdefault(str(after.dtype), []).append(keys[-1].key)
        if after.dtype == jnp.bfloat16:
            np.testing.assert_array_equal(after, before.astype(jnp.bfloat16))
        else:
            assert before is after
    assert {"bias", "scale", "positional_encoding_gaussian_matrix"} <= set(found["float32"])
    assert {"kernel", "pos_embed", "rel_pos_h"} <= set(found["bfloat16"])
    assert not {"bias", "scale", "positional_encoding_gaussian_matrix"} & set(found["bfloat16"])


def test_what_a_plan_is_given_has_half_the_bytes_and_trains_in_float32():
    whole, half = (abstract_training(Training("sam-b", base_dtype=kind)) for kind in ("float32", "bfloat16"))
    assert 0.5 <= size(half.params) / size(whole.params) < 0.51
    assert half.state.delta == whole.state.delta
    assert {leaf.dtype for leaf in jax.tree.leaves(half.state.delta)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_a_run_on_rounded_weights_is_close_and_its_delta_belongs_to_the_published_ones(
    finished, cells, tmp_path
):
    result = adapt(small(cells, tmp_path / "run", base_dtype="bfloat16"))
    delta, metadata = artifacts.load_delta(result.delta)
    artifacts.check_base(metadata, load("sam-tiny-test")[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(delta)} == {np.dtype("float32")}
    one, other = ([r["loss"] for r in read_metrics(r.folder) if "loss" in r] for r in (finished, result))
    np.testing.assert_allclose(one, other, rtol=0.02)
    assert one != other
