"""Scores of one case: reference and predicted label map -> one row per label, under a metric profile."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.metrics import overlap, surface
from medvfm_jax.metrics.instances import connected_components, instance_scores
from medvfm_jax.metrics.profiles import SCORES, EmptyRule, Profile
from medvfm_jax.metrics.profiles import get as get_profile
from medvfm_jax.types import IGNORE

INSTANCES = "instances"  # label of the row that holds the object-level scores

Row = dict[str, Any]


def score_case(
    reference: NDArray,
    prediction: NDArray,
    labels: Mapping[str, int | Sequence[int]],
    spacing: Sequence[float] | None = None,
    profile: str | Profile = "strict",
    ignore: int | None = None,
    instances: NDArray | tuple[NDArray, NDArray] | None = None,
) -> list[Row]:
    """Scores of one case: one row per label, under a metric profile.

    Background (value 0) is not scored. Pixels where the reference is ``ignore`` or IGNORE belong to neither mask.

    Args:
        reference: label map (n0, n1[, n2]).
        prediction: label map of the same shape.
        labels: {name: value}; a value that is a list is a region, the union of its labels.
        spacing: of each axis, in mm; None: distances are in pixels.
        profile: name of a metric profile, or the profile.
        ignore: value in the reference that does not count.
        instances: the reference instance map, or a pair (reference, predicted); a single map is compared with the
            connected components of the predicted foreground. Adds a row with label "instances" (`instance_scores`).

    Returns:
        One dict per label: "label", the scores of the profile ("dice", "iou", "hd", "hd95", "assd", "nsd"; None where
        excluded or not part of the profile), "volume_reference" and "volume_prediction" in mm² or mm³ (pixels without a
        spacing), "unit" of the distances ("mm", "pixel", "voxel"), and "empty" (None, "reference", "prediction" or
        "both": which masks were empty).

    Raises:
        MaskShapeMismatch: the maps differ in shape.
        BadSpacing: a spacing that is not one positive number per axis.
        UnknownProfile: no profile of this name.
    """
    rules = get_profile(profile)
    reference, prediction = np.asarray(reference), np.asarray(prediction)
    overlap.check_shapes(reference, prediction)
    steps = surface.check_spacing(spacing, reference.ndim)
    valid = reference != IGNORE
    if ignore is not None:
        valid &= reference != ignore
    rows = []
    for name, value in labels.items():
        values = [value] if isinstance(value, int | np.integer) else list(value)
        if values in ([0], [ignore]):
            continue
        masks = [_mask(array, values) & valid for array in (reference, prediction)]
        rows.append({"label": name} | _score_masks(*masks, steps, rules, spacing is not None))
    _require_dice(rows, rules)
    if instances is not None:
        rows.append(_instance_row(instances, prediction, valid))
    return rows


def score_masks(
    reference: NDArray,
    prediction: NDArray,
    spacing: Sequence[float] | None = None,
    profile: str | Profile = "strict",
) -> Row:
    """Scores of two masks: one row of `score_case`, without its label.

    Args:
        reference: (n0, n1[, n2]) bool.
        prediction: of the same shape.
        spacing: of each axis, in mm; None: distances are in pixels.
        profile: name of a metric profile, or the profile.

    Returns:
        {score: value}, see `score_case`.

    Raises:
        MaskShapeMismatch: the masks differ in shape.
        BadSpacing: a spacing that is not one positive number per axis.
        UnknownProfile: no profile of this name.
    """
    reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
    overlap.check_shapes(reference, prediction)
    steps = surface.check_spacing(spacing, reference.ndim)
    row = _score_masks(reference, prediction, steps, get_profile(profile), spacing is not None)
    _require_dice([row], get_profile(profile))
    return row


def _mask(array: NDArray, values: Sequence[int]) -> NDArray[np.bool_]:
    return array == values[0] if len(values) == 1 else np.isin(array, values)


def _score_masks(
    reference: NDArray, prediction: NDArray, steps: tuple[float, ...], rules: Profile, physical: bool
) -> Row:
    counts = overlap.count(reference, prediction)
    row: Row = {
        **dict.fromkeys(SCORES),
        "volume_reference": overlap.volume(counts.reference, steps),
        "volume_prediction": overlap.volume(counts.prediction, steps),
        "unit": _unit(rules, len(steps), physical),
        "empty": _which_is_empty(counts),
    }
    measured_in = steps if row["unit"] == "mm" else (1.0,) * len(steps)
    if row["empty"]:
        diagonal = float(np.linalg.norm(np.multiply(reference.shape, measured_in)))
        values = _empty_scores(_rule(rules, row["empty"]), diagonal)
    else:
        values = {"dice": overlap.dice(counts), "iou": overlap.iou(counts)}
        if set(rules.scores) & {"hd", "hd95", "assd", "nsd"}:
            values |= _distance_scores(reference, prediction, measured_in, rules)
    return row | {score: values[score] for score in rules.scores}


def _unit(rules: Profile, dimension: int, physical: bool) -> str:
    if rules.unit == "voxel":
        return "voxel"
    return "mm" if physical and not (rules.slab and dimension == 2) else "pixel"


def _which_is_empty(counts: overlap.Overlap) -> str | None:
    if counts.reference and counts.prediction:
        return None
    if not counts.reference and not counts.prediction:
        return "both"
    return "prediction" if counts.reference else "reference"


def _rule(rules: Profile, empty: str) -> EmptyRule:
    return {"both": rules.both_empty, "prediction": rules.missed, "reference": rules.invented}[empty]


def _empty_scores(rule: EmptyRule, diagonal: float) -> dict[str, float | None]:
    distance = diagonal if rule.distance == "diagonal" else rule.distance
    return {
        **dict.fromkeys(("dice", "iou"), rule.overlap),
        **dict.fromkeys(("hd", "hd95", "assd"), distance),
        "nsd": rule.nsd,
    }


def _distance_scores(
    reference: NDArray, prediction: NDArray, spacing: tuple[float, ...], rules: Profile
) -> dict[str, float]:
    if rules.slab and reference.ndim == 2:
        reference, prediction, spacing = reference[..., None], prediction[..., None], (*spacing, 1.0)
    distances = surface.surface_distances(reference, prediction, spacing, rules.definition)
    return {
        "hd": surface.hausdorff(distances),
        "hd95": surface.hausdorff_percentile(distances, 95.0, pooled=rules.pooled),
        "assd": surface.average_distance(distances),
        "nsd": surface.normalised_surface_distance(distances, rules.tolerance),
    }


def _require_dice(rows: list[Row], rules: Profile) -> None:
    """NSD of a case is 0 where its mean Dice is too low, in the profiles that say so."""
    defined = [row["dice"] for row in rows if row["dice"] is not None]
    if rules.nsd_needs_dice is None or not defined or np.mean(defined) > rules.nsd_needs_dice:
        return
    for row in rows:
        if row["nsd"] is not None:
            row["nsd"] = 0.0


def _instance_row(instances: NDArray | tuple[NDArray, NDArray], prediction: NDArray, valid: NDArray) -> Row:
    if isinstance(instances, tuple):
        reference, predicted = (np.asarray(array) for array in instances)
    else:
        reference, predicted = np.asarray(instances), connected_components((prediction > 0) & valid)
    overlap.check_shapes(reference, predicted)
    return {"label": INSTANCES} | instance_scores(
        np.where(valid, reference, 0), np.where(valid, predicted, 0)
    )
