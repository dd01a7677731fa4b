"""DoRA, PiSSA, FacT, Compacter and Conv-LoRA against their formulas by hand, and what they refuse."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.adapters import (
    BadAdapterConfig,
    NoSuchSite,
    NotMergeable,
    WrongSite,
    adapt_model,
    bottleneck,
    compacter,
    conv_lora,
    count,
    dora,
    fact,
    lora,
    lora_ga,
    pissa,
    start_from_gradients,
)
from medvfm_jax.adapters.training_options import check_ranks, is_random, rate_of
from tests.adapters.toy_vit import IMAGE, KEY, init_delta, perturbed, toy

DENSE = nn.Sequential([nn.Dense(48)])
TOKENS = jax.random.normal(KEY, (3, 5, 24))


def dense_params() -> dict:
    return perturbed(DENSE.init(KEY, TOKENS), 0.1)  # with a bias that is not zero


def columns_of(layout: str, name: str) -> np.ndarray:
    which = np.arange(48) // 16 if layout == "fused" else np.arange(48) // 4 % 3
    return which == "qkv".index(name)


@pytest.mark.parametrize("slices", [None, "qv"])
@pytest.mark.parametrize("layout", ["fused", "head_major"])
def test_dora_is_magnitude_times_direction(slices, layout) -> None:
    """Kernel by the paper's formula in numpy: m |W| (W + s a b) / |W + s a b|, columns of k as they are."""
    params = dense_params()
    adapter = dora(2, 4.0, "layers_0", slices=slices, layout=layout, head_dim=4)
    delta = perturbed(adapter.init(KEY, DENSE.apply, params, TOKENS))
    site = {name: np.asarray(array) for name, array in delta["layers_0"].items()}
    kernel = np.asarray(params["params"]["layers_0"]["kernel"], np.float64)
    expected = kernel.copy()
    for part in ["", "_q", "_v"]:
        if f"a{part}" not in site:
            continue
        chosen = columns_of(layout, part[1]) if part else np.full(48, True)
        moved = kernel[:, chosen] + 2.0 * site[f"a{part}"] @ site[f"b{part}"]
        magnitude = np.linalg.norm(kernel[:, chosen], axis=0) * (1 + site[f"m{part}"])
        expected[:, chosen] = magnitude * moved / np.linalg.norm(moved, axis=0)
    merged = adapter.merge(params, delta)
    chex.assert_trees_all_close(
        merged["params"]["layers_0"]["kernel"], expected.astype(np.float32), atol=1e-5
    )
    out = adapter.wrap(DENSE.apply)(params, delta, TOKENS)
    chex.assert_trees_all_close(out, DENSE.apply(merged, TOKENS), atol=1e-4)


@pytest.mark.slow
def test_dora_starts_as_the_model_to_the_bit_and_its_norm_is_a_constant_of_the_gradient() -> None:
    params = dense_params()
    adapter = dora(2, None, "layers_0")
    start = adapter.init(KEY, DENSE.apply, params, TOKENS)
    run = adapter.wrap(DENSE.apply)
    np.testing.assert_array_equal(run(params, start, TOKENS), DENSE.apply(params, TOKENS))
    # With the magnitude at its start, an update along the kernel itself changes no direction; the gradient of b sees
    # it all the same where the norm is constant (paper, eq. 11), and not where it is not (eq. 6).
    kernel = params["params"]["layers_0"]["kernel"]
    along = {"layers_0": start["layers_0"] | {"a": kernel[:, :1].repeat(2, 1)}}
    for constant, seen in ((True, True), (False, False)):
        exact = dora(2, None, "layers_0", constant_norm=constant).wrap(DENSE.apply)
        gradient = jax.grad(lambda delta, exact=exact: exact(params, delta, TOKENS)[..., 0].sum())(along)
        assert bool(jnp.abs(gradient["layers_0"]["b"][:, 0]).max() > 1e-3) == seen


@pytest.mark.parametrize(
    "name", [pytest.param("conv3x3", marks=pytest.mark.slow), "patch", r"blocks_0/attn/out"]
)
def test_dora_of_convolutions_and_several_axes_equals_its_merged_kernel(name: str) -> None:
    vit, params = toy()
    params = perturbed(params, 0.1)
    adapter = dora(2, 4.0, name)
    delta = perturbed(init_delta(adapter, vit, params))
    chex.assert_trees_all_close(
        adapter.wrap(vit.apply)(params, delta, IMAGE),
        vit.apply(adapter.merge(params, delta), IMAGE),
        atol=1e-4,
    )


@pytest.mark.parametrize("slices", [None, "qv"])
@pytest.mark.parametrize("layout", ["fused", "head_major"])
def test_pissa_starts_at_the_best_approximation_and_leaves_the_model_as_it_is(slices, layout) -> None:
    """Eckart-Young: what the start leaves of the kernel has the singular values behind the r-th."""
    params = dense_params()
    adapter = pissa(3, "layers_0", slices=slices, layout=layout, head_dim=4)
    delta = adapter.init(KEY, DENSE.apply, params, TOKENS)
    site, kernel = delta["layers_0"], np.asarray(params["params"]["layers_0"]["kernel"])
    for part in ["_q", "_v"] if slices else [""]:
        block = kernel[:, columns_of(layout, part[1])] if part else kernel
        rest = block - site[f"fixed_a{part}"] @ site[f"fixed_b{part}"]
        values = np.linalg.svd(block, compute_uv=False)
        np.testing.assert_allclose(np.linalg.norm(rest), np.sqrt((values[3:] ** 2).sum()), rtol=1e-4)
        a, b = site[f"fixed_a{part}"], site[f"fixed_b{part}"]
        chex.assert_trees_all_close(a.T @ a, b @ b.T, atol=1e-4)  # the values are split evenly
        assert not site[f"a{part}"].any()
        assert not site[f"b{part}"].any()
    run = adapter.wrap(DENSE.apply)
    np.testing.assert_array_equal(run(params, delta, TOKENS), DENSE.apply(params, TOKENS))
    chex.assert_trees_all_equal(adapter.merge(params, delta), params)
    moved = perturbed(delta)
    out = run(params, moved, TOKENS)
    chex.assert_trees_all_close(out, DENSE.apply(adapter.merge(params, moved), TOKENS), atol=1e-3)
    assert count(delta, params).trained == (2 * 3 * (24 + 16) if slices else 3 * (24 + 48))


def test_constants_of_pissa_have_no_gradient_and_no_learning_rate() -> None:
    params, adapter = dense_params(), pissa(2, "layers_0", b_rate=4.0)
    delta = adapter.init(KEY, DENSE.apply, params, TOKENS)
    gradient = jax.grad(lambda d: (adapter.wrap(DENSE.apply)(params, d, TOKENS) ** 2).sum())(delta)[
        "layers_0"
    ]
    assert not gradient["fixed_a"].any()
    assert not gradient["fixed_b"].any()
    assert gradient["a"].any()
    assert gradient["b"].any()  # both move from the first step on, where LoRA's a waits for b
    rate = rate_of(adapter.config)
    found = {name: rate(("layers_0", name)) for name in delta["layers_0"]}
    assert found == {"a": 1.0, "b": 4.0, "fixed_a": 0.0, "fixed_b": 0.0}


def test_lora_ga_starts_with_the_best_first_step() -> None:
    """Theorem: with a0, b0 from G = U S V^T, a0 a0^T G + G b0^T b0 is G's best approximation of rank 2 r, times c^2."""
    params, adapter = dense_params(), lora_ga(2, None, "layers_0", stability=4.0)
    delta = adapter.init(KEY, DENSE.apply, params, TOKENS)
    target = jax.random.normal(jax.random.key(1), (3, 5, 48))

    def loss(kernel: jax.Array) -> jax.Array:
        layer = {**params["params"]["layers_0"], "kernel": kernel}
        return ((DENSE.apply({"params": {"layers_0": layer}}, TOKENS) - target) ** 2).mean()

    gradient = jax.grad(loss)(params["params"]["layers_0"]["kernel"])
    delta = start_from_gradients(adapter.config, delta, {"layers_0": gradient})
    run = adapter.wrap(DENSE.apply)
    np.testing.assert_array_equal(run(params, delta, TOKENS), DENSE.apply(params, TOKENS))
    step = jax.grad(lambda d: ((run(params, d, TOKENS) - target) ** 2).mean())(delta)["layers_0"]
    rate = 1e-4
    moved = {"layers_0": delta["layers_0"] | {n: -rate * step[n] for n in ("a", "b")}}
    old, new = (p["params"]["layers_0"]["kernel"] for p in (params, adapter.merge(params, moved)))
    u, s, v = np.linalg.svd(np.asarray(gradient, np.float64), full_matrices=False)
    best = (u[:, :4] * s[:4]) @ v[:4]
    size = 48**0.5 / 4.0  # c^2
    np.testing.assert_allclose(np.asarray(new - old) / -rate, size * best, atol=2e-3)
    merged = DENSE.apply(adapter.merge(params, perturbed(delta)), TOKENS)
    chex.assert_trees_all_close(run(params, perturbed(delta), TOKENS), merged, atol=1e-3)
    with pytest.raises(WrongSite, match="takes 26 singular directions"):
        lora_ga(13, None, "layers_0").init(KEY, DENSE.apply, params, TOKENS)


def test_pissa_needs_values_and_a_rank_that_the_kernel_has() -> None:
    params = dense_params()
    with pytest.raises(WrongSite, match="not their shapes"):
        pissa(2, "layers_0").init(KEY, DENSE.apply, jax.eval_shape(lambda: params), TOKENS)
    with pytest.raises(WrongSite, match="takes 25 singular directions and which has 24"):
        pissa(25, "layers_0").init(KEY, DENSE.apply, params, TOKENS)


@pytest.mark.parametrize("form", [pytest.param("tt", marks=pytest.mark.slow), "tk"])
def test_fact_is_one_tensor_whose_outer_factors_all_layers_share(form: str) -> None:
    """Every block of 12 x 12 changes by u core v, in the order of the kernel's columns or rows."""
    vit, params = toy()
    params = perturbed(params, 0.1)
    adapter = fact(3, "blocks_0/(attn/qkv|fc1|fc2)", form, scale=0.5)
    start = init_delta(adapter, vit, params)
    np.testing.assert_array_equal(adapter.wrap(vit.apply)(params, start, IMAGE), vit.apply(params, IMAGE))
    delta = perturbed(start)
    merged = adapter.merge(params, delta)
    shared = delta["blocks_0"]
    for path, axis, number in (("attn/qkv", 1, 3), ("fc1", 1, 2), ("fc2", 0, 2)):
        site, old, new = delta[f"blocks_0/{path}"], params["params"]["blocks_0"], merged["params"]["blocks_0"]
        for key in path.split("/"):
            old, new = old[key], new[key]
        change = np.asarray(new["kernel"] - old["kernel"]) / 0.5
        cores = site["core"] if form == "tt" else np.einsum("ka,ars->krs", site["p"], shared["c_12"])
        assert len(cores) == number
        for core, found in zip(cores, np.split(change, number, axis), strict=True):
            np.testing.assert_allclose(found, shared["u_12"] @ core @ shared["v_12"], atol=1e-5)
    out = adapter.wrap(vit.apply)(params, delta, IMAGE)
    chex.assert_trees_all_close(out, vit.apply(merged, IMAGE), atol=1e-4)


@pytest.mark.parametrize("layout", ["fused", "head_major"])
def test_fact_of_slices_changes_q_and_v_where_the_layout_says(layout: str) -> None:
    net = nn.Sequential([nn.Sequential([nn.Dense(48)])])
    x = jax.random.normal(KEY, (5, 16))
    params = perturbed(net.init(KEY, x), 0.1)
    adapter = fact(2, "layers_0/layers_0", slices="qv", layout=layout, head_dim=4)
    delta = perturbed(adapter.init(KEY, net.apply, params, x))
    site, shared = delta["layers_0/layers_0"], delta["layers_0"]
    change = np.asarray(adapter.wrap(net.apply)(params, delta, x) - net.apply(params, x))
    for i, name in enumerate("qv"):
        expected = x @ shared["u_16"] @ site["core"][i] @ shared["v_16"]
        np.testing.assert_allclose(change[:, columns_of(layout, name)], expected, atol=1e-5)
    np.testing.assert_array_equal(change[:, columns_of(layout, "k")], 0)
    chex.assert_trees_all_close(
        net.apply(adapter.merge(params, delta), x), adapter.wrap(net.apply)(params, delta, x), atol=1e-5
    )


@pytest.mark.parametrize(
    "style", [*(pytest.param(s, marks=pytest.mark.slow) for s in ("remat", "scan")), "remat_scan"]
)
def test_shared_arrays_reach_layers_inside_scan_and_remat(style: str) -> None:
    vit, params = toy(style)
    adapter = fact(2, r"blocks(_0)?/(attn/qkv|fc1)")
    delta = perturbed(init_delta(adapter, vit, params))
    home = "blocks" if "scan" in style else "blocks_0"
    chex.assert_shape(delta[home]["u_12"], (12, 2))
    chex.assert_shape(delta[f"{home}/attn/qkv"]["core"], (2, 3, 2, 2) if "scan" in style else (3, 2, 2))
    run = adapter.wrap(vit.apply)

    @jax.jit
    def both(delta: dict) -> tuple:
        def loss(apply):
            return lambda d: (apply(d) ** 2).sum()

        wrapped = jax.value_and_grad(loss(lambda d: run(params, d, IMAGE)))(delta)
        merged = jax.value_and_grad(loss(lambda d: vit.apply(adapter.merge(params, d), IMAGE)))(delta)
        return wrapped, merged

    chex.assert_trees_all_close(*both(delta), rtol=1e-3, atol=1e-3)


def test_fact_refuses_what_has_no_square_blocks() -> None:
    net, x = nn.Sequential([nn.Sequential([nn.Dense(7)])]), jnp.ones((2, 5))
    with pytest.raises(WrongSite, match="5 x 7 has no square blocks"):
        fact(2, "layers_0/layers_0").init(KEY, net.apply, net.init(KEY, x), x)
    with pytest.raises(BadAdapterConfig, match="'tt' or 'tk'"):
        fact(2, "x", "cp")


def test_compacter_is_a_sum_of_kronecker_products() -> None:
    net = nn.Sequential([nn.Sequential([nn.Dense(8)])])
    x = jax.random.normal(KEY, (5, 6))
    params = perturbed(net.init(KEY, x), 0.1)
    adapter = compacter("layers_0/layers_0", width=4, n=2)
    start = adapter.init(KEY, net.apply, params, x)
    np.testing.assert_array_equal(adapter.wrap(net.apply)(params, start, x), net.apply(params, x))
    delta = perturbed(start)
    site, a = delta["layers_0/layers_0"], delta["layers_0"]["a"]
    down = sum(np.kron(a[i], np.outer(site["down_s"][i], site["down_t"][i])) for i in range(2))
    up = sum(np.kron(a[i], np.outer(site["up_s"][i], site["up_t"][i])) for i in range(2))
    assert (down.shape, up.shape) == ((8, 4), (4, 8))
    y = net.apply(params, x)
    hidden = jax.nn.gelu(y @ down + site["down_bias"], approximate=False)
    chex.assert_trees_all_close(
        adapter.wrap(net.apply)(params, delta, x), y + hidden @ up + site["up_bias"], atol=1e-5
    )
    with pytest.raises(NotMergeable, match="nonlinearity"):
        adapter.merge(params, delta)
    with pytest.raises(WrongSite, match="8 features are no multiple of n=3"):
        compacter("layers_0/layers_0", ratio=0.5, n=3).init(KEY, net.apply, params, x)


def test_conv_lora_without_experts_is_lora_and_with_one_a_convolution() -> None:
    net = nn.Sequential([nn.Dense(7)])
    x = jax.random.normal(KEY, (4, 6, 5))
    params = net.init(KEY, x)
    adapter = conv_lora(2, 4.0, "layers_0", experts=2)
    start = adapter.init(KEY, net.apply, params, x)
    np.testing.assert_array_equal(adapter.wrap(net.apply)(params, start, x), net.apply(params, x))
    delta = perturbed(start)
    site = delta["layers_0"]
    nothing = {"layers_0": site | {n: jnp.zeros_like(site[n]) for n in ("conv", "conv_bias")}}
    low_rank = {"layers_0": {"a": site["a"], "b": site["b"]}}
    plain = lora(2, 4.0, "layers_0").wrap(net.apply)(params, low_rank, x)
    chex.assert_trees_all_close(adapter.wrap(net.apply)(params, nothing, x), plain, atol=1e-5)
    # A gate that is sure of the first expert leaves its convolution at the size of the map.
    z = x @ site["a"]
    sure = site | {"gate": jnp.outer(jnp.sign(z.mean((0, 1))), jnp.array([1e4, -1e4]))}
    conv = nn.Conv(2, (3, 3))
    seen = conv.apply({"params": {"kernel": site["conv"][0], "bias": site["conv_bias"][0]}}, z)
    expected = net.apply(params, x) + 2.0 * (z + jax.nn.gelu(seen, approximate=False)) @ site["b"]
    found = adapter.wrap(net.apply)(params, {"layers_0": sure}, x)
    chex.assert_trees_all_close(found, expected, atol=1e-4)
    with pytest.raises(WrongSite, match="a Dense on a map"):
        adapter.init(KEY, net.apply, params, x[0])


def by_hand(net, params, site, x, shares, scale=2.0):
    """Conv-LoRA of two experts with these shares."""
    z = x @ site["a"]
    h, w, r = z.shape
    total = z
    for i, share in enumerate(shares):
        large = jax.image.resize(z, (h * (i + 1), w * (i + 1), r), "cubic")
        conv = nn.Conv(r, (3, 3))
        seen = conv.apply({"params": {"kernel": site["conv"][i], "bias": site["conv_bias"][i]}}, large)
        seen = jax.nn.gelu(seen, approximate=False)
        total = total + share * jax.image.resize(seen, (h, w, r), "cubic", antialias=False)
    return net.apply(params, x) + scale * total @ site["b"]


@pytest.mark.slow
def test_conv_lora_gives_a_map_to_its_best_experts_and_the_masks_train_the_gate() -> None:
    net = nn.Sequential([nn.Dense(7)])
    x = jax.random.normal(KEY, (4, 6, 5))
    params = net.init(KEY, x)
    adapter = conv_lora(2, 4.0, "layers_0", experts=3, top_k=1)
    assert is_random(adapter.config)
    assert not is_random(conv_lora(2, 4.0, "layers_0", experts=3).config)
    delta = perturbed(adapter.init(KEY, net.apply, params, x))
    assert delta["layers_0"]["noise"].shape == (2, 3)
    logits = (x @ delta["layers_0"]["a"]).mean((0, 1)) @ delta["layers_0"]["gate"]
    one = jax.nn.one_hot(jnp.argmax(logits), 3)
    adapted = adapter.wrap(net.apply)
    expected = by_hand(net, params, delta["layers_0"], x, one)
    chex.assert_trees_all_close(adapted(params, delta, x), expected, atol=1e-4)
    two = conv_lora(2, 4.0, "layers_0", experts=3, top_k=2).wrap(net.apply)
    kept = jax.nn.softmax(jnp.where(logits > logits.min(), logits, -jnp.inf))
    chex.assert_trees_all_close(
        two(params, delta, x), by_hand(net, params, delta["layers_0"], x, kept), atol=1e-4
    )
    # The gate's gradient is that of a mixture whose forward value is the one expert.
    found = jax.grad(lambda d: (adapted(params, d, x) ** 2).sum())(delta)["layers_0"]
    soft = jax.nn.softmax(logits)
    outer = jax.grad(lambda s: (by_hand(net, params, delta["layers_0"], x, s) ** 2).sum())(one)
    mean = (x @ delta["layers_0"]["a"]).mean((0, 1))
    jacobian = jnp.diag(soft) - jnp.outer(soft, soft)
    np.testing.assert_allclose(found["gate"], jnp.outer(mean, jacobian @ outer), rtol=1e-3, atol=1e-4)
    assert [bool(jnp.any(g)) for g in found["conv"]] == [bool(share) for share in one]


def test_conv_lora_explores_its_experts_in_training_alone() -> None:
    net = nn.Sequential([nn.Dense(7)])
    x = jax.random.normal(KEY, (4, 6, 5))
    params = net.init(KEY, x)
    adapter = conv_lora(2, 4.0, "layers_0", experts=3, top_k=1)
    start = adapter.init(KEY, net.apply, params, x)  # its gate is zero
    delta = {"layers_0": start["layers_0"] | {"b": jnp.ones((2, 7))}}
    adapted = jax.jit(adapter.wrap(net.apply))

    def experts(noise, keys=24):
        site = delta["layers_0"] | {"noise": noise, "gate": jnp.outer(jnp.sign(mean), jnp.array([4.0, 0, 0]))}
        out = [
            adapted(params, {"layers_0": site}, x, rngs={"dropout": jax.random.key(i)}) for i in range(keys)
        ]
        return len({round(float(o.sum()), 3) for o in out})

    mean = (x @ delta["layers_0"]["a"]).mean((0, 1))
    far = 100 * jnp.outer(jnp.sign(mean), jnp.ones(3)) / jnp.abs(mean).sum()
    assert experts(far) == 3  # a deviation of about 100
    assert experts(-far) == 1  # of 0.01
    np.testing.assert_array_equal(adapted(params, delta, x), adapted(params, delta, x))


@pytest.mark.parametrize("top_k", [0, 4])
def test_conv_lora_chooses_among_the_experts_it_has(top_k: int) -> None:
    with pytest.raises(BadAdapterConfig, match="top_k must be 1 to 3"):
        conv_lora(2, 4.0, "layers_0", experts=3, top_k=top_k)


def test_relu_is_another_bottleneck_than_gelu() -> None:
    params = dense_params()
    delta = perturbed(bottleneck("layers_0", width=3).init(KEY, DENSE.apply, params, TOKENS))
    y, site = DENSE.apply(params, TOKENS), delta["layers_0"]
    hidden = jax.nn.relu(y @ site["down"] + site["down_bias"])
    out = bottleneck("layers_0", width=3, activation="relu").wrap(DENSE.apply)(params, delta, TOKENS)
    chex.assert_trees_all_close(out, y + hidden @ site["up"] + site["up_bias"], atol=1e-5)
    with pytest.raises(BadAdapterConfig, match="'gelu' or 'relu'"):
        bottleneck("x", width=3, activation="tanh")


def test_dropout_drops_only_with_a_key_and_keeps_the_mean() -> None:
    params, adapter = dense_params(), lora(2, None, "layers_0", dropout=0.5)
    delta = perturbed(adapter.init(KEY, DENSE.apply, params, TOKENS))
    run = adapter.wrap(DENSE.apply)
    still = run(params, delta, TOKENS)
    np.testing.assert_array_equal(still, lora(2, None, "layers_0").wrap(DENSE.apply)(params, delta, TOKENS))

    def noisy(key):
        return run(params, delta, TOKENS, rngs={"dropout": key})

    many = jax.vmap(noisy)(jax.random.split(KEY, 4000))
    assert float(jnp.abs(many[0] - many[1]).max()) > 0.01
    chex.assert_trees_all_close(many.mean(0), still, atol=0.1)
    assert is_random(adapter.config)
    assert not is_random(lora(2, None, "x").config)
    for wrong in (1.0, -0.1):
        with pytest.raises(BadAdapterConfig, match="dropout must be"):
            lora(2, None, "x", dropout=wrong)


def test_dropout_reaches_layers_inside_a_scan() -> None:
    model, params = weights.load("vit-tiny-test", scan_blocks=True)
    adapted = adapt_model(lora(2, None, r"image_encoder/.*/attn/qkv", dropout=0.5), model)
    delta = perturbed(adapted.init(KEY, params))
    image = jax.random.normal(KEY, (32, 32, 3))

    @jax.jit
    def run(keys: jax.Array) -> tuple:
        noisy = jax.vmap(lambda key: adapted.encode(params, delta, image, rngs={"dropout": key}))
        return adapted.encode(params, delta, image), noisy(keys)

    still, dropped = run(jax.random.split(KEY))
    assert float(jnp.abs(dropped[0] - still).max()) > 1e-3
    assert float(jnp.abs(dropped[0] - dropped[1]).max()) > 1e-3


def test_a_rank_larger_than_the_layer_is_one_sentence() -> None:
    vit, params = toy()
    for adapter in (lora(13, None, ".*/qkv"), dora(13, None, ".*/qkv")):
        with pytest.raises(
            WrongSite, match="a rank of 13 is larger than the layer 'blocks_0/attn/qkv', which is 12"
        ):
            check_ranks(adapter.config, init_delta(adapter, vit, params))
    fits = lora(12, None, ".*/qkv")
    check_ranks(fits.config, init_delta(fits, vit, params))


def test_a_pattern_across_parts_of_the_model_is_refused() -> None:
    vit, params = toy()
    with pytest.raises(NoSuchSite):
        init_delta(fact(2, "nowhere"), vit, params)
    with pytest.raises(WrongSite, match="lie in no module together"):
        init_delta(compacter("blocks_0|head", width=4), vit, params)
