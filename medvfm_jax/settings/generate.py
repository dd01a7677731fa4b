"""What `generate` can be asked for: one frozen record, the same for Python and the command line."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from medvfm_jax.settings.records import Settings, require

MOST_ELLIPSES = 64  # each is at least an eighth of the side long, so that no more have room beside each other


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig(Settings):
    """Make pictures from a model alone, to distil it without data."""

    teacher: str = "lite-medsam"
    """Model to make pictures from, or the run directory of one that was adapted or distilled."""
    teacher_weights: Path | None = None
    """File with the teacher's base weights, if they are not fetched automatically."""
    images: int = 32
    """Pictures to make."""
    ellipses: int = 3
    """Objects in a picture, at most: ellipses at random places that the teacher is to find there."""
    steps: int = 200
    """Optimiser steps of each picture."""
    batch_size: int = 4
    """Pictures that are made together: their statistics are taken over all, and they are pushed apart."""
    learning_rate: float = 0.1
    """Of Adam, on the logits of grey values from 0 to 1."""
    statistics: float = 1.0
    """Weight of the distance from the statistics that the encoder's batch norms saw in training; an encoder without
    batch norms has none."""
    answers: float = 1.0
    """Weight of the loss on what the teacher finds in the picture."""
    smoothness: float = 10.0
    """Weight of the squared differences of neighbouring pixels."""
    difference: float = 0.1
    """Weight of the mean cosine of two pictures' embeddings."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the computation."""
    seed: int = 0
    """Of what the pictures show, and of the noise that they start from."""
    offline: bool = False
    """Never touch the network."""
    resume: bool = False
    """Go on with the folder in --out: pictures that are there are kept, and the others are the same as undisturbed."""
    out: Path = Path("data/generated")
    """Data folder to create, with images/, masks/ and instances/."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises BadConfig, BadPath."""
        super().__post_init__()
        require(bool(self.teacher), "teacher", self.teacher, "a model or a run directory")
        for name in ("images", "ellipses", "steps", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.ellipses <= MOST_ELLIPSES, "ellipses", self.ellipses, f"at most {MOST_ELLIPSES}")
        require(0 < self.learning_rate <= 10, "learning_rate", self.learning_rate, "above 0, at most 10")
        for name in ("statistics", "answers", "smoothness", "difference"):
            found = getattr(self, name)
            require(0 <= found < math.inf, name, found, "a number of at least 0")
        require(self.statistics + self.answers > 0, "statistics + answers", 0, "above 0")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
