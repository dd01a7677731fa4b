"""Whole runs of sites with different label sets: the loss knows them, and scores of what nobody looked for are none."""

import json

import nibabel
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.run.evaluate_sites import evaluate
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.settings.records import BadConfig
from tests.federated.small_federation import small

pytestmark = pytest.mark.usefixtures("small_runs")
SITES = ("north=shell", "south=core")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = make_phantom_dataset(tmp_path_factory.mktemp("data") / "volumes", "volumes", 8, size=16)
    rows = [f"case_{i:03d},{'north' if i % 2 else 'south'}" for i in range(8)]
    (folder / "sites.csv").write_text("\n".join(["file,site", *rows]) + "\n")
    return folder


def settings(volumes, out, **more):
    return small(volumes, out, **{"prompt": "none", "rounds": 1, "local_steps": 1, "annotated": SITES} | more)


@pytest.mark.slow
def test_two_sites_with_one_label_each(volumes, tmp_path):
    out = tmp_path / "run"
    federate(settings(volumes, out))
    record = json.loads((out / "config.json").read_text())
    assert record["resolved"]["objective"] == "marginal"
    assert record["annotated"] == list(SITES)
    held = {row["client"]: row["pixels"] for row in record["resolved"]["holdings"]}
    assert held["north"]["core"] == 0 < held["north"]["shell"]
    assert held["south"]["shell"] == 0 < held["south"]["core"]
    scores = json.loads((out / "scores.json").read_text())
    assert {(row["site"], row["label"]) for row in scores["cases"]} == {
        (site, label) for site in ("north", "south") for label in ("shell", "core")
    }  # the files have both labels, so both are scored
    assert evaluate(EvaluateConfig(run=out, out=tmp_path / "again.json"))["cases"] == scores["cases"]


@pytest.mark.slow
def test_labels_that_a_site_never_drew_are_not_scored_there(volumes, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir()
        for path in (volumes / name).iterdir():
            image = nibabel.load(path)
            array = np.asarray(image.dataobj)
            if name == "labelsTr":
                kept = 1 if int(path.name[5:8]) % 2 else 2
                array = np.where(array == kept, array, 0)
            nibabel.save(nibabel.Nifti1Image(array, image.affine), folder / name / path.name)
    for name in ("dataset.json", "sites.csv"):
        (folder / name).write_bytes((volumes / name).read_bytes())
    federate(settings(folder, tmp_path / "run"))
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert {(row["site"], row["label"]) for row in scores["cases"]} == {("north", "shell"), ("south", "core")}


def test_a_loss_that_would_teach_background_is_refused(volumes, tmp_path):
    with pytest.raises(
        BadConfig, match=r"objective=samed would teach .* choose --objective marginal, exclusion"
    ):
        federate(settings(volumes, tmp_path / "run", objective="samed"))
    with pytest.raises(BadConfig, match="objective=marginal rates classes against each other"):
        federate(settings(volumes, tmp_path / "run", objective="marginal", prompt="box"))
