import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import executables

PRODUCT = """
import sys
import jax
import numpy as np
from medvfm_jax import executables
x = np.arange(6, dtype=np.float32).reshape(2, 3)
shapes = ({"x": jax.ShapeDtypeStruct((2, 3), "float32")},)
def refuse(*_): raise AssertionError("traced or compiled")
jax.jit = refuse
run = executables.load(open(sys.argv[1], "rb").read(), shapes)
print(np.asarray(run({"x": x})["y"]["sum"]).tobytes().hex())
"""


def shapes(*inputs):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)


def nested(inputs):
    normal = inputs["x"] / jnp.sqrt((inputs["x"] ** 2).sum(1, keepdims=True))
    return {"y": {"sum": jnp.exp(normal).sum(0)}, "z": inputs["x"].T}


X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_another_process_runs_the_bytes_without_tracing_and_gets_the_same_bits(tmp_path):
    run, content = executables.compiled(nested, shapes(X))
    (tmp_path / "kept").write_bytes(content)
    said = subprocess.run(
        [sys.executable, "-c", PRODUCT, str(tmp_path / "kept")], capture_output=True, text=True, check=True
    )
    found = np.frombuffer(bytes.fromhex(said.stdout.strip()), np.float32)
    np.testing.assert_array_equal(found, run(X)["y"]["sum"])
    np.testing.assert_allclose(
        found, np.exp(X["x"] / np.linalg.norm(X["x"], axis=1, keepdims=True)).sum(0), rtol=1e-6
    )


def test_what_is_not_used_and_what_is_nested_keeps_its_place():
    run, content = executables.compiled(lambda a, b: {"twice": 2 * b["x"]}, shapes(X, X))
    for found in (run(X, X), executables.load(content, shapes(X, X))(X, X)):
        np.testing.assert_array_equal(found["twice"], 2 * X["x"])


def test_inputs_of_another_shape_or_type_are_refused():
    run = executables.load(executables.compiled(nested, shapes(X))[1], shapes(X))
    for wrong in ({"x": np.zeros((2, 4), np.float32)}, {"x": np.zeros((2, 3), np.int32)}, {"y": X["x"]}):
        with pytest.raises(TypeError, match="shapes and types"):
            run(wrong)


def test_what_is_no_nested_dictionary_is_compiled_and_not_kept():
    run, content = executables.compiled(lambda x: {"y": (x["x"], x["x"])}, shapes(X))
    assert content is None
    assert jax.tree.leaves(run(X))[0].shape == (2, 3)


@pytest.mark.slow
def test_bytes_hold_all_functions_where_jax_has_a_compilation_cache(tmp_path):
    """An executable that JAX has read from its cache is written by XLA without some of its functions."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path))
    jax.config.update(names[1], 0.0)
    try:
        lengths = []
        for _ in range(2):
            jax.clear_caches()
            _, content = executables.compiled(nested, shapes(X))
            lengths.append(len(content))
            executables.load(content, shapes(X))(X)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        executables.compilation_cache.reset_cache()
    assert lengths[0] == lengths[1]
    assert not list(tmp_path.iterdir())  # neither written nor read


def test_flags_and_versions_are_part_of_what_bytes_depend_on(monkeypatch):
    before = executables.platform_words()
    assert {jax.__version__, executables.jaxlib.__version__, "cpu"} <= set(before)
    monkeypatch.setenv("XLA_FLAGS", "--something_else")
    assert executables.platform_words() != before
