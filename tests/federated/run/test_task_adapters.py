"""A federation whose adapter knows tasks: sites are tasks, and what belongs to a task can stay at its site."""

import json

import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.core.errors import BadFederation
from medvfm_jax.federated.run.evaluate_sites import evaluate
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.settings.evaluate import EvaluateConfig
from medvfm_jax.weights import artifacts
from tests.federated.small_federation import small

pytestmark = pytest.mark.usefixtures("small_runs")
SITE, HEAD = "mask_decoder/output_upscaling_1", "mask_decoder/output_hypernetworks_mlps_0/layers_2/bias"


@pytest.mark.slow
def test_rows_of_tasks_stay_at_their_sites_and_cases_are_scored_with_theirs(tmp_path):
    data = make_phantom_dataset(tmp_path / "cells", "cells", 10, size=32)
    names = sorted(path.name for path in (data / "images").iterdir())
    rows = [f"{name},{'north' if i % 2 else 'south'}" for i, name in enumerate(names)]
    (data / "sites.csv").write_text("\n".join(["file,site", *rows]) + "\n")
    out = tmp_path / "run"
    parts = (f"film.at={SITE}", f"decoder.at={HEAD}", "algorithm.personal=.*/task_[^/]*")
    asked = {"preset": "task_film", "set": parts, "algorithm": "fedper", "rounds": 2, "validate_every": 0}
    federate(small(data, out, **asked))
    tasks = json.loads((out / "config.json").read_text())["resolved"]["adapter"]["parts"]["film"]["tasks"]
    assert tasks == {"north": 0, "south": 1}
    own, _ = artifacts.load_delta(out / "personal.safetensors")
    for site, task in tasks.items():
        shift = np.asarray(own[site]["film"][SITE]["task_shift"])
        assert np.abs(shift[task]).min() > 0
        assert not shift[1 - task].any()
    scores = json.loads((out / "scores.json").read_text())
    assert len(set(scores["scored_by"].values())) == 2
    assert evaluate(EvaluateConfig(run=out, out=tmp_path / "again.json"))["cases"] == scores["cases"]


def test_a_start_from_inputs_of_one_run_is_refused(tmp_path):
    data = make_phantom_dataset(tmp_path / "cells", "cells", 10, size=32)
    with pytest.raises(BadFederation, match="EVA starts from the inputs"):
        resolve(small(data, tmp_path / "run", preset="eva"))
