from dataclasses import replace

import pytest

from medvfm_jax.models.catalog import MODELS
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.seen_at_once import (
    asked_shape,
    check_shape,
    options_of_shape,
    recorded_shape,
    slab_depth,
    stored_shape,
    with_depth,
)
from medvfm_jax.weights.artifacts import BadDelta

SLAB = {"kind": "slab", "depth": 5, "of": None}


def settings(*window, **others):
    return AdaptConfig(data="x", window=window, **others)


def test_patches_have_the_sides_asked_for_and_the_channels_of_the_data():
    entry = MODELS["unetr"]
    assert asked_shape(settings(32, 48, 64), entry, 2) == (32, 48, 64, 2)
    assert asked_shape(settings(), entry, 0) == (96, 96, 96, 1)
    assert asked_shape(settings(5), MODELS["lite-medsam"], 2) is None
    with pytest.raises(BadConfig, match="three sides: depth, height, width"):
        asked_shape(settings(5), entry, 0)
    with pytest.raises(BadConfig, match="sees pictures and slices"):
        asked_shape(settings(32, 32, 32), MODELS["unet"], 0)


def test_slabs_have_the_depth_asked_for():
    assert with_depth(SLAB, "sd_trans", slab_depth(settings(7))) == SLAB | {"depth": 7}
    assert slab_depth(settings()) is slab_depth(settings(32, 32, 32)) is None
    assert with_depth(SLAB, "sd_trans", None) == SLAB
    assert with_depth(None, "lora", None) is None
    for change in (None, {"kind": "prompt_free", "classes": 2}):
        with pytest.raises(BadConfig, match="adapter=lora sees one slice at a time"):
            with_depth(change, "lora", 7)


def test_pictures_have_the_side_asked_for():
    entry = MODELS["lite-medsam"]
    assert asked_shape(settings(image_size=128), entry, 3) == (128, 128, 3)
    assert asked_shape(settings(), entry, 3) is None
    with pytest.raises(BadConfig, match="leave out --image-size, and give --window the sides of a patch"):
        asked_shape(settings(32, 32, 32, image_size=128), MODELS["unetr"], 1)
    for size in (0, 4097):
        with pytest.raises(BadConfig, match="1 to 4096 pixels"):
            settings(image_size=size)


def test_a_system_with_an_input_of_its_own_takes_no_other():
    spec = MODELS["lite-medsam"].spec  # 256 pixels
    check_shape((256, 256, 3), spec, "sam_med2d")
    check_shape(None, spec, "sam_med2d")
    check_shape((256, 256, 3), replace(spec, input_shape=(5, 256, 256, 3)), "sd_trans")  # slices of a slab
    with pytest.raises(BadConfig, match="adapter=sam_med2d has pictures of 256 pixels on this model"):
        check_shape((128, 128, 3), spec, "sam_med2d")


def test_options_of_a_model_follow_from_the_shape():
    assert options_of_shape(None) == {}
    assert options_of_shape((128, 128, 3)) == {"image_size": 128}
    assert options_of_shape((96, 64, 32, 2)) == {"window": (96, 64, 32), "channels": 2}


def test_what_was_asked_for_is_recorded_and_read_again():
    patch, picture = (96, 64, 96, 1), (128, 128, 3)
    assert recorded_shape(patch) == {"input_shape": [96, 64, 96, 1]}
    assert recorded_shape(None) == {}
    assert stored_shape(recorded_shape(patch), MODELS["unetr"], "delta") == patch
    assert stored_shape(recorded_shape(picture), MODELS["lite-medsam"], "delta") == picture
    assert stored_shape({}, MODELS["unetr"], "delta") is None
    for bad in ("96", [96, 96], [96, 96, 96, 1.0], 7):
        with pytest.raises(BadDelta, match="expected three or four whole numbers"):
            stored_shape({"input_shape": bad}, MODELS["unetr"], "delta")
    for bad in ([128, 64, 3], [128, 128, 1], [0, 0, 3], [4097, 4097, 3]):
        with pytest.raises(BadDelta, match="that of a square picture"):
            stored_shape({"input_shape": bad}, MODELS["lite-medsam"], "delta")
    with pytest.raises(BadDelta, match="of pictures, and its model takes none"):
        stored_shape({"input_shape": [128, 128, 3]}, MODELS["unetr"], "delta")


def test_windows_without_a_meaning():
    for window, told in (((5, 5), "one number, or three"), ((16, 0, 16), "at least 1")):
        with pytest.raises(BadConfig, match=told):
            settings(*window)


@pytest.mark.parametrize(
    "shape", [[4096, 4096, 4096, 1], [16, 16, 2**62, 1], [16, 16, 16, 2**40], [0, 16, 16, 1]]
)
def test_patches_that_nobody_can_hold_are_refused_before_a_model_is_built(shape):
    with pytest.raises(BadDelta, match="input_shape is"):
        stored_shape({"input_shape": shape}, MODELS["unetr"], "delta")
    with pytest.raises(BadDelta, match="of patches, and its model takes none"):
        stored_shape({"input_shape": [16, 16, 16, 1]}, MODELS["lite-medsam"], "delta")


def test_a_window_has_a_limit_that_can_be_raised(monkeypatch):
    """16 features of 320 x 320 x 320 voxels in float32 are 1.95 GiB, of 336 to the third 2.26 GiB; 2 are allowed."""
    entry = MODELS["unetr"]
    assert entry.spec.embedding[-1] == 16
    assert asked_shape(settings(320, 320, 320), entry, 0) == (320, 320, 320, 1)
    with pytest.raises(BadConfig, match=r"window is 336 336 336: .*MEDVFM_MAX_IMAGE_GIB"):
        asked_shape(settings(336, 336, 336), entry, 0)
    monkeypatch.setenv("MEDVFM_MAX_IMAGE_GIB", "3")
    assert asked_shape(settings(336, 336, 336), entry, 0) == (336, 336, 336, 1)
