"""The cases a reader should look at: the best, the median and the worst of each label, as small arrays."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data import Dataset, LoadedCase
from medvfm_jax.images.intensity import to_unit
from medvfm_jax.images.writing import write_npz
from medvfm_jax.predict.case_prediction import Pictures, planes_of

_LONGEST = 150  # characters of a file name

Read = Callable[[str], tuple[LoadedCase, NDArray]]  # case name -> the case, its predicted class indices


def choose(rows: Iterable[Mapping[str, Any]], label: str) -> dict[str, Mapping[str, Any]]:
    """{"best", "median", "worst"} -> row of that label; fewer where there are fewer cases with a Dice."""
    scored = sorted(
        (row for row in rows if row["label"] == label and row.get("dice") is not None),
        key=lambda row: (-row["dice"], row["case"]),
    )
    picks = {"best": 0, "median": len(scored) // 2, "worst": len(scored) - 1}
    chosen: dict[str, Mapping[str, Any]] = {}
    for rank, index in picks.items() if scored else ():
        if all(row is not scored[index] for row in chosen.values()):
            chosen[rank] = scored[index]
    return chosen


def write_overlays(
    folder: Path, dataset: Dataset, rows: Sequence[Mapping[str, Any]], read: Read
) -> list[dict[str, Any]]:
    """Write image, reference and prediction of the chosen cases; -> the "overlays" of the scores.

    Of a volume the slice is taken where reference and prediction together are largest. An entry's "arrays" is
    an .npz file below the folder of the scores with image (H, W, C) uint8, reference and prediction
    (H, W) bool.
    """
    entries: list[dict[str, Any]] = []
    for label, value in dataset.labels.items():
        if value == 0:
            continue
        for rank, row in choose(rows, label).items():
            case, prediction = read(row["case"])
            image, reference, predicted = slice_to_show(dataset, case, prediction, value)
            safe = _file_name(f"{label}_{rank}_{row['case']}")
            arrays = {"image": image, "reference": reference, "prediction": predicted}
            write_npz(folder / f"{safe}.npz", arrays)
            entries.append(
                {
                    "case": row["case"],
                    "label": label,
                    "rank": rank,
                    "dice": row["dice"],
                    "arrays": f"{folder.name}/{safe}.npz",
                }
            )
    return entries


def _file_name(text: str) -> str:
    """Words as the name of a file, another one for other words."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in text)[:_LONGEST]
    return safe if safe == text else f"{safe}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def slice_to_show(
    dataset: Dataset, case: LoadedCase, prediction: NDArray, value: int
) -> tuple[NDArray, NDArray, NDArray]:
    """Picture (H, W, C) uint8, reference and predicted mask (H, W) of class ``value`` where both are largest."""
    references = [plane == value for plane in planes_of(case, case.label)]
    predicted = [plane == value for plane in planes_of(case, prediction)]
    sizes = [np.count_nonzero(a | b) for a, b in zip(references, predicted, strict=True)]
    index = int(np.argmax(sizes))
    picture = to_unit(Pictures(dataset, case)[index][..., :3])
    return np.rint(255 * picture).astype(np.uint8), references[index], predicted[index]
