import json
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments import prompt_robustness as experiment
from experiments.prompt_robustness import Sweep, dice_of, markdown, moved_box, moved_point, query_of, summary
from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.settings.records import BadConfig
from tests.predict.plain_models import inside_box
from tests.predict.plain_segmenter import segmenter

BOX, SHAPE = np.array([100, 200, 119, 239], np.float32), (500, 400)  # 20 wide, 40 high


def test_sides_of_a_box_move_both_ways_by_up_to_the_share_of_its_own_sides():
    rng = np.random.default_rng(0)
    moved = np.array([moved_box(rng, BOX, 0.3, SHAPE) for _ in range(2000)]) - BOX
    np.testing.assert_allclose(moved.min(0), [-6, -12, -6, -12], atol=0.05)
    np.testing.assert_allclose(moved.max(0), [6, 12, 6, 12], atol=0.05)
    np.testing.assert_allclose(moved.std(0), np.array([6, 12, 6, 12]) / np.sqrt(3), rtol=0.05)
    assert abs(np.corrcoef(moved.T)[0, 2]) < 0.1


def test_noise_of_clicks_has_the_share_of_the_sides_as_its_deviation():
    rng = np.random.default_rng(0)
    centre = np.array([110, 220])
    moved = np.array([moved_point(rng, centre, BOX, 0.1, SHAPE) for _ in range(4000)]) - centre
    np.testing.assert_allclose(moved.std(0), [2, 4], rtol=0.05)
    np.testing.assert_allclose(moved.mean(0), 0, atol=0.2)


def test_without_noise_prompts_are_exact_and_with_much_they_stay_in_the_picture():
    mask = np.zeros((30, 40), bool)
    mask[2:9, 1:12] = True
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(query_of("box", rng, mask, 0.0).box, [1, 2, 11, 8])
    assert mask[tuple(query_of("point", rng, mask, 0.0).points[0].astype(int)[::-1])]
    for _ in range(200):
        x0, y0, x1, y1 = query_of("box", rng, mask, 0.99).box
        assert 0 <= x0 <= x1 <= 39
        assert 0 <= y0 <= y1 <= 29
        x, y = query_of("point", rng, mask, 0.99).points[0]
        assert 0 <= x <= 39
        assert 0 <= y <= 29


def test_dice_of_half_a_mask():
    mask = np.ones((4, 4), bool)
    half = mask.copy()
    half[2:] = False
    assert dice_of(half, mask) == pytest.approx(2 / 3)
    assert dice_of(~mask, mask) == 0


def test_the_mean_is_over_images_and_those_without_objects_do_not_count():
    images = {
        "a": {"objects": 9, "box": [1.0, 0.5]},
        "b": {"objects": 1, "box": [0.0, 0.5]},
        "c": {"objects": 0},
    }
    first, second = summary(images, Sweep("d", kinds=("box",), noise=(0.0, 0.1)))["box"]
    assert (first["mean"], first["n"], first["interval"]) == (0.5, 2, "t")
    assert (first["low"], first["high"]) == (0, 1)  # cut at what a Dice can be
    assert (second["mean"], second["low"], second["high"]) == (0.5, 0.5, 0.5)
    assert "| 0.1 | 0.500 (0.500 to 0.500) |" in markdown({"curves": {"box": [first, second]}})


@pytest.mark.parametrize(
    ("name", "value"), [("kinds", ("mask",)), ("kinds", ()), ("noise", (1.0,)), ("noise", ()), ("cases", 0)]
)
def test_settings_without_a_meaning_are_refused(name, value):
    with pytest.raises(BadConfig, match=name):
        Sweep("d", **{name: value})


def test_a_sweep_goes_on_where_it_was_and_its_numbers_do_not_change(tmp_path, monkeypatch):
    data = make_phantom_dataset(tmp_path / "cells", "cells", 10, size=32)
    asked = []

    def load(*_, **__):
        model = segmenter(lambda image, prompts: inside_box(image + 1, prompts), prompts=("box", "point"))
        opened = model.interactive
        model.interactive = lambda image: asked.append(1) or opened(image)
        return model

    monkeypatch.setattr(experiment, "load_segmenter", load)
    plan = {
        "noise": (0.0, 0.3), "objects": 2, "results": tmp_path / "r.json", "plot": tmp_path / "plot" / "p.svg",
    }  # fmt: skip
    whole = experiment.sweep(Sweep(str(data), out=tmp_path / "whole", cases=2, **plan))
    assert len(asked) == 2
    experiment.sweep(Sweep(str(data), out=tmp_path / "parts", cases=1, **plan))
    assert len(asked) == 3
    again = experiment.sweep(Sweep(str(data), out=tmp_path / "parts", cases=2, **plan))
    assert len(asked) == 4
    assert again == whole == json.loads((tmp_path / "r.json").read_text())
    exact, noisy = whole["curves"]["box"]
    assert exact["mean"] > noisy["mean"] > 0
    assert exact["mean"] > 0.7  # a box around a round cell
    chart = ElementTree.parse(tmp_path / "plot" / "p.svg").getroot()
    assert chart.tag == "{http://www.w3.org/2000/svg}svg"
    with pytest.raises(BadConfig, match="another sweep"):
        experiment.sweep(Sweep(str(data), out=tmp_path / "parts", cases=2, **{**plan, "objects": 3}))
