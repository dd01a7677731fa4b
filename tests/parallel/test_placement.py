"""`adapt` over a mesh: the losses of one device, and a run that goes on over other devices with the same data."""

import jax
import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset
from medvfm_jax.parallel import RULES, BadMesh, Placement, make_mesh
from medvfm_jax.runs.run_directory import read_json, read_metrics
from medvfm_jax.train import AdaptConfig, adapt, training
from medvfm_jax.train.loop import fit

MODULE = training
STEPS = 4


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("cells") / "cells", "cells", 16, size=32)


def config(cells, out, **settings):
    return AdaptConfig(
        str(cells),
        model="sam-tiny-test",
        adapter="linear",
        prompt="none",
        out=out,
        batch_size=4,
        val_fraction=0.25,
        checkpoint_every=2,
        **{"steps": STEPS, "validate_every": 2, "schedule": "constant", "warmup": 0.0} | settings,
    )


def over(sizes, rules="replicated"):
    mesh = make_mesh(
        sizes, jax.devices()[: np.prod([int(part.partition("=")[2]) for part in sizes.split(",")])]
    )
    return Placement(mesh, RULES[rules](), rules)


def losses(result):
    return [line["loss"] for line in read_metrics(result.folder) if "loss" in line]


@pytest.fixture(scope="module")
def undisturbed(cells, tmp_path_factory):
    return adapt(config(cells, tmp_path_factory.mktemp("runs") / "one"))


@pytest.mark.slow
def test_a_run_over_a_mesh_has_the_losses_of_one_device_and_goes_on_over_another(
    cells, undisturbed, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "fit", stopping_after(2))
        with pytest.raises(KeyboardInterrupt):
            adapt(config(cells, tmp_path / "run"), placement=over("data=4", "fsdp"))
    result = adapt(config(cells, tmp_path / "run", resume=True), placement=over("data=2,model=2", "tensor"))
    assert len(losses(result)) == STEPS
    np.testing.assert_allclose(losses(result), losses(undisturbed), rtol=1e-4)
    assert result.val_dice == pytest.approx(undisturbed.val_dice, abs=0.02)
    placement = read_json(tmp_path / "run" / "config.json")["placement"]
    assert placement == {
        "mesh": {"clients": 1, "replica": 1, "data": 4, "model": 1}, "rules": "fsdp", "processes": 1, "sums": "float32",
        "accumulate": 1,
    }  # fmt: skip


def stopping_after(steps):
    """``fit`` in a process that is asked to end in its ``steps``-th step."""

    def interrupted(step, state, loader, hooks, **options):
        count = iter(range(1, STEPS + 1))
        return fit(step, state, loader, hooks, **options | {"agree": lambda _: next(count) == steps})

    return interrupted


def test_batches_that_cannot_be_divided_are_refused_before_anything_is_written(cells, tmp_path):
    with pytest.raises(BadMesh, match="choose a multiple of 8"):
        adapt(config(cells, tmp_path / "run"), placement=over("data=8"))
    assert not (tmp_path / "run").exists()
