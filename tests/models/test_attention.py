from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models.attention import (
    PLAIN,
    Formulation,
    attend,
    formulation,
    grid_attention,
    pad_with,
    partition,
    relative_positions,
    unpartition,
    window_attention,
)
from medvfm_jax.models.backend import compiling_for

HEADS, H, W, D = 2, 4, 6, 3
CUT = [
    Formulation(rows=4, heads=1),
    Formulation(rows=8),
    Formulation(heads=1),
    Formulation(rows=5, heads=2),
]


def definition(q, k, v, rows, columns):
    """Softmax attention with decomposed biases by loops over queries, in float64."""
    q, k, v, rows, columns = (np.asarray(a, np.float64) for a in (q, k, v, rows, columns))
    out = np.zeros_like(v)
    for head, y, x in np.ndindex(HEADS, H, W):
        query = q[head, y * W + x]
        logits = (k[head] @ query * D**-0.5).reshape(H, W)
        logits += (rows[y] @ query)[:, None] + (columns[x] @ query)[None, :]
        weights = np.exp(logits - logits.max()).ravel()
        out[head, y * W + x] = weights / weights.sum() @ v[head]
    return out


@pytest.fixture(scope="module")
def case():
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (HEADS, H * W, D)) for key in keys[:3])
    rows = relative_positions(jax.random.normal(keys[3], (2 * H - 1, D)), H)
    return q, k, v, rows, relative_positions(jax.random.normal(keys[4], (2 * W - 1, D)), W)


@pytest.mark.parametrize("how", [PLAIN, *CUT])
def test_every_formulation_is_the_definition(case, how):
    np.testing.assert_allclose(grid_attention(*case, how=how), definition(*case), atol=2e-6)


def test_gradients_of_the_formulations_agree(case):
    def gradient(how):
        return jax.jit(jax.grad(lambda *a: jnp.sin(grid_attention(*a, how=how)).sum(), range(5)))(*case)

    plain = gradient(PLAIN)
    for how in CUT[:2]:
        for a, b in zip(gradient(how), plain, strict=True):
            np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.slow
def test_windows_one_by_one_or_together_are_the_grid_attention_of_each(case):
    q, k, v, rows, _ = case
    side, tokens = 4, 16
    qkv = jnp.concatenate([jnp.concatenate([a[h, :tokens] for h in range(HEADS)], 1) for a in (q, k, v)], 1)
    windows = jnp.stack([qkv, 2 * qkv, qkv[::-1]])
    alone = window_attention(windows, HEADS, rows, rows, Formulation(windows=1))
    np.testing.assert_allclose(alone, window_attention(windows, HEADS, rows, rows, PLAIN), atol=1e-6)
    expected = grid_attention(q[:, :tokens], k[:, :tokens], v[:, :tokens], rows, rows, PLAIN)
    np.testing.assert_allclose(alone[0], jnp.concatenate(list(expected), axis=1), atol=1e-6)
    assert alone.shape == (3, side**2, HEADS * D)


def test_bfloat16_keeps_its_type_and_stays_close(case):
    half = grid_attention(*(a.astype(jnp.bfloat16) for a in case), how=CUT[0])
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), definition(*case), atol=0.06)


def test_relative_positions_are_indexed_by_query_minus_key():
    table = jnp.arange(5.0)[:, None]
    np.testing.assert_array_equal(relative_positions(table, 3)[..., 0], [[2, 1, 0], [3, 2, 1], [4, 3, 2]])


def test_a_table_of_another_length_is_resized_linearly():
    line = jnp.arange(9.0)[:, None]  # linear interpolation keeps a line a line
    np.testing.assert_allclose(relative_positions(line, 3)[1, :, 0], [5.8, 4.0, 2.2], atol=1e-6)


def test_windows_put_back_together_give_the_map_without_its_padding():
    x = jnp.arange(5 * 4 * 2.0).reshape(5, 4, 2)
    padded = pad_with(x, jnp.array([-1.0, -2.0]), 3)
    assert padded.shape == (6, 6, 2)
    np.testing.assert_array_equal(padded[5, 0], [-1, -2])
    np.testing.assert_array_equal(padded[0, 5], [-1, -2])
    windows = partition(padded, 3)
    np.testing.assert_array_equal(windows[1, 0], x[0, 3])
    np.testing.assert_array_equal(unpartition(windows, 3, (5, 4)), x)


def test_the_choice_depends_on_the_backend_and_the_number_of_tokens():
    assert formulation(4096, "cpu") == Formulation(rows=256, heads=1, windows=1)
    assert formulation(196, "cpu") == Formulation(windows=1)
    assert formulation(4096, "gpu").heads is None
    assert formulation(196, "gpu") == Formulation(kernels="gpu")
    assert formulation(196, "accelerator") == PLAIN
    assert formulation(4096, "tpu") == Formulation(rows=1024)
    assert formulation(196, "tpu") == PLAIN


def test_kernels_that_no_tpu_has_run_are_for_plans_and_for_who_asks(monkeypatch):
    with compiling_for("tpu"):
        assert formulation(196) == Formulation(kernels="tpu")
        assert formulation(4096) == Formulation(rows=1024, kernels="tpu")
    monkeypatch.setenv("MEDVFM_KERNELS", "1")
    assert formulation(196, "tpu") == Formulation(kernels="tpu")


@pytest.mark.parametrize("backend", ["tpu", "gpu"])
def test_kernels_can_be_left_out(monkeypatch, backend):
    monkeypatch.setenv("MEDVFM_KERNELS", "0")
    assert formulation(4096, backend) == formulation(4096, "accelerator")


@pytest.mark.parametrize(("capability", "kernels"), [("9.0", "gpu"), ("7.5", None), ("gfx90a", None)])
def test_kernels_need_a_gpu_of_capability_8(monkeypatch, capability, kernels):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert formulation(196).kernels == kernels


def test_attend_is_softmax_attention_and_survives_large_logits():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 5, 4))
    expected = jax.nn.softmax(q @ k.swapaxes(-1, -2), axis=-1) @ v
    np.testing.assert_allclose(attend(q, k, v), expected, atol=1e-5)
    assert np.isfinite(attend(1e3 * q, 1e3 * k, v)).all()

    def plain(q, k, v):
        return (jax.nn.softmax(q @ k.swapaxes(-1, -2), axis=-1) @ v).sum()

    grads = jax.grad(lambda *x: attend(*x).sum(), (0, 1, 2))(q, k, v)
    for got, expected in zip(grads, jax.grad(plain, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
