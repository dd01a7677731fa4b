"""In a subprocess, so that what other tests import proves nothing about TensorFlow."""

import json
import subprocess
import sys

import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset, open_dataset, read_case, split
from medvfm_jax.data.records import BadDataset
from tests.data.small_folders import nnunet_folder

SCRIPT = """
import json, sys
import grain, numpy as np
from medvfm_jax.data.tfds_builders import as_source, builder
name, folder, data_dir = sys.argv[1:]
sources = {s: as_source(name, folder, split=s, data_dir=data_dir) for s in ("train", "validation", "test")}
first = sources["train"][0]
np.savez(data_dir + "/first.npz", **{k: v for k, v in first.items() if isinstance(v, np.ndarray)})
loaded = list(grain.MapDataset.source(sources["train"]).seed(0).shuffle())
print(json.dumps({
    "tensorflow": "tensorflow" in sys.modules,
    "cases": {s: [x["case"].decode() for x in source] for s, source in sources.items()},
    "loaded": len(loaded),
    "slice": int(first["slice"]), "site": first["site"].decode(), "spacing": first["spacing"].tolist(),
    "labels": dict(builder(name, folder, data_dir=data_dir).info.metadata["labels"]),
}))
"""


def prepare(name, folder, data_dir):
    command = [sys.executable, "-c", SCRIPT, name, str(folder), str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), np.load(data_dir / "first.npz")


@pytest.mark.parametrize(("name", "kind"), [("dsb2018", "cells"), ("nnunet_folder", "volumes")])
def test_prepared_examples_are_those_of_the_folder_without_tensorflow(tmp_path, name, kind):
    folder = make_phantom_dataset(tmp_path / "data", kind, 6, size=24)
    (tmp_path / "tfds").mkdir()
    said, first = prepare(name, folder, tmp_path / "tfds")
    assert said["tensorflow"] is False
    dataset = open_dataset(folder)
    parts = split(dataset)
    per_case = 6 if kind == "volumes" else 1
    for part, tfds_name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert said["cases"][tfds_name] == [c for c in getattr(parts, part) for _ in range(per_case)]
    assert said["loaded"] == per_case * len(parts.train)
    assert said["labels"] == dict(dataset.labels)
    case = read_case(dataset, parts.train[0])
    if kind == "cells":
        np.testing.assert_array_equal(first["image"], case.image.array)
        np.testing.assert_array_equal(first["label"][..., 0], case.label)
        np.testing.assert_array_equal(first["instances"], case.instances)
        assert said["slice"] == -1
        assert said["site"] == dataset.case(parts.train[0]).site
    else:
        np.testing.assert_array_equal(first["label"][..., 0], case.label[:, :, 0].T)
        assert first["image"].shape == (24, 24, 1)
        assert (said["slice"], said["spacing"]) == (0, [1.0, 1.0])


def test_channels_that_no_picture_can_hold_are_not_left_out(tmp_path):
    from medvfm_jax.data.tfds_builders import as_source

    folder = nnunet_folder(tmp_path / "four", "abcde", channels=4)
    with pytest.raises(BadDataset, match="has 4 channels; at most 3"):
        as_source("nnunet_folder", folder, data_dir=tmp_path / "tfds")
