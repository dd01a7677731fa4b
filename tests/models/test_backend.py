"""Which device initial numbers are drawn on."""

import jax
import jax.numpy as jnp
import pytest

from medvfm_jax.models import backend
from medvfm_jax.train.base_model import load_base


@pytest.mark.slow
def test_the_numbers_of_a_network_from_scratch_are_drawn_on_the_host_whatever_the_default():
    """Here the second of eight CPU devices stands for an accelerator."""
    host, other = jax.local_devices(backend="cpu")[:2]
    with jax.default_device(other):
        assert jnp.zeros(()).device == other
        with backend.on_host():
            assert jnp.zeros(()).device == host
        params = load_base("missformer-tiny-test", classes=2, seed=0, dtype="float32").params
    assert {leaf.device for leaf in jax.tree.leaves(params)} == {host}


def test_without_a_host_the_default_device_draws(monkeypatch):
    def none(backend):
        raise RuntimeError("Unknown backend cpu")

    other = jax.local_devices(backend="cpu")[1]
    monkeypatch.setattr(backend.jax, "local_devices", none)
    with jax.default_device(other), backend.on_host():
        assert jnp.zeros(()).device == other


def test_an_error_inside_comes_through():
    with pytest.raises(RuntimeError, match="mine"), backend.on_host():
        raise RuntimeError("mine")
