"""Anterior and posterior hippocampus in T1 MRI: LiteMedSAM adapted slice by slice against a U-Net from scratch.

python -m experiments.hippocampus --data DATA/Dataset004_Hippocampus --out runs/hippocampus

Measured so far: zero_shot, reference boxes, 12 test volumes, Dice 0.567 (0.533 to 0.600, mean of both parts).  With
120 steps of two slices the U-Net reached 0.15 on 16 volumes and 0.16 on all, and samed a validation Dice of 0: labels
fill two or three percent of a slice and are absent from many, and a Dice constant of one pixel pulled them to nothing.
With SAMed's own constant (train/task.py) and 250 steps of two slices, 16 training volumes, 12 test volumes: unet_few
0.194 (0.179 to 0.207), samed_few 0.181 (0.171 to 0.192).  Both are far from converged: the table needs
many more steps, and the rows with all volumes, and has not been made since.
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
