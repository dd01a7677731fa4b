"""Runs whose adapter knows tasks: sites are tasks, each trains its own row, and predictions ask for one."""

import json
import shutil

import numpy as np
import pytest

from medvfm_jax.data import open_dataset
from medvfm_jax.data.annotated_labels import with_annotated
from medvfm_jax.data.site_tasks import site_tasks
from medvfm_jax.predict.evaluation import evaluate
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.train import make_loss, resolve
from medvfm_jax.train.adaptation import adapt
from medvfm_jax.train.stored_delta import TaskUnknown, load_adapted
from medvfm_jax.train.task import UnknownTask
from tests.train.small_runs import build_models_once, resolved, small

SITE = "mask_decoder/output_upscaling_1"
HEAD = "mask_decoder/output_hypernetworks_mlps_0/layers_2/bias"
FEW = {"adapter": "task_film", "set": (f"film.at={SITE}", f"decoder.at={HEAD}"), "validate_every": 0}


@pytest.fixture(autouse=True)
def models(monkeypatch):
    build_models_once(monkeypatch)


@pytest.fixture(scope="module")
def two_sites(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites") / "cells"
    shutil.copytree(cells, folder)
    names = sorted(path.name for path in (folder / "images").iterdir())
    rows = [f"{name},{'north' if i % 2 else 'south'}" for i, name in enumerate(names)]
    (folder / "sites.csv").write_text("\n".join(["file,site", *rows]) + "\n")
    return folder


def settings(data, out, **more):
    return small(data, out, **FEW | more)


@pytest.mark.slow
def test_each_site_trains_its_row_and_predictions_ask_for_one(two_sites, tmp_path):
    out = tmp_path / "run"
    result = adapt(settings(two_sites, out))
    tasks = {"north": 0, "south": 1}
    assert resolved(out)["adapter"]["parts"]["film"]["tasks"] == tasks
    with pytest.raises(TaskUnknown, match=r"sites north, south, and it was not said .* --task"):
        load_adapted(result.delta, model=None, dtype="float32")
    with pytest.raises(TaskUnknown, match="'west' is none of them"):
        load_segmenter(run=out, task="west")
    one, other = (
        load_adapted(result.delta, model=None, dtype="float32", task=site).delta["film"][SITE]
        for site in tasks
    )
    assert one["task_shift"].shape == (1, 8)
    assert np.abs(one["task_shift"]).min() > 0 < np.abs(other["task_shift"]).min()
    assert np.abs(np.asarray(one["task_shift"]) - other["task_shift"]).max() > 1e-4
    scores = evaluate(EvaluateConfig(run=out, split="all", out=tmp_path / "a.json"))
    said = evaluate(EvaluateConfig(run=out, split="all", task="north", out=tmp_path / "b.json"))
    for ours, theirs in zip(scores["cases"], said["cases"], strict=True):
        assert ours["site"] == theirs["site"]
        assert ours == theirs or ours["site"] == "south"
    with pytest.raises(TaskUnknown, match=r"give one of them, which .* --task"):
        evaluate(EvaluateConfig(run=out, task="east", out=tmp_path / "c.json"))


def test_a_batch_without_tasks_is_refused(two_sites, tmp_path):
    run = resolve(settings(two_sites, tmp_path / "run"))
    batch = next(run.data.loader("none"))
    assert set(batch.task.tolist()) <= {0, 1}
    loss = make_loss(run.assembled.adapted, run.assembled.objective)
    with pytest.raises(UnknownTask, match="do not say which one"):
        loss(run.assembled.base.params, run.assembled.delta, batch._replace(task=None), None)


def test_tasks_are_label_sets_where_sites_annotate_some_labels(volumes, tmp_path):
    folder = tmp_path / "volumes"
    shutil.copytree(volumes, folder)
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    first, second = [name for name in labels if name != "background"]
    rows = [f"case_{i:03d},{'abc'[i % 3]}" for i in range(6)]
    (folder / "sites.csv").write_text("\n".join(["file,site", *rows]) + "\n")
    dataset = open_dataset(str(folder))
    assert site_tasks(dataset) == {"a": 0, "b": 1, "c": 2}
    some = with_annotated(dataset, [f"a={first}", f"b={second}", f"c={first}"])
    assert site_tasks(some) == {"a": 0, "b": 1, "c": 0}
    whole = with_annotated(dataset, [f"a={first}"])
    assert site_tasks(whole) == {"a": 0, "b": 1, "c": 1}
