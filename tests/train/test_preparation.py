"""The preparation that settings ask for, and that of a stored delta."""

import json
from pathlib import Path

import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset, open_dataset
from medvfm_jax.images import BadImage
from medvfm_jax.images.preparation import AS_THEY_ARE, Preparation
from medvfm_jax.models.catalog import MODELS
from medvfm_jax.settings import AdaptConfig, BadConfig
from medvfm_jax.train.preparation import check_same_scale, prepared, stored_preparation
from medvfm_jax.train.training import resolve
from medvfm_jax.weights.artifacts import BadDelta

PATCHES, SLICES = MODELS["unet-3d"], MODELS["lite-medsam"]


def asked(**settings):
    return AdaptConfig(data="x", model="unet-3d", adapter="full", **settings)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Two volumes of 16 x 16 x 6 voxels of 1 x 1 x 3 mm."""
    return open_dataset(
        str(make_phantom_dataset(tmp_path_factory.mktemp("data") / "v", "volumes", 2, size=16))
    )


def test_settings_become_a_preparation(volumes):
    cases = [case.id for case in volumes.cases]
    assert prepared(volumes, cases, asked(), PATCHES) is volumes
    median = prepared(volumes, cases, asked(spacing=(0,)), PATCHES).preparation
    assert median == Preparation((3.0, 1.0, 1.0))
    given = prepared(volumes, cases, asked(spacing=(1.5,)), PATCHES, "nnunet").preparation
    assert given == Preparation((1.5, 1.5, 1.5), (None,))
    assert asked(spacing=(3.0, 1.0, 2.0)).target_spacing() == (3.0, 1.0, 2.0)
    with pytest.raises(BadConfig, match="leave out --spacing"):
        prepared(volumes, cases, asked(spacing=(1.0,)), SLICES)
    with pytest.raises(BadConfig, match="spacing is 1 1; expected one number, or three"):
        asked(spacing=(1.0, 1.0))


def test_a_stored_preparation_is_read_or_refused():
    spec, path = PATCHES.spec, Path("d.safetensors")
    assert stored_preparation({}, spec, path) == AS_THEY_ARE
    record = {"spacing": [1.0, 1.0, 1.0], "intensity": [[0.0, 5.0]]}
    assert stored_preparation({"preparation": record}, spec, path).intensity == ((0.0, 5.0),)
    for bad in (record | {"spacing": [1.0]}, record | {"intensity": [None, None]}, {"spacing": None}, 5):
        with pytest.raises(BadDelta, match="means nothing to unet-3d"):
            stored_preparation({"preparation": bad}, spec, path)
    with pytest.raises(BadDelta, match="means nothing to lite-medsam"):
        stored_preparation({"preparation": record}, SLICES.spec, path)
    clipped = record | {
        "spacing": None
    }  # slices have a range of intensities, one for each channel of the volume
    found = stored_preparation({"preparation": clipped}, SLICES.spec, path)
    assert found == Preparation(None, ((0.0, 5.0),))
    with pytest.raises(BadDelta, match="means nothing to lite-medsam"):
        stored_preparation({"preparation": clipped, "channel_names": ["a", "b"]}, SLICES.spec, path)
    with pytest.raises(BadImage, match="has 2 channels, and the run knows the intensities of 1"):
        found.scale(np.zeros((2, 2, 2, 2)), ())


def test_ct_is_not_mr():
    check_same_scale(("MRI", "CT"), ("T1", "ct"), Path("data"))
    with pytest.raises(BadConfig, match="channel 0 named 'CT', and data names it 'MRI'"):
        check_same_scale(("CT",), ("MRI",), Path("data"))


@pytest.mark.slow
def test_all_folds_prepare_volumes_alike(tmp_path):
    folder = make_phantom_dataset(tmp_path / "v", "volumes", 8, size=16)
    record = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(record | {"channel_names": {"0": "CT"}}))
    runs = [
        resolve(
            AdaptConfig(
                data=str(folder), model="unet-3d", adapter="full", window=(8, 16, 16), spacing=(0,), intensity="nnunet",
                fold=fold,
            )
        )
        for fold in (0, 3)
    ]  # fmt: skip
    first, second = (run.data.source for run in runs)
    assert first.split.train != second.split.train
    assert first.dataset.preparation == second.dataset.preparation
    assert first.dataset.preparation.intensity is not None
