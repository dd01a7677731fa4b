"""F3OCUS: the kernel of a linear model in closed form, the choice of layers against brute force, one round."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medvfm_jax.federated import BadFederation, Cohort, Server
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.systems.f3ocus import (
    choose_layers,
    f3ocus,
    layer_importance,
    most_important,
    objective,
)
from medvfm_jax.federated.systems.layers import layer_of, layers_of
from tests.federated.systems.tiny import N, case, rounds

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
CONFIG = {"kind": "bottleneck", "at": "image_encoder/.*/(attn|mlp)", "width": 2}


def test_layers_are_blocks_whatever_adapters_they_hold() -> None:
    assert layer_of("lora/image_encoder/blocks_3/attn/qkv/a_q") == "image_encoder/blocks_3"
    assert layer_of("image_encoder/layers_1/blocks_0/mlp/down") == "image_encoder/layers_1/blocks_0"
    assert (
        layer_of("decoder/mask_decoder/transformer/layers_1/norm1/scale")
        == "mask_decoder/transformer/layers_1"
    )
    assert layer_of("decoder/mask_decoder/iou_token/embedding") == "mask_decoder/iou_token"
    names = [f"part/image_encoder/blocks_{i}/attn" for i in (10, 9, 0)]
    delta = {name: {"a": 0.0} for name in names}
    assert layers_of(delta) == [f"image_encoder/blocks_{i}" for i in (0, 9, 10)]


def test_importance_of_a_linear_model() -> None:
    """f(x) = x_1 w_1 + x_2 w_2: the kernel of layer l is 4 e e' * x_l x_l', e the errors of the images."""
    x, y = RNG.normal(size=(5, 2, 3)), RNG.normal(size=5)
    w = RNG.normal(size=(2, 3))
    scale = np.array([1.0, 4.0])  # the second layer's inputs are larger
    x = x * scale[:, None]
    delta = {"blocks_0": {"w": jnp.asarray(w[0])}, "blocks_1": {"w": jnp.asarray(w[1])}}

    def loss(delta: dict, batch: tuple, key: jax.Array) -> jax.Array:
        del key
        x, y = batch
        out = x[:, 0] @ delta["blocks_0"]["w"] + x[:, 1] @ delta["blocks_1"]["w"]
        return ((out - y) ** 2).mean()

    errors = np.einsum("nld,ld->n", x, w) - y
    rows = 2 * errors[:, None, None] * x
    values = np.array([np.linalg.eigvalsh(rows[:, i] @ rows[:, i].T)[-1] for i in range(2)])
    got = layer_importance(gradient_of(loss), delta, (jnp.asarray(x), jnp.asarray(y)), jax.random.key(0))
    np.testing.assert_allclose(got, values / values.sum(), rtol=1e-10)
    assert most_important(got, 1).tolist() == [False, True]


@pytest.mark.slow
def test_without_diversity_everybody_keeps_the_most_important_layers() -> None:
    importance = jnp.asarray(RNG.dirichlet(np.ones(6), size=5))
    chosen = choose_layers(importance, 2, 0.0)
    np.testing.assert_array_equal(chosen, most_important(importance, 2))
    best = np.sort(np.asarray(importance), axis=1)[:, -2:].sum()
    assert float(objective(importance, chosen, 0.0)) == pytest.approx(best)


def test_with_much_diversity_layers_are_used_evenly() -> None:
    importance = jnp.asarray([[0.7, 0.2, 0.1]] * 5)
    counts = np.asarray(choose_layers(importance, 1, 100.0)).sum(0)
    assert sorted(counts) == [1, 2, 2]
    assert counts[0] == 2


@pytest.mark.parametrize("diversity", [0.05, 0.5])
def test_no_client_alone_can_better_the_choice_and_it_is_mostly_the_best_of_all(diversity: float) -> None:
    rng, best_of_all = np.random.default_rng(0), 0
    every = [np.eye(3, dtype=bool)[list(c)] for c in itertools.product(range(3), repeat=3)]
    for _ in range(10):
        importance = jnp.asarray(rng.dirichlet(np.ones(3), size=3))
        chosen = np.asarray(choose_layers(importance, 1, diversity))
        reached = float(objective(importance, jnp.asarray(chosen), diversity))
        others = {tuple(c.argmax(1)): float(objective(importance, jnp.asarray(c), diversity)) for c in every}
        mine = chosen.argmax(1)
        assert all(
            value <= reached + 1e-6
            for layers, value in others.items()
            if np.count_nonzero(np.array(layers) != mine) <= 1
        )
        best_of_all += max(others.values()) <= reached + 1e-6
    assert best_of_all >= 8


def test_clients_that_never_reported_are_left_out() -> None:
    importance = jnp.asarray([[0.0, 0.0, 0.0], [0.5, 0.3, 0.2]])
    assert choose_layers(importance, 2, 1.0).sum(1).tolist() == [0, 2]


@pytest.mark.slow
def test_a_layer_becomes_the_weighted_mean_over_those_who_trained_it() -> None:
    """Three clients came: layer 0 was trained by two of them, layer 1 by the third; the fourth is absent."""
    delta = {"blocks_0": {"w": jnp.zeros(2)}, "blocks_1": {"w": jnp.ones(2)}}
    algorithm = f3ocus(gradient_of(lambda d, b, k: 0.0), optax.sgd(0.1), clients=9, layers=1)
    start, state = algorithm.init_server(delta)
    server = Server(start, jnp.int32(0), state, jnp.asarray(jnp.inf))
    trained = np.array([[1, 0], [1, 0], [0, 1], [0, 0]])
    weights = jnp.asarray([1.0, 3.0, 2.0, 0.0])
    change = RNG.normal(size=(4, 2, 2)) * trained[..., None]
    uploads = {f"blocks_{i}": {"w": jnp.asarray(change[:, i])} for i in range(2)}
    importance = jnp.asarray([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.0, 0.0]])
    public = (jnp.asarray([7.0, 5.0, 3.0, 0.0]), importance, jnp.asarray(trained, float))
    cohort = Cohort(weights, weights > 0, jnp.ones(()), public, jax.random.key(0))
    new = algorithm.aggregate(server, uploads, cohort)
    np.testing.assert_allclose(new.delta["blocks_0"]["w"], (change[0, 0] + 3 * change[1, 0]) / 4, rtol=1e-12)
    np.testing.assert_allclose(new.delta["blocks_1"]["w"], 1 + change[2, 1], rtol=1e-12)
    np.testing.assert_allclose(new.state.importance[jnp.array([7, 5, 3, 0])], importance)


@pytest.mark.slow
def test_a_round_moves_chosen_layers_only() -> None:
    start = case(CONFIG)
    layers = layers_of(start.delta)
    present = np.arange(N) != 1
    algorithm = f3ocus(gradient_of(start.loss), optax.sgd(0.1), N, 1)
    server, clients, metrics = rounds(algorithm, start.delta, 1, present)
    known = server.state.importance.any(1)
    assert known.tolist() == present.tolist()
    np.testing.assert_allclose(server.state.importance.sum(1), present)
    chosen = np.asarray(most_important(jnp.asarray(server.state.importance), 1)) & present[:, None]
    trained_by = dict(zip(layers, chosen.sum(0), strict=True))
    assert metrics.extra["clients_per_layer_max"] == max(trained_by.values())
    for name, arrays in server.delta.items():
        change = np.abs(arrays["up"] - start.delta[name]["up"]).max()
        assert (change > 0) == (trained_by[layer_of(f"{name}/up")] > 0)

    # alone, a client moves one layer
    alone = np.arange(N) == 2
    single, *_ = rounds(algorithm, start.delta, 1, alone)
    assert sum(np.any(a["up"]) for a in single.delta.values()) == 2  # attn and mlp of one block
    assert clients.state.tolist() == list(range(N))


def test_bad_options_are_refused() -> None:
    start = case(CONFIG)
    with pytest.raises(BadFederation, match="the delta has 2 layers, so 3 cannot be chosen"):
        f3ocus(gradient_of(start.loss), optax.sgd(0.1), N, 3).init_server(start.delta)
    with pytest.raises(BadFederation, match="at least 1"):
        f3ocus(gradient_of(start.loss), optax.sgd(0.1), N, 0)
