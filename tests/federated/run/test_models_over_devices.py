"""The rounds of every kind of encoder, its clients divided over two devices: traced with the model's own loss."""

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.federated.run.federate import federate
from medvfm_jax.federated.run.placement import CohortPlacement
from medvfm_jax.federated.run.resolving import resolve
from medvfm_jax.federated.run.round_data import RoundLoader
from medvfm_jax.federated.run.round_step import RoundStep
from medvfm_jax.parallel import RULES, make_mesh
from medvfm_jax.train.task import make_loss
from medvfm_jax.weights import artifacts
from tests.federated.small_federation import small

pytestmark = pytest.mark.usefixtures("small_runs")

# Models whose gradients are written out or that look up rows of a weight: TinyViT, SAM, convolutions, Swin.
OTHERS = ("sam-tiny-test", "rep-tiny-test", "med2d-tiny-test", "efficient-tiny-test", "swin-unet-tiny-test")
MODELS = ("lite-tiny-test", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 6, size=32)


def settings(cells, out, model, **more):
    from_scratch = model.startswith("swin")
    plain = {
        "model": model, "preset": "full" if from_scratch else "bitfit", "prompt": "auto", "partition": "patient",
        "clients": 2, "rounds": 1, "local_steps": 1, "val_fraction": 0.0, "test_fraction": 0.3, "score": False,
        "validate_every": 0, "optimizer": "sgd",
    }  # fmt: skip
    return small(cells, out, **plain | more)


def over_two():
    return CohortPlacement(make_mesh("clients=2", jax.devices()[:2]), RULES["replicated"](), "replicated")


@pytest.mark.parametrize("model", MODELS)
def test_a_round_over_two_devices_can_be_traced(cells, tmp_path, model):
    run = resolve(settings(cells, tmp_path / "run", model))
    loss = make_loss(run.adapted, run.record["resolved"]["objective"], cached=False, training=True)
    step = RoundStep(run, loss, over_two())
    loader = RoundLoader(run.clients, run.config, run.steps, lambda number: 1.0, lambda batch: batch, "none")
    data = next(loader)
    assert "all_reduce" in step.lower(step.init(data), data).as_text()  # the sum over clients


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("lite-tiny-test", {}),
        ("rep-tiny-test", {}),
        ("lite-tiny-test", {"dp_epsilon": 8.0, "dp_unit": "patient", "dp_delta": 1e-3, "dp_seed": 3}),
    ],
    ids=["lite", "rep", "patients"],
)
def test_two_devices_learn_what_one_learns(cells, tmp_path, model, more):
    deltas = [
        artifacts.load_delta(
            federate(settings(cells, tmp_path / name, model, **more), placement=placement).delta
        )[0]
        for name, placement in (("one", None), ("two", over_two()))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *deltas)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(deltas[0]))
