"""Features lie where the picture lies; shares of classes; supports that show too little."""

import numpy as np
import pytest

from medvfm_jax import weights
from medvfm_jax.data import make_phantom_dataset, open_dataset
from medvfm_jax.few_shot import BadSupport, DenseEncoder, encode_support
from medvfm_jax.few_shot.dense_features import class_shares, load_encoder, pictures_of
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.dense_encoder import on_picture
from medvfm_jax.types import IGNORE


@pytest.fixture(scope="module")
def encoder():
    return DenseEncoder(*weights.load("sam-tiny-test"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return open_dataset(make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 3, size=32))


def test_a_wide_picture_fills_the_upper_half_of_the_grid(encoder):
    features, frame = encoder(np.zeros((16, 32, 3), np.uint8))
    assert features.shape == (4, 4, 32)
    np.testing.assert_array_equal(on_picture(frame), [[True] * 4] * 2 + [[False] * 4] * 2)
    np.testing.assert_allclose(
        encoder.mean(np.zeros((16, 32, 3), np.uint8)), features[:2].mean((0, 1)), rtol=1e-5
    )


def test_shares_of_classes(encoder):
    _, frame = encoder(np.zeros((16, 32, 3), np.uint8))
    label = np.zeros((16, 32), np.int32)
    label[:8, :4] = 1  # half of the first place
    label[8:, 8:] = IGNORE
    shares = class_shares(frame, label, 2)
    assert shares.shape == (2, 4, 4)
    assert shares[1, 0, 0] == shares[0, 0, 0] == 0.5
    assert shares[1].sum() == 0.5
    np.testing.assert_array_equal(shares.sum(0)[:2], [[1, 1, 1, 1], [1, 0, 0, 0]])
    np.testing.assert_array_equal(shares.sum(0)[2:], 0)


def test_a_support_of_pictures(encoder, cells):
    names = sorted(cells.by_id)[:2]
    support = encode_support(encoder, cells, names)
    assert support.features.shape == (2, 4, 4, 32)
    assert support.shares.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(support.shares.sum(1), 1, atol=1e-5)
    assert support.cases == tuple(names)
    for share, label in zip(support.shares, support.labels, strict=True):
        np.testing.assert_allclose(share[1].mean(), (label == 1).mean(), atol=1e-5)


def test_of_a_volume_labelled_slices_evenly(tmp_path):
    volumes = open_dataset(make_phantom_dataset(tmp_path / "volumes", "volumes", 1, size=16))
    all_of_them, some = (pictures_of(volumes, volumes.cases[0], n) for n in (100, 2))
    assert all((label > 0).any() for _, label in all_of_them)
    assert len(some) == 2
    n = len(all_of_them)
    for ours, theirs in zip(some, (all_of_them[n // 4], all_of_them[3 * n // 4]), strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])
    assert some[0][0].shape[:2] == some[0][1].shape


def test_a_class_that_is_nowhere_is_named(encoder, cells, monkeypatch):
    monkeypatch.setattr(
        "medvfm_jax.few_shot.dense_features.pictures_of",
        lambda *_: [(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.int32))],
    )
    with pytest.raises(BadSupport, match="shows nothing of foreground"):
        encode_support(encoder, cells, ["a"])


def test_models_that_have_no_features_of_places_are_refused():
    with pytest.raises(BadConfig, match="random weights"):
        load_encoder("unet")
    with pytest.raises(BadConfig, match="sees volumes"):
        DenseEncoder(*weights.load("sam-med3d-tiny-test"))
