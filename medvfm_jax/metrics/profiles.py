"""Named metric profiles: which definition a score follows and what an empty mask is worth.

Published Dice and HD95 values follow different conventions; two of them differ by more than most methods
do. Every table therefore names its profile.

| | strict | nnunet | transunet_compat | medsam_compat |
|---|---|---|---|---|
| boundary | element (DeepMind) | voxel (MedPy) | voxel (MedPy) | element, 2-D as a one-voxel slab |
| HD95 | larger direction, weighted | pooled | pooled | not reported |
| unit of distances | mm | mm | voxels, spacing ignored | mm in 3-D, pixels in 2-D |
| NSD tolerance | 2 | 2 | not reported | 2; 0 where the case's mean Dice <= 0.2 |
| both empty: overlap | excluded | excluded | 0 | excluded |
| both empty: distance | excluded | excluded | 0 | – |
| missed (prediction empty): overlap | 0 | 0 | 0 | 0 |
| missed: distance | image diagonal | excluded | **0** | – |
| invented (reference empty): overlap | 0 | 0 | **1** | 0 |
| invented: distance | image diagonal | excluded | 0 | – |

NSD in an empty case: excluded if both are empty, else 0. The bold values are what the published code does,
not what one should do: with them a missed organ has a perfect HD95. They exist to reproduce published
numbers.
Sources: Metrics Reloaded (Maier-Hein et al. 2024) for the worst case of an undefined distance; nnU-Net v2's
`evaluate_predictions` for Dice and IoU (it has no surface scores; HD95 and ASSD follow v1's use of MedPy,
NaN when undefined); TransUNet's and SAMed's `calculate_metric_percase`; MedSAM's `compute_metrics`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

from medvfm_jax.catalog import Catalog, did_you_mean
from medvfm_jax.metrics.surface import Definition
from medvfm_jax.types import MedvfmError

Score = Literal["dice", "iou", "hd", "hd95", "assd", "nsd"]
SCORES: tuple[Score, ...] = ("dice", "iou", "hd", "hd95", "assd", "nsd")


class UnknownProfile(MedvfmError):
    """A metric profile that does not exist, or an option it does not have."""


class EmptyRule(NamedTuple):
    """What a case with an empty mask scores; None: excluded (and counted), "diagonal": of the image."""

    overlap: float | None
    distance: float | Literal["diagonal"] | None
    nsd: float | None


@dataclasses.dataclass(frozen=True)
class Profile:
    """One convention; the table in this module's docstring is the same thing in words.

    Attributes:
        name: "strict", "nnunet", ...
        description: what is special about it, in one line.
        scores: the ones it has.
        definition: of a boundary, "element" or "voxel".
        pooled: HD95 over both directions together instead of the larger of the two.
        unit: of distances.
        tolerance: of the NSD, in mm (in pixels for images without a spacing).
        both_empty: what a case scores whose masks are both empty.
        missed: the same where the prediction is empty and the reference is not.
        invented: the same where the reference is empty and the prediction is not.
        slab: measure a 2-D mask as the surface of a volume one voxel thick.
        nsd_needs_dice: NSD is 0 in a case whose mean Dice is not above this.
    """

    name: str
    description: str
    scores: tuple[Score, ...]
    definition: Definition
    pooled: bool
    unit: Literal["mm", "voxel"]
    tolerance: float
    both_empty: EmptyRule
    missed: EmptyRule
    invented: EmptyRule
    slab: bool = False
    nsd_needs_dice: float | None = None


_ZERO = EmptyRule(0.0, 0.0, 0.0)
_EXCLUDED = EmptyRule(None, None, None)
_WORST = EmptyRule(0.0, "diagonal", 0.0)
_NO_DISTANCE = EmptyRule(0.0, None, 0.0)

_ALL = (
    Profile(
        name="strict",
        description="an empty prediction or reference alone scores 0 and the image diagonal; empty in both is left out",
        scores=SCORES,
        definition="element",
        pooled=False,
        unit="mm",
        tolerance=2.0,
        both_empty=_EXCLUDED,
        missed=_WORST,
        invented=_WORST,
    ),
    Profile(
        name="nnunet",
        description="MedPy's boundary and pooled HD95; distances with an empty mask are left out",
        scores=SCORES,
        definition="voxel",
        pooled=True,
        unit="mm",
        tolerance=2.0,
        both_empty=_EXCLUDED,
        missed=_NO_DISTANCE,
        invented=_NO_DISTANCE,
    ),
    Profile(
        name="transunet_compat",
        description="as published code: distances in voxels, a missed organ has distance 0, for comparison only",
        scores=("dice", "hd95"),
        definition="voxel",
        pooled=True,
        unit="voxel",
        tolerance=2.0,
        both_empty=_ZERO,
        missed=_ZERO,
        invented=EmptyRule(1.0, 0.0, None),
    ),
    Profile(
        name="medsam_compat",
        description="as published code: NSD with 2-D masks as slabs, for comparison only",
        scores=("dice", "nsd"),
        definition="element",
        pooled=False,
        unit="mm",
        tolerance=2.0,
        both_empty=_EXCLUDED,
        missed=_NO_DISTANCE,
        invented=_NO_DISTANCE,
        slab=True,
        nsd_needs_dice=0.2,
    ),
)
PROFILES: Catalog[Profile] = Catalog(
    "metric profile", {profile.name: profile for profile in _ALL}, UnknownProfile
)


def get(name: str | Profile, **changes: Any) -> Profile:
    """Profile of that name, with fields replaced: `get("strict", tolerance=1.0)`; raises `UnknownProfile`."""
    profile = PROFILES[name] if isinstance(name, str) else name
    known = [field.name for field in dataclasses.fields(Profile)]
    for option in changes:
        if option not in known:
            raise UnknownProfile(f"A metric profile has no option '{option}'{did_you_mean(option, known)}.")
    return dataclasses.replace(profile, **changes)
