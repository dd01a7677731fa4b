"""Whole runs of algorithms that need more than a loss: ranks per client, increments of the base, features, public data.

Each on the smallest model, two sites and two rounds: it runs, and what it leaves can be evaluated.
"""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated import BadFederation
from medvfm_jax.federated.core.lora_aggregation import factors_of, product
from medvfm_jax.federated.run import evaluate_sites
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.federated.run.model_names import REFERENCES
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.federated.run.round_step import RoundStep
from medvfm_jax.federated.systems.feddpa import INSTANCES
from medvfm_jax.predict import evaluate
from medvfm_jax.runs import run_directory
from medvfm_jax.runs.run_directory import read_metrics
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.train.task import make_loss
from medvfm_jax.weights import artifacts
from tests.federated.run.test_federate import interrupted_run
from tests.federated.small_federation import small
from tests.federated.systems.open_blocks import block_of

pytestmark = pytest.mark.usefixtures("small_runs")

LORA = {"preset": "lora", "set": ("lora.rank=2",)}
LORA_OF_RANKS = {"preset": "lora", "set": ("lora.rank=2", "algorithm.ranks=1,2")}
OWN_HEAD = "algorithm.personal=.*/output_hypernetworks_mlps_0/.*"
CASES: dict[str, dict] = {
    "hetlora": {"algorithm": "hetlora"} | LORA_OF_RANKS,
    "flexlora": {"algorithm": "flexlora"} | LORA_OF_RANKS,
    "flora": {"algorithm": "flora"} | LORA_OF_RANKS,
    "fedex_lora": {"algorithm": "fedex_lora"} | LORA,
    "iat": {"algorithm": "iat", "preset": "samed_s", "prompt": "auto", "measure_every": 1},
    "moon": {"algorithm": "moon"},
    "feddf": {"algorithm": "feddf", "set": ("algorithm.server_steps=2",)},
    "cagrad": {"algorithm": "cagrad"},
    "fedhca2": {"algorithm": "fedhca2"},
    "fedbone": {"algorithm": "fedbone", "set": (OWN_HEAD,)},
    "mat_fl": {"algorithm": "mat_fl", "set": ("algorithm.threshold=1", OWN_HEAD)},
    "matu": {"algorithm": "matu"},
    "mocha": {"algorithm": "mocha"},
    "clustered": {
        "algorithm": "clustered",
        "set": ("algorithm.stationary=10", "algorithm.moving=0", "algorithm.threshold=1"),
    },
    "feddpa_t": {"preset": "feddpa_t"},
    "fedpft": {"preset": "fedpft"},
    "pfedpg": {"preset": "pfedpg"},
    "fesvibs": {"preset": "fesvibs"},
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Six pictures of 32 × 32 pixels at two sites."""
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 6, size=32)


def settings(name, cells):
    public = {"public_data": cells / "images"} if name == "feddf" else {}
    plain = {"rounds": 2, "local_steps": 1, "val_fraction": 0.0, "test_fraction": 0.34}
    return plain | CASES[name] | public


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_runs_and_what_it_leaves_can_be_evaluated(name, cells, tmp_path):
    result = federate(small(cells, tmp_path / "run", **settings(name, cells)))
    lines = [line for line in read_metrics(result.folder) if "upload_bytes" in line]
    assert [(line["step"], line["participants"], line["excluded"]) for line in lines] == [
        (1, 2, []),
        (2, 2, []),
    ]
    delta, metadata = artifacts.load_delta(result.delta)
    assert metadata["algorithm"] == name
    scores = json.loads(result.scores.read_text())
    if name == "feddpa_t":  # evaluate takes the shared model
        own, _ = artifacts.load_delta(result.personal)
        assert {client: kept[REFERENCES].shape for client, kept in own.items()} == {
            "bright": (2, 32), "dark": (2, 32)
        }  # fmt: skip
        assert INSTANCES > 2
        assert any(np.any(leaf) for leaf in jax.tree.leaves(own["dark"]["local_lora"]))
    elif name == "fesvibs":  # scores are of the clients' own decoders and blocks
        own, _ = artifacts.load_delta(result.personal)
        assert set(own) == {"bright", "dark"}
        assert all(1 <= block_of(kept) <= 4 for kept in own.values())
        assert block_of(delta) == 4
        decoders = [kept["weights"]["mask_decoder/mask_tokens"]["embedding"] for kept in own.values()]
        assert not np.array_equal(*decoders)
        assert lines[0]["upload_bytes"] == 2 * 1 * 2 * 4 * (4 * 4 * 16 + 4 * 4 * 32)
    elif name == "pfedpg":  # scores are of the clients' own prompts and heads
        own, _ = artifacts.load_delta(result.personal)
        assert {client: jax.tree.map(np.shape, kept) for client, kept in own.items()} == dict.fromkeys(
            ("bright", "dark"), jax.tree.map(np.shape, delta)
        )
        assert not np.array_equal(*(jax.tree.leaves(kept["head"])[0] for kept in own.values()))
    elif name in (
        "iat",
        "fedhca2",
        "clustered",
        "fedbone",
        "mat_fl",
        "matu",
        "mocha",
    ):  # scores are of the clients' own models
        again = evaluate_sites.evaluate(EvaluateConfig(run=result.folder, out=tmp_path / "scores.json"))
        assert again["cases"] == scores["cases"]
        assert {case["scored_by"] for case in again["cases"] if "scored_by" in case} != {"shared"}
        assert not np.array_equal(
            *(jax.tree.leaves(k)[0] for k in artifacts.load_delta(result.personal)[0].values())
        )
    else:
        again = evaluate(EvaluateConfig(run=result.folder, out=tmp_path / "scores.json"))
        assert again["cases"] == scores["cases"]
    if name == "iat":
        own = artifacts.load_delta(result.personal)[0]["dark"]
        kept = (
            {leaf[-1] for leaf in flatten_dict(own["lora"])},
            {leaf[-1] for leaf in flatten_dict(own["decoder_lora"])},
        )
        assert kept == ({"a_q", "a_v"}, {"b"})
        # b is zero at the start, so the one step of the first round moves no a: there is nothing to miss yet.
        assert lines[0]["aggregation_error"] == 0 < lines[1]["aggregation_error"]
    if name in ("flora", "fedex_lora"):
        pairs = factors_of(delta)
        grown = [np.linalg.matrix_rank(product(f), tol=1e-9) for n, f in pairs.items() if "_increment/" in n]
        assert max(grown) >= 1
        assert name != "flora" or max(grown) > 2  # two rounds: more than the factors alone could hold


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (
            LORA | {"algorithm": "hetlora", "set": ("lora.rank=2", "algorithm.ranks=1,2,2")},
            "ranks has 3 values for 2 clients",
        ),
        (
            LORA | {"algorithm": "flora", "set": ("lora.rank=2", "algorithm.ranks=1,3")},
            "gives client 'dark' the rank 3",
        ),
        ({"algorithm": "flora"}, "needs an adapter of the LoRA kind"),
        ({"algorithm": "feddf"}, "give a folder with some as --public-data"),
        ({"public_data": "."}, "Only feddf learns from public images"),
        (
            {"algorithm": "moon", "dp_epsilon": 8.0, "dp_unit": "patient"},
            "moon also takes the features of its images for the contrast",
        ),
        (
            {"preset": "feddpa_f", "dp_epsilon": 8.0, "dp_unit": "patient"},
            "feddpa_f also takes the features of training images",
        ),
        ({"preset": "fesvibs", "model": "lite-tiny-test"}, "choose --model from sam-b, sam-l, sam-h, medsam"),
    ],
)
def test_what_is_missing_is_named(wanted, sentence, cells, tmp_path):
    with pytest.raises(BadFederation, match=sentence):
        resolve(small(cells, tmp_path / "run", val_fraction=0.0, test_fraction=0.34, **wanted))


@pytest.mark.slow
def test_fesvibs_is_run_in_parts_and_refuses_what_its_traffic_would_not_pass(cells, tmp_path):
    wanted = {"preset": "fesvibs", "val_fraction": 0.0, "test_fraction": 0.34}
    run = resolve(small(cells, tmp_path / "run", set=("algorithm.last_block=3",), **wanted))
    assert (run.algorithm, run.entry.takes, run.keeps) == ("fesvibs", "split", True)
    assert run.options == {"first_block": 1, "last_block": 3}
    RoundStep(run, make_loss(run.adapted, "medsam"))
    for more in ({"codec": "int8"}, {"down_codec": "int8"}, {"secure_aggregation": True}):
        changed = resolve(small(cells, tmp_path / "run", **wanted, **more))
        with pytest.raises(BadFederation, match="leave codecs, privacy and secure aggregation out"):
            RoundStep(changed, make_loss(run.adapted, "medsam"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flora", "hetlora", "moon", "feddf", "feddpa_t", "fedpft", "fesvibs"])
def test_an_interrupted_run_ends_with_the_same_bits(name, cells, tmp_path, monkeypatch):
    wanted = settings(name, cells) | {"score": False}
    whole = federate(small(cells, tmp_path / "whole", **wanted))
    resumed = interrupted_run(small(cells, tmp_path / "resumed", **wanted), monkeypatch, 1)
    for file in (run_directory.DELTA, *([run_directory.PERSONAL] if whole.personal else [])):
        assert (whole.folder / file).read_bytes() == (resumed.folder / file).read_bytes()
