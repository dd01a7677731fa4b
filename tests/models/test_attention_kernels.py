"""The kernels of TPUs and GPUs, run as plain JAX, against the plain form: numbers and gradients, mapped, recomputed,
divided."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax.models.attention import (
    GPU,
    PLAIN,
    TPU,
    grid_attention,
    map_attention,
    relative_positions,
)
from medvfm_jax.models.kernels import flash_heads, gpu_attention
from medvfm_jax.models.kernels.flash_heads import Kernel

KERNELS = {how.kernels: replace(how, interpret=True) for how in (TPU, GPU)}
both = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)


def close(tree, other, tolerance=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance), tree, other)


def windows(how, tokens, tables, heads=2, window=3):
    """Attention in the windows of a map; tokens: qkv (h, w, 3 * c) and what fills windows up (3 * c)."""
    positions = (relative_positions(table, window) for table in tables)
    return map_attention(*tokens, heads, *positions, how)


def gradients(function, *arguments):
    """Outputs, and gradients of all arguments for a cotangent that is no constant."""

    def loss(*arguments):
        out = function(*arguments)
        return (jnp.sin(3 * out) * out).sum(), out

    return jax.jit(jax.grad(loss, range(len(arguments)), has_aux=True))(*arguments)


@pytest.fixture
def case():
    """Two maps of 4 x 5 tokens, two windows of 3 x 3 each way, two heads of 4; fill; and tables."""
    keys = jax.random.split(jax.random.key(0), 4)
    tables = jax.random.normal(keys[0], (5, 4)), jax.random.normal(keys[1], (5, 4))
    return (jax.random.normal(keys[2], (2, 4, 5, 24)), jax.random.normal(keys[3], (2, 24))), tables


@both
def test_windows_in_a_batch_have_the_numbers_and_gradients_of_the_plain_form(case, kernels):
    def batch(how):
        return gradients(jax.vmap(functools.partial(windows, how), (0, None)), *case)

    close(batch(kernels), batch(PLAIN))


def test_queries_in_steps_and_positions_in_registers_of_their_own(monkeypatch):
    """A grid of 2 x 33 tokens, one row per step; a head of 100 leaves no lanes for 35 positions."""
    monkeypatch.setattr(flash_heads, "QUERIES", 16)
    kernel = Kernel(2, 33, 1, 100)
    assert (kernel.steps, kernel.first, kernel.together, kernel.across) == (2, 0, False, 48)
    keys = jax.random.split(jax.random.key(1), 5)
    q, k, v = (jax.random.normal(key, (1, 66, 100)) for key in keys[:3])
    tables = 0.3 * jax.random.normal(keys[3], (3, 100)), 0.3 * jax.random.normal(keys[4], (65, 100))

    def grid(how, q, k, v, tables):
        return grid_attention(
            q, k, v, relative_positions(tables[0], 2), relative_positions(tables[1], 33), how
        )

    close(
        *(gradients(functools.partial(grid, how), q, k, v, tables) for how in (KERNELS["tpu"], PLAIN)), 1e-3
    )


@pytest.mark.parametrize("d", [12, 16])
def test_grids_filled_up_to_whole_blocks(d):
    """5 x 20 tokens in blocks of 64 queries and 2 rows of 32 keys: both sides are filled up, and so is a head of 12."""
    kernel = gpu_attention.Kernel(5, 20, d)
    assert (kernel.width, kernel.across, kernel.rows, kernel.down, kernel.queries) == (16, 32, 2, 6, 128)
    keys = jax.random.split(jax.random.key(1), 5)
    q, k, v = (jax.random.normal(key, (2, 100, d)) for key in keys[:3])
    tables = jax.random.normal(keys[3], (9, d)), jax.random.normal(keys[4], (39, d))

    def grid(how, q, k, v, tables):
        return grid_attention(
            q, k, v, relative_positions(tables[0], 5), relative_positions(tables[1], 20), how
        )

    close(*(gradients(functools.partial(grid, how), q, k, v, tables) for how in (KERNELS["gpu"], PLAIN)))


@pytest.mark.slow
@both
def test_clients_that_train_their_tables_and_blocks_that_recompute_in_a_scan(case, kernels):
    """Everything mapped, tables too; two turns of a scan whose body is computed again in the backward pass."""
    qkv, tables = case
    tables = jax.tree.map(lambda x: jnp.stack([x, -x]), tables)

    def twice(how, qkv, tables):
        @jax.checkpoint
        def block(x, _):
            return (x[0] + jnp.tile(windows(how, x, tables), 3), x[1]), None

        return jax.lax.scan(block, qkv, length=2)[0][0]

    close(
        *(gradients(jax.vmap(functools.partial(twice, how)), qkv, tables) for how in (kernels, PLAIN)),
        1e-3,
    )


@both
def test_bfloat16_keeps_its_type_and_stays_close(case, kernels):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), case)
    ours, plain = (jax.jit(jax.vmap(functools.partial(windows, how), (0, None))) for how in (kernels, PLAIN))
    out, expected = ours(*half), plain(*jax.tree.map(jnp.float32, half))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.06)


@pytest.mark.slow
@both
def test_on_a_mesh_every_device_computes_its_part_of_the_batch(case, kernels):
    qkv, tables = case
    others = (
        4 if kernels.kernels == "tpu" else 1
    )  # the GPU's batch has heads and windows, which "model" divides too
    axes = {"axis_types": (jax.sharding.AxisType.Auto,) * 2, "devices": jax.devices()[: 2 * others]}
    mesh = jax.make_mesh((2, others), ("data", "model"), **axes)
    function = jax.vmap(functools.partial(windows, kernels), (0, None))

    def on_mesh(qkv, tables):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(qkv, tables)

    placed = jax.device_put(qkv, jax.NamedSharding(mesh, jax.P("data")))
    compiled = jax.jit(on_mesh).trace(placed, tables).lower().compile()
    close(compiled(placed, tables), function(qkv, tables))
    assert "all-gather" not in compiled.as_text()


@pytest.mark.parametrize("form", [TPU, GPU], ids=KERNELS)
def test_clients_on_a_mesh(case, form):
    """Clients over one axis by shard_map, another axis left to the compiler, tables whole on every device.

    Each client's result and gradient stay its own, by their types; Pallas cannot run this as plain JAX.
    """
    (qkv, fill), tables = case
    mesh = jax.make_mesh((2, 2), ("clients", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {"in_specs": (jax.P("clients"), jax.P()), "out_specs": jax.P("clients")}

    def own(how, qkv, fill):
        out, gradient = jax.vjp(lambda qkv: windows(how, (qkv, fill[0]), tables), qkv[0])
        return out[None], gradient(out)[0][None]

    def traced(how):
        function = jax.shard_map(functools.partial(own, how), mesh=mesh, axis_names={"clients"}, **specs)
        with jax.set_mesh(mesh):
            return jax.make_jaxpr(function)(qkv, fill[:1])

    kernels, plain = traced(form), traced(PLAIN)
    assert kernels.out_avals == plain.out_avals
    assert "psum" not in str(kernels)  # nothing is summed over clients


def test_grids_that_need_more_than_one_register_of_positions_are_left_to_other_forms():
    assert Kernel(64, 64, 1, 80).fits
    assert Kernel(14, 14, 16, 80).fits
    assert not Kernel(64, 65, 1, 80).fits
    assert not Kernel(96, 32, 1, 80).fits
