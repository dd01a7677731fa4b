"""A bank of embeddings: the cache's bits, one row per example, on the device or in a mapped file."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from medvfm_jax.data.examples import Example
from medvfm_jax.federated.core.backends import client_map, place
from medvfm_jax.parallel.mesh import make_mesh
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train import embedding_bank
from medvfm_jax.train.embedding_bank import NoRoom, fill_bank, free_bytes, loss_from_bank, take
from medvfm_jax.train.embedding_cache import EmbeddingCache
from medvfm_jax.types import Batch

EXAMPLES = [Example(f"case#{i}", "case", i) for i in range(5)]
IMAGES = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)


def image(example):
    return IMAGES[example.index]


def encode(image):
    return np.tanh(image.sum(-1, keepdims=True)) * np.arange(1, 3, dtype=np.float32) / 3


def bank_of(tmp_path, dtype="float32", **room):
    cache = EmbeddingCache(encode, "test")
    return fill_bank([*EXAMPLES, EXAMPLES[2]], image, cache, dtype, tmp_path, **room), cache


@pytest.mark.parametrize("room", [None, 0], ids=["device", "file"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_those_of_the_encoder_rounded_once(tmp_path, dtype, room):
    bank, cache = bank_of(tmp_path, dtype, room=room)
    assert cache.encoded == 5  # the sixth is the third again
    assert not cache._memory
    assert not list(tmp_path.iterdir())  # a mapped file has no name
    batch = Batch(np.stack([bank.image(e) for e in EXAMPLES[::-1]]), None, None, np.ones(5, np.float32))
    if room is None:
        assert batch.image.dtype == np.int32
        batch = take(bank.array, batch, bank.dtype)
    wanted = np.stack([encode(x) for x in IMAGES[::-1]])
    if dtype == "bfloat16":
        wanted = wanted.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert batch.image.dtype == np.float32
    np.testing.assert_array_equal(batch.image, wanted)
    assert ("device: batches carry row numbers" in bank.describe()) == (room is None)
    size = 5 * 4 * 4 * 2 * (4 if dtype == "float32" else 2)
    assert (bank.array if room is None else bank.mapped).nbytes == size


def test_what_just_fits_stays_on_the_device(tmp_path):
    size = 5 * 4 * 4 * 2 * 4
    assert bank_of(tmp_path, room=size)[0].mapped is None
    assert bank_of(tmp_path, room=size - 1)[0].array is None
    assert free_bytes() > 1 << 20


def test_neither_device_nor_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_bank, "DISK_RESERVE", 1 << 60)
    with pytest.raises(NoRoom, match=r"fit neither on the device nor below .* bfloat16"):
        bank_of(tmp_path, room=0)
    with pytest.raises(NoRoom, match="no example to encode"):
        fill_bank([], image, EmbeddingCache(encode, "test"), "float32", tmp_path)


def test_a_loss_from_the_bank_is_the_loss_of_its_embeddings(tmp_path):
    bank, _ = bank_of(tmp_path)

    def loss(params, delta, batch, key):
        assert set(params) == {"params"}
        return (params["params"] * delta * batch.image).sum(), {}

    params, delta = {"params": jnp.float32(2)}, jnp.float32(3)
    rows = Batch(jnp.array([4, 0, 4]), None, None, jnp.ones(3))
    given = {**params, embedding_bank.BANK: bank.array}
    found, slope = jax.value_and_grad(lambda d: loss_from_bank(loss, bank.dtype)(given, d, rows, None)[0])(
        delta
    )
    total = sum(encode(IMAGES[i]).sum() for i in (4, 0, 4))
    assert float(found) == pytest.approx(6 * total, rel=1e-5)
    assert float(slope) == pytest.approx(2 * total, rel=1e-5)


def test_the_format_of_what_is_not_held_is_refused():
    with pytest.raises(BadConfig, match="add --embeddings device"):
        AdaptConfig(data="x", embeddings_dtype="bfloat16")


def test_clients_divided_over_a_mesh_look_up_their_rows():
    mesh = make_mesh({"clients": 4}, jax.devices()[:4])
    array, rows = jnp.arange(12.0).reshape(6, 2), jnp.array([[1, 2], [3, 4], [0, 5], [2, 2]])

    def looked_up(array, rows):
        batches = Batch(rows, None, None, jnp.ones(rows.shape))
        one = lambda shared, batch: ((), take(array, batch, array.dtype).image)  # noqa: E731
        return client_map("shard_map", mesh)(one, (), batches)[1]

    found = jax.jit(looked_up)(place(array, mesh), rows)
    np.testing.assert_array_equal(found, np.asarray(array)[rows])
