"""The share of the gradient's energy in each rank, and the grid of ranks."""

import json

import numpy as np
import pytest

from experiments.rank_curve import Plan, grid_of, markdown, spectrum_of
from medvfm_jax.settings.analyze import AblateConfig
from medvfm_jax.settings.analyze.ablate import read_grid


def test_energy_is_that_of_all_kernels_together():
    # Squared singular values 9, 1 and 4, 4, 2: rank 1 holds 13 of 20, rank 2 holds 18, rank 3 all.
    gradients = {"x": np.diag([3.0, 1.0]), "y": np.diag([2.0, 2.0, 2.0**0.5])}
    found = spectrum_of(gradients, 4)
    assert found["captured"] == pytest.approx([0.65, 0.9, 1.0, 1.0], abs=1e-6)
    assert found["rank_for_99"] == 3
    assert found["energy_rank_median"] == 2.0  # 1 of x, 3 of y
    assert found["stable_rank_median"] == pytest.approx((10 / 9 + 10 / 4) / 2, abs=1e-5)


def test_the_grid_is_one_that_ablate_reads(tmp_path):
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(grid_of(Plan(str(tmp_path), ranks=(1, 4)))))
    grid = read_grid(AblateConfig(grid=path, out=tmp_path / "runs"))
    assert len(grid.cells) == 2
    assert [one.seed for one in grid.cells[0].configs] == [0, 1]
    assert "lora.rank=4" in grid.cells[1].configs[0].set


def test_the_table_puts_energy_beside_dice():
    table = {
        "plan": {"seeds": [0]},
        "predicted": spectrum_of({"y": np.diag([2.0, 2.0, 2.0**0.5])}, 2),
        "measured": {"1": {"dice": {0: 0.5}, "mean": 0.5}, "2": {"dice": {0: 0.6}, "mean": 0.6}},
        "agreement": {"rho": 1.0, "p": 1.0, "n": 2}, "failed": [],
        "processor_seconds": {"prediction": 1.0, "all": 2.0},
    }  # fmt: skip
    assert "| 2 | 80.0 % | 0.6000 | 0.6000 |" in markdown(table)
