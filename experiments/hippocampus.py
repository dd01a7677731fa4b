"""Anterior and posterior hippocampus in T1 MRI: LiteMedSAM adapted slice by slice against a U-Net from scratch.

python -m experiments.hippocampus --data DATA/Dataset004_Hippocampus --out runs/hippocampus

Not measured yet: the recipe has not been run on this dataset.
"""

import dataclasses
from pathlib import Path

import tyro

from experiments.few_labels import Plan, run


@dataclasses.dataclass(frozen=True)
class Hippocampus(Plan):
    """Hippocampus; predicted slice by slice, scored as volumes in mm."""

    out: Path = Path("runs/hippocampus")
    cases: int | None = 16
    metrics: tuple[str, ...] = ("dice", "hd95", "nsd")


if __name__ == "__main__":
    run(tyro.cli(Hippocampus), Path(__file__).parent / "results" / "hippocampus.json")
