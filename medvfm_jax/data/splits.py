"""Training, validation and test cases: by patient, every site in each part, the same for the same seed."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from medvfm_jax import json_text
from medvfm_jax.data.names import shown
from medvfm_jax.data.records import BadDataset, Dataset
from medvfm_jax.printable import counted
from medvfm_jax.types import MedvfmError

NNUNET_SEED, NNUNET_FOLDS = 12345, 5


class BadSplit(MedvfmError, ValueError):
    """A split that cannot be made from these cases."""


class Split(NamedTuple):
    """Ids of cases; no patient is in two parts.

    Attributes:
        train: cases to train on.
        val: cases for early stopping and the choice of a checkpoint.
        test: cases that are only scored.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


def split(
    dataset: Dataset,
    *,
    seed: int = 0,
    val: float = 0.15,
    test: float = 0.2,
    n_train: int | None = None,
    fold: int | None = None,
    use_file: bool = True,
) -> Split:
    """Split a dataset by patients into train, val and test.

    If the folder has nnU-Net's ``splits_final.json`` and ``use_file``, its fold decides: "val" of the file is our
    test, and our val is taken from its training patients, because early stopping must not see the test; a "test"
    list in the file is used unchanged, and then "val" of the file is our val.

    Args:
        dataset: the dataset.
        seed: of the order of patients.
        val: share of the patients; each site is represented in proportion.
        test: the same.
        n_train: keep only so many training patients, the first of the same order, so that smaller sets are subsets of
            larger ones and val and test never change.
        fold: 0 to 4 for cross-validation: test stays, and that fifth of the other patients is val, whatever ``val``
            says; with a file, the number of its fold (default 0).
        use_file: whether ``splits_final.json`` is looked for.

    Returns:
        The ids of each part, in the dataset's order.

    Raises:
        BadSplit: shares that leave nothing, an unknown fold, too few patients, a damaged file, or one that puts a
            patient into two parts.
        BadDataset: the file names a case that the dataset does not have.
    """
    given = _from_file(dataset, fold or 0) if use_file else None
    everyone = {case.id: case.patient for case in dataset.cases}
    if given is None:
        order = stratified_order(dataset, everyone, seed)
        sizes = _counts(len(order), test, val)
        test_patients, rest = order[: sizes[0]], order[sizes[0] :]
        own = slice(0, sizes[1]) if fold is None else _fold(dataset, len(rest), fold)
        val_patients, train_patients = rest[own], rest[: own.start] + rest[own.stop :]
    else:
        train_cases, val_cases, test_cases = given
        order = stratified_order(dataset, train_cases, seed)
        own_val = _counts(len(order), val / (1 - test) if test < 1 else val)[0] if not test_cases else 0
        test_patients = [everyone[c] for c in (test_cases or val_cases)]
        val_patients = [everyone[c] for c in val_cases] if test_cases else order[:own_val]
        train_patients = order[own_val:]
        _check_disjoint(dataset, train_patients, val_patients, test_patients)
    if n_train is not None:
        if not 1 <= n_train <= len(train_patients):
            raise BadSplit(
                f"{n_train} training patients were asked for; {dataset.folder} leaves {len(train_patients)} after "
                "validation and test."
            )
        train_patients = train_patients[:n_train]
    if not train_patients:
        raise BadSplit(
            f"{dataset.folder} has {counted(len(everyone), 'case')}, too few to leave any for training."
        )
    listed = set(everyone) if given is None else set().union(*given)
    parts = (
        tuple(c.id for c in dataset.cases if c.id in listed and c.patient in chosen)
        for chosen in map(set, (train_patients, val_patients, test_patients))
    )
    return Split(*parts)


def stratified_order(dataset: Dataset, cases: Iterable[str], seed: int) -> list[str]:
    """Patients of these cases in random order such that every run of them has all sites in proportion.

    Each site's patients are shuffled and spread evenly over (0, 1) with a random offset; the order is that
    of these positions. A patient seen at several sites counts for the first.
    """
    site_of: dict[str, str] = {}
    for case_id in sorted(cases):
        case = dataset.case(case_id)
        site_of.setdefault(case.patient, case.site)
    rng = np.random.default_rng([seed, 0x5B117])
    position: dict[str, float] = {}
    for site in sorted(set(site_of.values())):
        patients = sorted(p for p, s in site_of.items() if s == site)
        shuffled = [patients[i] for i in rng.permutation(len(patients))]
        offset = rng.uniform()
        position |= {p: (i + offset) / len(patients) for i, p in enumerate(shuffled)}
    return sorted(position, key=lambda p: (position[p], p))


def nnunet_folds(
    cases: Sequence[str], folds: int = NNUNET_FOLDS, seed: int = NNUNET_SEED
) -> list[dict[str, list[str]]]:
    """The folds nnU-Net v2 makes when there is no ``splits_final.json``.

    A shuffled K-fold over the sorted names with numpy's legacy generator, as scikit-learn's KFold does it.  By
    case, as in nnU-Net; patients with several cases need a file of their own.

    Args:
        cases: ids.
        folds: how many.
        seed: of the shuffle.

    Returns:
        One {"train": [...], "val": [...]} per fold, sorted ids.

    Raises:
        BadSplit: ``folds`` is not between 2 and the number of cases.
    """
    names = sorted(cases)
    if not 2 <= folds <= len(names):
        raise BadSplit(f"{counted(len(names), 'case')} cannot be cut into {folds} folds.")
    order = np.arange(len(names))
    np.random.RandomState(seed).shuffle(order)
    parts = np.array_split(order, folds)
    return [
        {
            "train": [names[i] for i in sorted(set(range(len(names))) - set(part.tolist()))],
            "val": [names[i] for i in sorted(part.tolist())],
        }
        for part in parts
    ]


def _fold(dataset: Dataset, patients: int, fold: int) -> slice:
    """Where one of NNUNET_FOLDS parts of so many patients lies; in ``stratified_order`` each has all sites."""
    if not 0 <= fold < NNUNET_FOLDS:
        raise BadSplit(f"There is no fold {fold}; choose from 0 to {NNUNET_FOLDS - 1}.")
    if patients < NNUNET_FOLDS:
        raise BadSplit(
            f"{dataset.folder} leaves {counted(patients, 'patient')} beside the test, too few for {NNUNET_FOLDS} folds."
        )
    ends = np.linspace(0, patients, NNUNET_FOLDS + 1).round().astype(int).tolist()
    return slice(ends[fold], ends[fold + 1])


def _counts(patients: int, *shares: float) -> tuple[int, ...]:
    """Patients per share, at least one where a share is asked for and there are enough."""
    if any(not 0 <= s < 1 for s in shares) or sum(shares) >= 1:
        raise BadSplit(f"Shares of {shares} leave nothing to train on; expected a sum below 1.")
    enough = patients > sum(s > 0 for s in shares)
    return tuple(max(1, round(s * patients)) if s > 0 and enough else 0 for s in shares)


def _from_file(dataset: Dataset, fold: int) -> tuple[list[str], list[str], list[str]] | None:
    path = dataset.folder / "splits_final.json"
    if not path.is_file():
        return None
    expected = 'expected [{"train": [...], "val": [...]}, ...]'
    try:
        folds = json_text.read(path)
    except json_text.BadJson as error:
        raise BadSplit(f"{path} cannot be read ({error}); {expected}.") from error
    if not isinstance(folds, list):
        raise BadSplit(f"{path} holds {json_text.shown(folds)}; {expected}.")
    if not 0 <= fold < len(folds):  # no counting from the end
        raise BadSplit(f"{path} has {counted(len(folds), 'fold')}; there is no fold {fold}.")
    if not _is_fold(folds[fold]):
        raise BadSplit(
            f"{path} has {json_text.shown(folds[fold])} as fold {fold}; {expected}, of names of cases."
        )
    train, val, test = (list(map(str, folds[fold].get(part, []))) for part in ("train", "val", "test"))
    unknown = sorted({*train, *val, *test} - set(dataset.by_id))
    if unknown:
        raise BadDataset(f"{path} names the case {shown(unknown[0])}, which {dataset.folder} does not have.")
    return train, val, test


def _is_fold(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(part, list) and all(isinstance(name, str | int) for name in part)
        for part in (value.get("train"), value.get("val"), value.get("test", []))
    )


def _check_disjoint(dataset: Dataset, *parts: Sequence[str]) -> None:
    seen: set[str] = set()
    for part in parts:
        shared = sorted(seen & set(part))
        if shared:
            raise BadSplit(
                f"splits_final.json in {dataset.folder} puts patient '{shared[0]}' into two parts; "
                "split by patient."
            )
        seen |= set(part)
