"""FedPIA: nothing depends on the order of a client's neurons, and with nothing to permute it is FedAvg."""

import chex
import jax
import numpy as np
import optax
import pytest

from medvfm_jax.federated import BadFederation
from medvfm_jax.federated.algorithms import fedavg
from medvfm_jax.federated.core.local_training import gradient_of
from medvfm_jax.federated.systems.fedpia import fedpia
from tests.federated.systems.tiny import case, rounds

pytestmark = pytest.mark.usefixtures("x64")
SGD = optax.sgd(0.05)
SITES = {"kind": "bottleneck", "at": "image_encoder/.*/attn", "width": 3}
CONFIG = {"kind": "chain", "parts": {"tuned": {"kind": "tune", "at": ".*/fc2/bias"}, "space": SITES}}


@pytest.mark.slow
def test_blend_one_with_aligned_adapters_is_fedavg() -> None:
    """Small steps keep every neuron nearest to itself."""
    start = case(CONFIG)
    server, _, metrics = rounds(fedpia(gradient_of(start.loss), SGD, blend=1.0), start.delta)
    want = rounds(fedavg(gradient_of(start.loss), SGD), start.delta)[0]
    chex.assert_trees_all_close(server.delta, want.delta, rtol=1e-10, atol=1e-13)
    before, after = (float(metrics.extra[f"distance_{w}_alignment"]) for w in ("before", "after"))
    assert before == pytest.approx(after, rel=1e-12)
    assert after > 0


@pytest.mark.slow
def test_the_order_of_a_clients_neurons_does_not_matter() -> None:
    """Permute what one client keeps: it finds the global adapter in its order, and the server undoes that."""
    start = case(CONFIG)
    algorithm = fedpia(gradient_of(start.loss), SGD)
    server, clients, _ = rounds(algorithm, start.delta, 1)
    site = "image_encoder/blocks_1/attn"
    order = np.array([2, 0, 1])
    own = jax.tree.map(np.array, clients.state)
    arrays = own["space"][site]
    arrays["down"][1] = arrays["down"][1][:, order]
    arrays["down_bias"][1] = arrays["down_bias"][1][order]
    arrays["up"][1] = arrays["up"][1][order]
    want = rounds(algorithm, start.delta, 1, state=(server, clients))
    got = rounds(algorithm, start.delta, 1, state=(server, clients._replace(state=own)))
    chex.assert_trees_all_close(got[0].delta, want[0].delta, rtol=1e-10, atol=1e-13)
    kept = got[1].state["space"][site]["up"][1], want[1].state["space"][site]["up"][1]
    np.testing.assert_allclose(kept[0], kept[1][order], rtol=1e-10, atol=1e-13)
    assert got[2].extra["distance_after_alignment"] < 0.5 * got[2].extra["distance_before_alignment"]


def test_a_client_keeps_its_adapter_and_blends_it_with_the_global_one() -> None:
    """Without learning, own <- own + blend (global - own); an absent client keeps its own as it is."""
    start, rng = case(CONFIG), np.random.default_rng(0)
    still = fedpia(gradient_of(start.loss), optax.sgd(0.0), blend=0.25)
    server, clients, _ = rounds(still, start.delta, 0)
    clients = clients._replace(
        state=jax.tree.map(lambda x: x + 1e-3 * rng.normal(size=x.shape), clients.state)
    )
    present = np.arange(4) != 2
    _, after, _ = rounds(still, start.delta, 1, present, state=(server, clients))
    assert after.state["tuned"]["image_encoder/blocks_0/mlp/fc2"]["bias"] is None
    for site, arrays in after.state["space"].items():
        for name in ("down", "down_bias", "up"):
            before, shared = clients.state["space"][site][name], server.delta["space"][site][name]
            blended = 0.75 * before + 0.25 * shared
            want = np.where(present.reshape(-1, *[1] * shared.ndim), blended, before)
            np.testing.assert_allclose(arrays[name], want, rtol=1e-10, atol=1e-14)


def test_bad_options_and_deltas_are_refused() -> None:
    start = case({"kind": "tune", "at": ".*/fc2/bias"})
    with pytest.raises(BadFederation, match="nothing to permute"):
        fedpia(gradient_of(start.loss), SGD).init_server(start.delta)
    for options in ({"blend": 1.1}, {"iterations": 0}):
        with pytest.raises(BadFederation, match="blend must be in"):
            fedpia(gradient_of(start.loss), SGD, **options)
