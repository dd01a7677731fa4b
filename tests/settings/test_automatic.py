import pytest

from medvfm_jax.settings.automatic import AutomaticConfig
from medvfm_jax.settings.records import BadConfig


def test_the_numbers_are_those_of_segment_anything():
    config = AutomaticConfig()
    assert (config.points_per_side, config.points_per_batch) == (32, 64)
    assert (config.pred_iou, config.stability, config.stability_offset) == (0.88, 0.95, 1.0)
    assert (config.box_nms, config.crop_nms, config.crop_overlap) == (0.7, 0.7, 512 / 1500)
    assert (config.crop_layers, config.crop_points_downscale, config.min_area) == (0, 1, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_side", 0),
        ("points_per_side", 513),
        ("points_per_batch", 0),
        ("pred_iou", 1.1),
        ("stability", -0.1),
        ("stability_offset", 0.0),
        ("stability_offset", float("nan")),
        ("box_nms", float("nan")),
        ("crop_nms", 2.0),
        ("crop_layers", 6),
        ("crop_overlap", 1.0),
        ("crop_points_downscale", 0),
        ("min_area", -1),
    ],
)
def test_numbers_without_a_meaning_are_refused_by_name(name, value):
    with pytest.raises(BadConfig, match=name):
        AutomaticConfig(**{name: value})
