"""Several runs that answer as one: the mean of their probabilities."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.images.preparation import Preparation
from medvfm_jax.predict.predictor import Predictor
from medvfm_jax.settings.records import BadConfig
from medvfm_jax.types import ModelSpec


class EnsemblePredictor:
    """Predictors without prompts, taken as one by the mean of their probabilities."""

    def __init__(self, members: Sequence[Predictor]):
        self._members = tuple(members)

    @property
    def spec(self) -> ModelSpec:
        """That of the first member; all see volumes alike."""
        return self._members[0].spec

    def classes(self, picture: NDArray) -> NDArray[np.int32]:
        """Picture (H, W, C) -> class index (H, W)."""
        return self.probabilities(picture).argmax(0).astype(np.int32)

    def probabilities(self, window: NDArray) -> NDArray[np.float32]:
        """Picture (H, W, C), or slab or patch (D, H, W, C) -> probability of each class, classes first."""
        return mean([member.probabilities(window) for member in self._members])


def mean(probabilities: Sequence[NDArray]) -> NDArray[np.float32]:
    """Mean of arrays of one shape."""
    return sum(probabilities[1:], probabilities[0]) / np.float32(len(probabilities))


class Member(NamedTuple):
    """What two runs have to agree on; metadata: of the delta."""

    spec: ModelSpec
    preparation: Preparation
    metadata: Mapping[str, Any]


def check_member(run: Path, member: Member, first: Member) -> None:
    """Raise BadConfig unless the run in a folder answers the same question as the first about the same voxels."""
    if first.metadata["prompt"] != "none":
        raise BadConfig("An ensemble averages models without prompts; these runs were trained with some.")
    if first.spec.distance_map:
        raise BadConfig("An ensemble averages classes; these runs tell instances apart by a distance map.")
    differs = [
        what
        for what, of in (
            ("prompts", lambda m: m.metadata["prompt"]),
            ("labels", lambda m: m.metadata.get("labels")),
            ("channels", lambda m: m.metadata.get("channel_names")),
            ("preparation of volumes", lambda m: m.preparation),
            ("window", lambda m: m.spec.input_shape if m.spec.rank == 3 else None),
            ("tile", lambda m: m.spec.tile),
        )
        if of(first) != of(member)
    ]
    if differs:
        raise BadConfig(
            f"{run} cannot join the ensemble: its {' and '.join(differs)} differ from those of the first run."
        )
