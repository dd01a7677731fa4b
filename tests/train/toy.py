"""A least-squares problem with a known gradient and a loader whose position can be stored."""

import jax
import jax.numpy as jnp
import numpy as np

PARAMS = {"params": {"w": jnp.array([[1.0, -2.0], [0.5, 3.0], [0.0, 1.0]])}}


def delta():
    return {"w": {"kernel": jnp.zeros((3, 2))}, "scale": {"b": jnp.zeros(2)}}


def loss(params, delta, batch, key):
    """Mean squared error of x @ (w + dw) + b, a little noise from the key, weighted by batch["weight"]."""
    y = batch["x"] @ (params["params"]["w"] + delta["w"]["kernel"]) + delta["scale"]["b"]
    y = y + 1e-3 * jax.random.normal(key, y.shape)
    error = ((y - batch["y"]) ** 2).sum(-1)
    weight = batch["weight"].sum()
    value = (error * batch["weight"]).sum() / weight
    return value, {"weight": weight, "error": value}


def quiet_loss(params, delta, batch, key):
    return loss(params, delta, batch, key) if key is None else _without_noise(params, delta, batch)


def _without_noise(params, delta, batch):
    y = batch["x"] @ (params["params"]["w"] + delta["w"]["kernel"]) + delta["scale"]["b"]
    error = ((y - batch["y"]) ** 2).sum(-1)
    weight = batch["weight"].sum()
    return (error * batch["weight"]).sum() / weight, {"weight": weight}


def batch(index, size=4, nan=False):
    rng = np.random.default_rng(index)
    x, y = rng.normal(size=(size, 3)), rng.normal(size=(size, 2))
    weight = rng.uniform(0.5, 2.0, size)
    record = {"x": x, "y": y * np.nan if nan else y, "weight": weight}
    return {name: array.astype(np.float32) for name, array in record.items()}


class Loader:
    """Batches 0, 1, 2, ...; the position is the next index."""

    def __init__(self, length=None, nan_at=None):
        self.position, self.length, self.nan_at = 0, length, nan_at

    def __next__(self):
        if self.position == self.length:
            raise StopIteration
        self.position += 1
        return batch(self.position - 1, nan=self.position - 1 == self.nan_at)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]
