"""Nuclei in microscopy images, five acquisition sites: LiteMedSAM adapted against a U-Net from scratch.

python -m experiments.nuclei --data DATA/dsb2018 --out runs/nuclei
"""

import dataclasses
from pathlib import Path

import tyro

from experiments.few_labels import Plan, run


@dataclasses.dataclass(frozen=True)
class Nuclei(Plan):
    """Nuclei; an image counts as a patient."""

    out: Path = Path("runs/nuclei")
    metrics: tuple[str, ...] = ("dice", "hd95", "aji", "pq")


if __name__ == "__main__":
    run(tyro.cli(Nuclei), Path(__file__).parent / "results" / "nuclei.json")
