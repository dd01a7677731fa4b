import io
import os

import jax
import numpy as np
import pytest

from medvfm_jax.settings.groups import ModelConfig
from medvfm_jax.train import embedding_cache
from medvfm_jax.train.embedding_cache import EmbeddingCache, embed, encoder_settings, make_cache
from medvfm_jax.train.loop import MappedLoader
from medvfm_jax.types import Batch

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 6, 6, 3)).astype(np.float32)


@jax.jit
def encode(image):
    return image.sum(-1, keepdims=True) * 2


SIZE = 6 * 6 * 4


def test_each_image_is_encoded_once():
    cache = EmbeddingCache(encode, "base")
    for _ in range(3):
        for image in IMAGES:
            np.testing.assert_array_equal(cache(image), encode(image))
    assert cache.encoded == 4
    cache(IMAGES[0][:, ::-1])  # another image; its strides differ, its content is what counts
    cache(IMAGES[0].copy())
    assert cache.encoded == 5


@pytest.mark.parametrize("limit", [0, 2 * SIZE])
def test_what_does_not_fit_into_memory_goes_to_disk_and_outlives_the_process(tmp_path, limit, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    cache = EmbeddingCache(encode, "base", tmp_path, limit)
    expected = [np.asarray(cache(image)) for image in IMAGES]
    on_disk = len(list(tmp_path.rglob("*.npy")))
    assert on_disk == 4 - limit // SIZE
    again = EmbeddingCache(encode, "base", tmp_path, limit)
    for image, embedding in zip(IMAGES, expected, strict=True):
        np.testing.assert_array_equal(again(image), embedding)
    assert again.encoded == 4 - on_disk
    other = EmbeddingCache(encode, "other weights", tmp_path, limit)
    other(IMAGES[3])
    assert other.encoded == 1


def test_a_full_disk_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 1 << 60)
    cache = EmbeddingCache(encode, "base", tmp_path, 0)
    for _ in range(2):
        np.testing.assert_array_equal(cache(IMAGES[0]), encode(IMAGES[0]))
    assert cache.encoded == 2


def test_a_damaged_file_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    EmbeddingCache(encode, "base", tmp_path, 0)(IMAGES[0])
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(path.read_bytes()[:-10])
    cache = EmbeddingCache(encode, "base", tmp_path, 0)
    np.testing.assert_array_equal(cache(IMAGES[0]), encode(IMAGES[0]))
    assert cache.encoded == 1


def flipped(data, k):
    return data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :]


def test_every_flipped_bit_and_every_cut_is_noticed_counted_and_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    whole = EmbeddingCache(encode, "base", tmp_path, 0)
    expected = whole(IMAGES[0])
    assert whole.describe_damage() is None
    (path,) = tmp_path.rglob("*.npy")
    good = path.read_bytes()
    numbers = good[: -embedding_cache._DIGEST]
    damages = [flipped(good, k) for k in range(0, len(good), 5)]  # magic, header, numbers, digest
    damages += [good[:k] for k in (0, 1, 100, len(numbers), len(good) - 1)] + [
        good + b"x",
        numbers + bytes(32),
    ]
    assert np.load(path).tobytes() == expected.tobytes()  # other programs read it as it is
    cache = EmbeddingCache(encode, "base", tmp_path, 0)
    for count, damage in enumerate(damages, 1):
        path.write_bytes(damage)
        np.testing.assert_array_equal(cache(IMAGES[0]), expected)
        assert (cache.damaged, cache.encoded) == (count, count)
        assert path.read_bytes() == good
    assert cache.describe_damage().startswith(f"{len(damages)} embeddings in {path.parent} had been damaged")


def test_an_embedding_of_another_image_is_noticed(tmp_path, monkeypatch):
    """Files that were exchanged: each is whole, and belongs to the other key."""
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    cache = EmbeddingCache(encode, "base", tmp_path, 0)
    for image in IMAGES[:2]:
        cache(image)
    a, b = tmp_path.rglob("*.npy")
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    again = EmbeddingCache(encode, "base", tmp_path, 0)
    for image in IMAGES[:2]:
        np.testing.assert_array_equal(again(image), encode(image))
    assert (again.damaged, again.encoded) == (2, 2)


def test_a_folder_where_an_embedding_belongs_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    EmbeddingCache(encode, "base", tmp_path, 0)(IMAGES[0])
    (path,) = tmp_path.rglob("*.npy")
    path.unlink()
    path.mkdir()
    cache = EmbeddingCache(encode, "base", tmp_path, 0)
    np.testing.assert_array_equal(cache(IMAGES[0]), encode(IMAGES[0]))
    assert (cache.damaged, cache.encoded) == (1, 1)


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    cache = EmbeddingCache(encode, "base", tmp_path, 0)
    cache(IMAGES[0])
    (path,) = tmp_path.rglob("*.npy")
    old, new = path.with_name("a.1.tmp"), path.with_name("b.2.tmp")
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (0, 0))
    EmbeddingCache(encode, "base", tmp_path, 0)(IMAGES[1])
    assert (old.exists(), new.exists()) == (False, True)  # the second may belong to a process that is at work


def test_tiers(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    for tier, files in [("memory", 0), ("auto", 0), ("disk", 1)]:
        make_cache(encode, tier, tier, tmp_path)(IMAGES[0])
        assert len(list(tmp_path.rglob("*.npy"))) == files


def test_a_cached_loader_changes_the_images_only():
    class Inner:
        def __next__(self):
            return Batch(IMAGES[:2], None, "target", "weight")

        def get_state(self):
            return "here"

        def set_state(self, state):
            self.state = state

    inner = Inner()
    cache = EmbeddingCache(encode, "base")
    loader = MappedLoader(inner, lambda batch: embed(batch, cache))
    batch = next(loader)
    assert batch[1:] == (None, "target", "weight", None)
    np.testing.assert_array_equal(batch.image, np.stack([encode(i) for i in IMAGES[:2]]))
    loader.set_state("there")
    assert (loader.get_state(), inner.state) == ("here", "there")


def test_a_whole_file_with_an_array_of_another_shape_or_type_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    expected = EmbeddingCache(encode, "base", tmp_path, 0)(IMAGES[0])
    (path,) = tmp_path.rglob("*.npy")
    cache = EmbeddingCache(encode, "base", tmp_path, 0)
    for count, wrong in enumerate((np.float32(3), expected[..., 0], expected.astype(np.float64)), 1):
        buffer = io.BytesIO()
        np.save(buffer, wrong)
        path.write_bytes(buffer.getvalue() + embedding_cache._digest(path.stem, buffer.getvalue()))
        np.testing.assert_array_equal(cache(IMAGES[0]), expected)
        assert cache.damaged == count


def test_a_pipe_or_a_file_in_the_place_of_the_folder_costs_time_only_and_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "DISK_RESERVE", 0)
    expected = EmbeddingCache(encode, "base", tmp_path / "a", 0)(IMAGES[0])
    (path,) = tmp_path.rglob("*.npy")
    path.unlink()
    os.mkfifo(path)
    np.testing.assert_array_equal(EmbeddingCache(encode, "base", tmp_path / "a", 0)(IMAGES[0]), expected)
    (tmp_path / "b").write_text("a file")
    cache = EmbeddingCache(encode, "base", tmp_path / "b", 0)
    for _ in range(2):
        np.testing.assert_array_equal(cache(IMAGES[0]), expected)
    assert cache.encoded == 2
    assert cache.describe_damage().startswith("embeddings could not be kept in ")


def test_embeddings_of_a_changed_encoder_are_not_those_of_the_model():
    config = ModelConfig(model="lite-medsam")
    plain = encoder_settings("abc", config, None)
    assert plain == "abc lite-medsam float32"
    assert encoder_settings("abc", config, {"kind": "prompt_free", "classes": 3}) == plain
    auto = encoder_settings("abc", config, {"kind": "auto_sam", "classes": 3, "seed": 1})
    assert auto == encoder_settings("abc", config, {"kind": "auto_sam", "classes": 2, "seed": 0}) != plain
    assert encoder_settings("abc", config, {"kind": "desam", "seed": 0}) not in (plain, auto)


def test_embeddings_of_another_runtime_are_not_those_of_jax(tmp_path):
    config = ModelConfig(model="sam-tiny-test")
    settings = [encoder_settings("weights", config, None, runtime) for runtime in ("", "onnxruntime 1.0 abc")]
    caches = [make_cache(encode, words, "disk", tmp_path) for words in settings]
    for cache in caches:
        cache(IMAGES[0])
    assert [cache.encoded for cache in caches] == [1, 1]


def test_what_cannot_be_traced_says_what_it_is_like(tmp_path):
    def outside(image):
        assert isinstance(image, np.ndarray)  # a tracer is none
        return np.asarray(encode(image))

    for encoded in (1, 0):
        cache = make_cache(outside, "outside", "disk", tmp_path, like=encode)
        np.testing.assert_array_equal(cache(IMAGES[0]), encode(IMAGES[0]))
        assert (cache.encoded, cache.damaged) == (encoded, 0)
