import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset, open_dataset, read_case
from medvfm_jax.predict.overlay_cases import choose, write_overlays


def rows(label, **dice):
    return [{"case": case, "label": label, "dice": value} for case, value in dice.items()]


def picked(chosen):
    return {rank: row["case"] for rank, row in chosen.items()}


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ({}, {}),
        ({"a": None}, {}),
        ({"a": 0.5}, {"best": "a"}),
        ({"a": 0.5, "b": 0.9}, {"best": "b", "median": "a"}),
        ({"a": 0.5, "b": 0.9, "c": 0.1}, {"best": "b", "median": "a", "worst": "c"}),
        ({"d": 0.5, "b": 0.5, "c": 0.5, "a": 0.5}, {"best": "a", "median": "c", "worst": "d"}),
        ({"a": 0.0, "b": None, "c": 1.0, "d": 0.2}, {"best": "c", "median": "d", "worst": "a"}),
    ],
)
def test_best_median_and_worst_without_showing_a_case_twice(dice, expected):
    others = rows("other", a=1.0, z=0.0)
    assert picked(choose(rows("cell", **dice) + others, "cell")) == expected


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = make_phantom_dataset(tmp_path_factory.mktemp("data") / "v", "volumes", 3, size=16)
    return open_dataset(folder)


def test_of_a_volume_the_slice_with_most_of_the_label_is_kept(volumes, tmp_path):
    scored = [
        {"case": case.id, "label": label, "dice": dice}
        for label in volumes.labels
        for case, dice in zip(volumes.cases, (0.2, 0.9, 0.4))
    ]

    def read(name):
        case = read_case(volumes, name)
        predicted = np.zeros_like(case.label)
        predicted[2:5, 3:6, 1] = 2  # nine voxels of the core, in a slice where the reference has few
        return case, predicted

    entries = write_overlays(tmp_path / "overlays_x", volumes, scored, read)
    assert [(e["label"], e["rank"], e["case"]) for e in entries] == [
        (label, rank, case)
        for label in ("shell", "core")
        for rank, case in (("best", "case_001"), ("median", "case_002"), ("worst", "case_000"))
    ]
    assert {e["dice"] for e in entries} == {0.2, 0.9, 0.4}
    for entry in entries:
        assert entry["arrays"].startswith("overlays_x/")
        with np.load(tmp_path / entry["arrays"]) as file:
            image, reference, prediction = file["image"], file["reference"], file["prediction"]
        assert (image.shape, image.dtype) == ((16, 16, 1), np.uint8)
        assert reference.dtype == prediction.dtype == bool
        case, predicted = read(entry["case"])
        value = volumes.labels[entry["label"]]
        either = ((case.label == value) | (predicted == value)).sum((0, 1))
        index = int(np.argmax(either))
        for shown, whole in ((reference, case.label), (prediction, predicted)):
            np.testing.assert_array_equal(shown, (whole == value)[:, :, index].T)
        shown = case.image.array[:, :, index, 0].T.astype(float)
        assert np.corrcoef(shown.ravel(), image[..., 0].ravel())[0, 1] > 0.99  # that slice of the image
    assert len(list((tmp_path / "overlays_x").iterdir())) == len(entries) == 6


def test_names_are_safe_for_files_and_nothing_is_made_without_cases(tmp_path):
    dataset = open_dataset(make_phantom_dataset(tmp_path / "cells", "cells", 2, size=16))
    cases = {case.id: read_case(dataset, case) for case in dataset.cases}

    def read(name):
        return cases[name], cases[name].label

    assert write_overlays(tmp_path / "overlays", dataset, rows("foreground"), read) == []
    assert not (tmp_path / "overlays").exists()
    object.__setattr__(dataset, "labels", {"background": 0, "cell/../core (2)": 1})
    scored = rows("cell/../core (2)", cell_000=0.3)
    (entry,) = write_overlays(tmp_path / "overlays", dataset, scored, read)
    assert [f"overlays/{p.name}" for p in (tmp_path / "overlays").iterdir()] == [entry["arrays"]]
    with np.load(tmp_path / entry["arrays"]) as file:
        np.testing.assert_array_equal(file["reference"], cases["cell_000"].label == 1)
        np.testing.assert_array_equal(file["image"], cases["cell_000"].image.array)
