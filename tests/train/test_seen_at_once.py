import pytest

from medvfm_jax.models.catalog import MODELS
from medvfm_jax.settings.adapt import AdaptConfig
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.train.seen_at_once import patch_shape, recorded_shape, slab_depth, stored_shape, with_depth
from medvfm_jax.weights.artifacts import BadDelta

SLAB = {"kind": "slab", "depth": 5, "of": None}


def settings(*window, **others):
    return AdaptConfig(data="x", window=window, **others)


def test_patches_have_the_sides_asked_for_and_the_channels_of_the_data():
    entry = MODELS["unetr"]
    assert patch_shape(settings(32, 48, 64), entry, 2) == (32, 48, 64, 2)
    assert patch_shape(settings(), entry, 0) == (96, 96, 96, 1)
    assert patch_shape(settings(5), MODELS["lite-medsam"], 2) is None
    with pytest.raises(BadConfig, match="three sides: depth, height, width"):
        patch_shape(settings(5), entry, 0)
    with pytest.raises(BadConfig, match="sees pictures and slices"):
        patch_shape(settings(32, 32, 32), MODELS["unet"], 0)


def test_slabs_have_the_depth_asked_for():
    assert with_depth(SLAB, "sd_trans", slab_depth(settings(7))) == SLAB | {"depth": 7}
    assert slab_depth(settings()) is slab_depth(settings(32, 32, 32)) is None
    assert with_depth(SLAB, "sd_trans", None) == SLAB
    assert with_depth(None, "lora", None) is None
    for change in (None, {"kind": "prompt_free", "classes": 2}):
        with pytest.raises(BadConfig, match="adapter=lora sees one slice at a time"):
            with_depth(change, "lora", 7)


def test_only_models_of_patches_record_a_shape():
    spec = MODELS["unetr"].spec
    assert recorded_shape(spec) == {"input_shape": [96, 96, 96, 1]}
    assert recorded_shape(MODELS["lite-medsam"].spec) == {}
    assert stored_shape(recorded_shape(spec), MODELS["unetr"], "delta") == spec.input_shape
    assert stored_shape({}, MODELS["unetr"], "delta") is None
    for bad in ("96", [96, 96, 96], [96, 96, 96, 1.0], 7):
        with pytest.raises(BadDelta, match="expected four whole numbers"):
            stored_shape({"input_shape": bad}, MODELS["unetr"], "delta")


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
    with pytest.raises(BadDelta, match="takes no patches"):
        stored_shape({"input_shape": [16, 16, 16, 1]}, MODELS["lite-medsam"], "delta")


def test_a_window_has_a_limit_that_can_be_raised(monkeypatch):
    """16 features of 320 x 320 x 320 voxels in float32 are 1.95 GiB, of 336 to the third 2.26 GiB; 2 are allowed."""
    entry = MODELS["unetr"]
    assert entry.spec.embedding[-1] == 16
    assert patch_shape(settings(320, 320, 320), entry, 0) == (320, 320, 320, 1)
    with pytest.raises(BadConfig, match=r"window is 336 336 336: .*MEDVFM_MAX_IMAGE_GIB"):
        patch_shape(settings(336, 336, 336), entry, 0)
    monkeypatch.setenv("MEDVFM_MAX_IMAGE_GIB", "3")
    assert patch_shape(settings(336, 336, 336), entry, 0) == (336, 336, 336, 1)
