"""Gains of sites from each other beside what was predicted, and the copy of the data with sites."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments.cross_task import (
    ANNOTATED,
    TOGETHER,
    Plan,
    gains_of,
    heat_maps,
    markdown,
    spread,
    with_sites,
)

SITES = list(ANNOTATED)


def scores(value):
    return {label: np.array([value, value + 0.1, value + 0.2]) for label in set(ANNOTATED.values())}


def rows():
    """A site gains 0.01 from each other, 0.02 from the next one, ..."""
    found = {f"{site} alone, {n} x": scores(0.5) for site in SITES for n in (1, 2, 4)}
    for i, site in enumerate(SITES):
        for j in range(i + 1, len(SITES)):
            found[f"{site} + {SITES[j]}"] = scores(0.5 + 0.01 * (i + j))
    return found | {TOGETHER: scores(0.6)}


def test_a_gain_is_less_as_many_steps_alone():
    right = [[0.0 if i == j else i + j for j in range(4)] for i in range(4)]
    wrong = (-np.array(right)).tolist()
    found = gains_of(rows(), {"right": right, "wrong": wrong})
    assert found["gains"]["east from north"]["mean"] == pytest.approx(0.01)
    assert found["gains"]["west from south"]["mean"] == pytest.approx(0.05)
    assert len(found["gains"]) == 12
    assert found["agreement"]["right"]["rho"] == pytest.approx(1)
    assert found["agreement"]["wrong"]["rho"] == pytest.approx(-1)
    assert found["gains_together"]["east"]["with as many steps in all"]["mean"] == pytest.approx(0.1)


def test_an_affinity_is_read_from_giver_to_taker():
    trained = rows()
    trained["east + north"]["anterior"] = scores(0.9)["anterior"]  # both gain most, of 12 numbers
    asymmetric = [[0.0] * 4 for _ in range(4)]
    asymmetric[1][0] = 1.0  # of north onto east
    gain = {k: v["mean"] for k, v in gains_of(trained, {"m": asymmetric})["gains"].items()}
    assert max(gain, key=gain.get) == "east from north"


def test_the_picture_has_every_number():
    table = {
        "annotated": ANNOTATED, "sites": SITES, "halves": [0.5] * 4, "processor_seconds": 1.0,
        "predictions": {"cosine": (0.25 * np.ones((4, 4))).tolist()},
        "trained": {"one": {k: spread(v) for k, v in scores(0.5).items()}},
    }  # fmt: skip
    table |= gains_of(rows(), table["predictions"])
    texts = [one.text for one in ElementTree.fromstring(heat_maps(table)).iter() if one.tag.endswith("text")]
    assert texts.count("+0.250") == 12
    assert "+0.050" in texts
    assert "| west from south | +0.050 (" in markdown(table)


def test_volumes_are_dealt_out_to_sites(tmp_path):
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / "all" / part).mkdir(parents=True)
    for i in range(6):
        (tmp_path / "all" / "labelsTr" / f"h_{i}.nii.gz").write_bytes(b"x")
        (tmp_path / "all" / "imagesTr" / f"h_{i}_0000.nii.gz").write_bytes(b"y")
    (tmp_path / "all" / "dataset.json").write_text(
        json.dumps({"numTraining": 6, "labels": {"background": 0}})
    )
    folder = with_sites(Plan(str(tmp_path / "all"), tmp_path / "out", volumes=5))
    lines = (folder / "sites.csv").read_text().split()
    assert lines == ["file,site", *(f"h_{i}.nii.gz,{SITES[i % 4]}" for i in range(5))]
    assert len(list((folder / "imagesTr").iterdir())) == 5
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 5
