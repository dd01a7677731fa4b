"""Which client of a federation has which patients, and what a scanner of its own does to the intensities.

Every rule works on patients, so that a patient is at one client only, and gives the same partition for the same
seed.  ``assign`` makes a dataset whose sites are the clients; splits, batches and scores then follow by themselves.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvfm_jax.data.records import Case, Dataset
from medvfm_jax.data.store import store_of
from medvfm_jax.types import MedvfmError

_DRAWS = 1000  # of Dirichlet shares until every client has a patient
_BINS = 4  # strata of a dataset with one label


class BadPartition(MedvfmError, ValueError):
    """A partition that cannot be made from these patients."""


class ScannerShift(NamedTuple):
    """Intensities x in 0..1 -> clip(gain x^gamma + bias, 0, 1).

    Models that scale each image by its own range see gamma and what is clipped, not gain and bias alone.
    """

    gamma: float = 1.0
    gain: float = 1.0
    bias: float = 0.0

    def __call__(self, array: NDArray) -> NDArray:
        """Image of any shape -> the same in its own units: uint8 stays uint8, anything else becomes float32.

        0 and 1 are 0 and 255 of uint8, else the least and the greatest value of the image.
        """
        if array.dtype == np.uint8:
            low, high = 0.0, 255.0
        else:
            low, high = float(array.min()), float(array.max())
        if high <= low:
            return array
        unit = (array.astype(np.float32) - np.float32(low)) / np.float32(high - low)
        moved = np.clip(self.gain * unit**self.gamma + self.bias, 0, 1) * (high - low) + low
        return np.rint(moved).astype(np.uint8) if array.dtype == np.uint8 else moved.astype(np.float32)


class Partition(NamedTuple):
    """clients: name -> its patients, none at two clients; shifts: name -> simulated scanner, if any."""

    clients: Mapping[str, tuple[str, ...]]
    shifts: Mapping[str, ScannerShift] = {}


class Holding(NamedTuple):
    """What one client has; pixels: of each label but the background, over all its images (voxels in volumes)."""

    client: str
    patients: int
    images: int
    pixels: Mapping[str, int]


def by_site(dataset: Dataset, least: int = 1) -> Partition:
    """A client per site, in order of name; sites with fewer than ``least`` patients are left out.

    A patient seen at several sites belongs to the first in the order of its cases, as in ``splits``.
    Raises BadPartition.
    """
    found: dict[str, list[str]] = {}
    for patient, cases in _patients(dataset).items():
        found.setdefault(cases[0].site, []).append(patient)
    kept = {site: tuple(found[site]) for site in sorted(found) if len(found[site]) >= least}
    if not kept:
        largest = max(found, key=lambda site: len(found[site]))
        raise BadPartition(
            f"No site of {dataset.folder} has {least} patients; the largest, {largest}, has {len(found[largest])}."
        )
    return Partition(kept)


def by_patient(dataset: Dataset, clients: int, seed: int = 0) -> Partition:
    """Patients dealt at random, as many to each client as to any other, give or take one. Raises BadPartition."""
    patients = _shuffled(dataset, clients, 1, seed)
    return Partition({name: tuple(sorted(patients[i::clients])) for i, name in enumerate(_names(clients))})


def quantity(dataset: Dataset, clients: int, alpha: float, seed: int = 0, least: int = 1) -> Partition:
    """Sizes in proportion to Dirichlet(alpha, ..., alpha); small alpha, large skew; at least ``least`` each.

    Raises BadPartition.
    """
    _require_positive(alpha)
    patients = _shuffled(dataset, clients, least, seed)
    shares = _generator(seed, "sizes").dirichlet(np.full(clients, alpha))
    wanted = shares * (len(patients) - least * clients)
    sizes = least + np.floor(wanted).astype(int)
    for i in np.argsort(np.floor(wanted) - wanted, kind="stable")[: len(patients) - sizes.sum()]:
        sizes[i] += 1  # largest remainders
    parts = np.split(np.array(patients), np.cumsum(sizes)[:-1])
    return Partition({name: tuple(sorted(part.tolist())) for name, part in zip(_names(clients), parts)})


def dirichlet(
    dataset: Dataset,
    clients: int,
    alpha: float,
    seed: int = 0,
    least: int = 1,
    classes: Mapping[str, str] | None = None,
) -> Partition:
    """Label skew: the patients of each class are divided in proportions drawn from Dirichlet(alpha, ..., alpha).

    classes: patient -> class; by default ``strata``.  Proportions are drawn again until every client has ``least``
    patients.  Hsu et al. 2019 draw a label distribution per client; dividing each class instead is the common
    variant in which every patient is used once (Yurochkin et al. 2019).  Raises BadPartition.
    """
    _require_positive(alpha)
    patients = _shuffled(dataset, clients, least, seed)
    classes = strata(dataset) if classes is None else classes
    groups = [[p for p in patients if classes[p] == name] for name in sorted(set(classes.values()))]
    rng = _generator(seed, "shares")
    for _ in range(_DRAWS):
        parts: list[list[str]] = [[] for _ in range(clients)]
        for group in groups:
            cuts = np.rint(np.cumsum(rng.dirichlet(np.full(clients, alpha))) * len(group)).astype(int)
            for part, piece in zip(parts, np.split(np.array(group), cuts[:-1])):
                part += piece.tolist()
        if min(map(len, parts)) >= least:
            return Partition({name: tuple(sorted(part)) for name, part in zip(_names(clients), parts)})
    raise BadPartition(
        f"{_DRAWS} draws with alpha={alpha:g} left a client with fewer than {least} of {len(patients)} patients; "
        "use a larger alpha or fewer clients."
    )


def intensity(partition: Partition, strength: float, seed: int = 0) -> Partition:
    """The same patients, each client with a scanner of its own; ``strength`` s >= 0, 0 changes nothing.

    gamma = e^u with u in [-s, s], gain in [1 - s/2, 1 + s/2], bias in [-s/10, s/10], uniform and independent; a
    client's scanner depends on the seed and its name alone.  Raises BadPartition.
    """
    if not 0 <= strength < 2:
        raise BadPartition(
            f"The strength of scanner shifts is {strength:g}; expected at least 0 and below 2."
        )
    shifts = {}
    for name in partition.clients:
        u, v, w = _generator(seed, f"scanner {name}").uniform(-1, 1, 3) * strength
        shifts[name] = ScannerShift(float(np.exp(u)), float(1 + v / 2), float(w / 10))
    return partition._replace(shifts=shifts)


def strata(dataset: Dataset) -> dict[str, str]:
    """Patient -> class by which label skew divides; reads every label map.

    Several labels: the one that is largest in the patient in relation to its mean over patients, so that large
    organs do not take all; one label: the quarter of the patients by its share of the image.  An interpretation:
    in segmentation a patient has no single label.
    """
    rows = {
        patient: np.sum([_counted(dataset, case) for case in cases], axis=0)
        for patient, cases in _patients(dataset).items()
    }
    counts = np.array(list(rows.values()), float)
    shares = counts[:, 1:] / np.maximum(counts.sum(1, keepdims=True), 1)
    if shares.shape[1] > 1:
        labels = list(dataset.labels)[1:]
        relative = shares / np.maximum(shares.mean(0), 1e-12)
        return {patient: labels[k] for patient, k in zip(rows, relative.argmax(1))}
    rank = np.argsort(np.argsort(shares[:, 0], kind="stable"), kind="stable")
    return {patient: f"quarter {1 + _BINS * int(r) // len(rows)}" for patient, r in zip(rows, rank)}


def assign(dataset: Dataset, partition: Partition) -> Dataset:
    """The dataset as the federation has it: sites are clients, images come from their scanners.

    Patients of no client are left out.  Raises BadPartition if a patient is at two clients or is unknown.
    """
    client_of: dict[str, str] = {}
    known = _patients(dataset)
    for client, patients in partition.clients.items():
        for patient in patients:
            if patient not in known:
                raise BadPartition(
                    f"Client '{client}' has the patient '{patient}', which {dataset.folder} has not."
                )
            if client_of.setdefault(patient, client) != client:
                raise BadPartition(f"Patient '{patient}' is at '{client_of[patient]}' and at '{client}'.")
    cases = tuple(
        dataclasses.replace(case, site=client_of[case.patient])
        for case in dataset.cases
        if case.patient in client_of
    )

    def alter(case: Case, array: NDArray) -> NDArray:
        shift = partition.shifts.get(client_of[case.patient])
        return array if shift is None else shift(array)

    return dataclasses.replace(dataset, cases=cases, alter=alter if partition.shifts else None)


def holdings(dataset: Dataset, cases: Sequence[str] | None = None) -> list[Holding]:
    """What each client of an assigned dataset has, in order of name; reads the label maps of ``cases`` (all)."""
    chosen = dataset.cases if cases is None else [dataset.case(name) for name in cases]
    table = []
    for client in sorted({case.site for case in chosen}):
        own = [case for case in chosen if case.site == client]
        counts = np.sum([_counted(dataset, case) for case in own], axis=0)
        pixels = {label: int(n) for label, n in zip(dataset.labels, counts) if dataset.labels[label] > 0}
        table.append(Holding(client, len({case.patient for case in own}), len(own), pixels))
    return table


def _patients(dataset: Dataset) -> dict[str, list[Case]]:
    """Patient -> its cases in order of name; patients in order of name."""
    found: dict[str, list[Case]] = {}
    for case in sorted(dataset.cases, key=lambda case: (case.patient, case.id)):
        found.setdefault(case.patient, []).append(case)
    return found


def _counted(dataset: Dataset, case: Case) -> NDArray[np.int64]:
    """Pixels of each class index of a case; none for a case without a reference."""
    label = store_of(dataset)(case.id).label
    if label is None:
        return np.zeros(dataset.classes, np.int64)
    return np.bincount(label[label >= 0].ravel(), minlength=dataset.classes)[: dataset.classes]


def _shuffled(dataset: Dataset, clients: int, least: int, seed: int) -> list[str]:
    patients = list(_patients(dataset))
    if clients < 1 or least < 1 or clients * least > len(patients):
        raise BadPartition(
            f"{len(patients)} patients of {dataset.folder} cannot be divided over {clients} clients with at least "
            f"{least} each."
        )
    return [patients[i] for i in _generator(seed, "order").permutation(len(patients))]


def _names(clients: int) -> list[str]:
    width = len(str(clients - 1))
    return [f"client_{i:0{width}d}" for i in range(clients)]


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, *purpose.encode()])


def _require_positive(alpha: float) -> None:
    if not alpha > 0:
        raise BadPartition(f"alpha of a Dirichlet distribution is {alpha:g}; expected a number above 0.")
