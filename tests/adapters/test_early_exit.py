"""Early exit: closed blocks pass their input on, the convolutions are those of a residual pair."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from medvfm_jax.adapters import BadAdapterConfig, NotMergeable, WrongSite, bind, from_config, to_config
from medvfm_jax.adapters.early_exit import block_exit, residual_convolutions

RNG = np.random.default_rng(0)
SIDE, DIM = 4, 3


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x + jnp.tanh(nn.Dense(DIM)(x))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(3):
            x = Block(name=f"blocks_{i}")(x)
        return nn.Dense(2, name="neck_0")(x)


ROOT, X = Encoder(), jnp.asarray(RNG.normal(size=(SIDE, SIDE, DIM)), jnp.float32)
PARAMS = ROOT.init(jax.random.key(0), X)
EXIT = block_exit(r"blocks_\d", 2)


def test_the_first_blocks_are_open_and_the_others_pass_their_input_on() -> None:
    delta = EXIT.init(jax.random.key(0), ROOT.apply, PARAMS, X)
    assert {name: site["open"].item() for name, site in delta.items()} == {
        "blocks_0": 1.0, "blocks_1": 1.0, "blocks_2": 0.0
    }  # fmt: skip
    x = X
    for i in range(2):
        x = Block().apply({"params": PARAMS["params"][f"blocks_{i}"]}, x)
    neck = PARAMS["params"]["neck_0"]
    run = EXIT.wrap(ROOT.apply)
    np.testing.assert_allclose(run(PARAMS, delta, X), x @ neck["kernel"] + neck["bias"], rtol=1e-5, atol=1e-6)
    of_params, of_delta = jax.grad(lambda *inputs: run(*inputs, X).sum(), argnums=(0, 1))(PARAMS, delta)
    reached = [bool(np.any(of_params["params"][f"blocks_{i}"]["Dense_0"]["kernel"])) for i in range(3)]
    assert reached == [True, True, False]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_delta))


def test_the_projection_is_a_residual_pair_of_three_by_three_convolutions() -> None:
    adapter = residual_convolutions("neck_0")
    delta = adapter.init(jax.random.key(0), ROOT.apply, PARAMS, X)
    run = adapter.wrap(ROOT.apply)
    np.testing.assert_array_equal(run(PARAMS, delta, X), ROOT.apply(PARAMS, X))
    site = delta["neck_0"] | {"scale": jnp.full(DIM, 0.5), "shift": jnp.full(DIM, 0.1)}
    seen: list[Array] = []

    def keep(call: object, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Array:
        seen.extend(args if context.module.name == "neck_0" else ())
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        ROOT.apply(PARAMS, X)
    (tokens,) = map(np.asarray, seen)
    hidden = np.maximum(normed(convolved(tokens, site["first"])), 0)
    want = tokens + 0.5 * normed(convolved(hidden, site["second"])) + 0.1
    neck = PARAMS["params"]["neck_0"]
    found = bind(run, {"neck_0": site})(PARAMS, X)
    np.testing.assert_allclose(found, want @ neck["kernel"] + neck["bias"], rtol=1e-4, atol=1e-5)


def convolved(x: np.ndarray, kernel: Array) -> np.ndarray:
    """3 x 3, zeros around x (h, w, d)."""
    padded = np.pad(x, [(1, 1), (1, 1), (0, 0)])
    taps = [(i, j) for i in range(3) for j in range(3)]
    return sum(padded[i : i + SIDE, j : j + SIDE] @ np.asarray(kernel)[i, j] for i, j in taps)


def normed(x: np.ndarray) -> np.ndarray:
    return (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)


def test_what_does_not_fit_is_refused() -> None:
    key = jax.random.key(0)
    with pytest.raises(BadAdapterConfig, match="last must be at least 1"):
        block_exit("blocks_0", 0)
    with pytest.raises(WrongSite, match="turns"):
        block_exit("neck_0", 1).init(key, ROOT.apply, PARAMS, X)
    with pytest.raises(WrongSite, match="number of a block"):
        block_exit("", 1).init(key, ROOT.apply, PARAMS, X)
    with pytest.raises(WrongSite, match="no map"):
        residual_convolutions("neck_0").init(key, ROOT.apply, PARAMS, X[0])
    delta = EXIT.init(key, ROOT.apply, PARAMS, X)
    with pytest.raises(NotMergeable):
        EXIT.merge(PARAMS, delta)
    for adapter in (EXIT, residual_convolutions("neck_0")):
        assert to_config(from_config(to_config(adapter))) == to_config(adapter)
