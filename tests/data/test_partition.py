"""Who has what in a federation: every patient once, sizes and skew as asked, scanners that change images alone."""

import dataclasses

import numpy as np
import pytest

from medvfm_jax.data import make_phantom_dataset, open_dataset, read_case, split
from medvfm_jax.data.partition import (
    BadPartition,
    Partition,
    ScannerShift,
    assign,
    by_patient,
    by_site,
    dirichlet,
    holdings,
    intensity,
    quantity,
    strata,
)
from medvfm_jax.data.store import store_of

N = 24


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    folder = make_phantom_dataset(tmp_path_factory.mktemp("partition") / "cells", "cells", N, size=24)
    return open_dataset(folder)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = make_phantom_dataset(tmp_path_factory.mktemp("partition") / "volumes", "volumes", 6, size=12)
    return open_dataset(folder)


RULES = {
    "site": lambda dataset, seed: by_site(dataset),
    "patient": lambda dataset, seed: by_patient(dataset, 5, seed),
    "quantity": lambda dataset, seed: quantity(dataset, 5, 0.3, seed),
    "dirichlet": lambda dataset, seed: dirichlet(dataset, 5, 0.5, seed),
    "intensity": lambda dataset, seed: intensity(by_patient(dataset, 5, seed), 0.5, seed),
}


def sizes(partition):
    return np.array([len(patients) for patients in partition.clients.values()])


@pytest.mark.parametrize("rule", RULES)
def test_every_patient_is_at_one_client_and_the_seed_decides(cells, rule):
    for seed in range(5):
        partition = RULES[rule](cells, seed)
        held = [patient for patients in partition.clients.values() for patient in patients]
        assert sorted(held) == sorted({case.patient for case in cells.cases})
        assert sizes(partition).min() >= 1
        assert RULES[rule](cells, seed) == partition
    others = {str(RULES[rule](cells, seed)) for seed in range(5)}
    assert len(others) == (1 if rule == "site" else 5)


def test_the_order_of_cases_does_not_matter(cells):
    turned = dataclasses.replace(cells, cases=cells.cases[::-1])
    for make in RULES.values():
        assert make(turned, 1) == make(cells, 1)


def test_sites_are_clients_and_small_ones_are_left_out(cells):
    partition = by_site(cells)
    assert list(partition.clients) == ["bright", "dark"]
    assert set(partition.clients["dark"]) == {case.id for case in cells.cases if case.site == "dark"}
    fewer = dataclasses.replace(cells, cases=(*cells.cases[::2], cells.cases[1]))
    assert list(by_site(fewer, 2).clients) == ["dark"]
    with pytest.raises(BadPartition, match="the largest, dark, has 12"):
        by_site(fewer, 13)


def test_a_patient_of_two_sites_belongs_to_the_first(cells):
    first, second, *others = cells.cases
    cases = (dataclasses.replace(second, patient="x"), dataclasses.replace(first, patient="x"), *others)
    partition = by_site(dataclasses.replace(cells, cases=cases))
    assert "x" in partition.clients["dark"]
    assert "x" not in partition.clients["bright"]
    moved = assign(dataclasses.replace(cells, cases=cases), partition)
    assert {case.site for case in moved.cases if case.patient == "x"} == {"dark"}


def test_sizes_are_even_or_skewed_as_asked(cells):
    assert sizes(by_patient(cells, 5)).tolist() == [5, 5, 5, 5, 4]
    even = [np.ptp(sizes(quantity(cells, 4, 1e6, seed))) for seed in range(10)]
    skewed = [np.ptp(sizes(quantity(cells, 4, 0.1, seed))) for seed in range(10)]
    assert max(even) <= 1
    assert np.mean(skewed) > 10
    assert all(sizes(quantity(cells, 4, 0.1, seed, least=3)).min() >= 3 for seed in range(10))


def test_label_skew_follows_alpha(cells):
    classes = {case.patient: "even" if i % 2 else "odd" for i, case in enumerate(cells.cases)}

    def shares(alpha, seed):  # (classes, clients)
        clients = dirichlet(cells, 3, alpha, seed, classes=classes).clients.values()
        count = np.array(
            [[sum(classes[p] == name for p in part) for part in clients] for name in ("even", "odd")]
        )
        return count / count.sum(1, keepdims=True)

    for seed in range(5):
        np.testing.assert_allclose(shares(1e6, seed), 1 / 3, atol=1e-9)
    largest = [shares(0.05, seed).max(1).mean() for seed in range(10)]
    assert np.mean(largest) > 0.8
    # Of a share of Dirichlet(a, a, a) the variance is (1/3)(2/3) / (3 a + 1).
    measured = np.var([shares(2.0, seed)[:, 0] for seed in range(400)])
    assert measured == pytest.approx(2 / 9 / 7, rel=0.2)


def test_classes_of_patients_are_quarters_of_one_label_or_the_label_that_stands_out(cells, volumes):
    found = strata(cells)
    fraction = {c.patient: np.mean(read_case(cells, c).label > 0) for c in cells.cases}
    ordered = [found[p] for p in sorted(fraction, key=fraction.get)]
    assert ordered == [f"quarter {1 + i // 6}" for i in range(N)]

    found = strata(volumes)
    assert set(found.values()) <= {"shell", "core"}
    counts = {c.patient: np.bincount(read_case(volumes, c).label.ravel(), minlength=3) for c in volumes.cases}
    core = {p: n[2] / n.sum() for p, n in counts.items()}
    shell = {p: n[1] / n.sum() for p, n in counts.items()}
    for patient, name in found.items():
        ratio = [core[patient] / np.mean(list(core.values())), shell[patient] / np.mean(list(shell.values()))]
        assert name == ("core" if ratio[0] > ratio[1] else "shell")


def test_an_assigned_dataset_has_clients_as_sites_and_splits_each_of_them(cells):
    assigned = assign(cells, by_patient(cells, 3, 1))
    cut = split(assigned, seed=0, val=0.25, test=0.25)
    for part in cut:
        assert {assigned.case(name).site for name in part} == {"client_0", "client_1", "client_2"}
    assert [c.id for c in assigned.cases] == [c.id for c in cells.cases]


def test_holdings_count_what_is_there(cells, volumes):
    assigned = assign(cells, by_site(cells))
    table = holdings(assigned)
    assert [(h.client, h.patients, h.images) for h in table] == [("bright", 12, 12), ("dark", 12, 12)]
    for holding in table:
        own = [case for case in assigned.cases if case.site == holding.client]
        expected = sum(int((read_case(assigned, case).label == 1).sum()) for case in own)
        assert holding.pixels == {"foreground": expected}
    (only,) = holdings(assigned, [assigned.cases[0].id])
    assert (only.client, only.images) == ("dark", 1)
    assert set(holdings(volumes)[0].pixels) == {"shell", "core"}


def test_a_scanner_changes_images_and_nothing_else(cells, volumes):
    for dataset in (cells, volumes):
        patients = tuple(sorted({case.patient for case in dataset.cases}))
        one = Partition({"only": patients}, {"only": ScannerShift(1.5, 0.9, 0.05)})
        moved, case = assign(dataset, one), dataset.cases[0]
        before, after = read_case(dataset, case), read_case(moved, moved.cases[0])
        np.testing.assert_array_equal(after.label, before.label)
        assert (after.image.array != before.image.array).any()
        np.testing.assert_array_equal(after.image.array, ScannerShift(1.5, 0.9, 0.05)(before.image.array))
        assert (store_of(moved)(case.id).image != store_of(dataset)(case.id).image).any()


def test_scanner_shifts_as_formula(cells):
    picture = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_array_equal(ScannerShift()(picture), picture)
    expected = np.rint(255 * np.clip(0.8 * (picture / 255) ** 2 + 0.1, 0, 1))
    moved = ScannerShift(2.0, 0.8, 0.1)(picture)
    assert moved.dtype == np.uint8
    np.testing.assert_array_equal(moved, expected)
    hounsfield = np.array([-1000, 0, 1000], np.int16)
    np.testing.assert_allclose(ScannerShift(2.0)(hounsfield), [-1000, -500, 1000], atol=1e-3)
    constant = np.full(3, 7, np.int16)
    np.testing.assert_array_equal(ScannerShift(2.0)(constant), constant)

    shifts = intensity(by_patient(cells, 4), 0.5, seed=3).shifts
    assert len(set(shifts.values())) == 4
    for gamma, gain, bias in shifts.values():
        assert abs(np.log(gamma)) <= 0.5
        assert abs(gain - 1) <= 0.25
        assert abs(bias) <= 0.05
    assert set(intensity(by_patient(cells, 4), 0.0).shifts.values()) == {ScannerShift()}
    fewer = intensity(by_patient(cells, 2), 0.5, seed=3).shifts
    assert fewer.items() <= shifts.items()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda d: by_patient(d, 25), "24 patients of .* cannot be divided over 25 clients"),
        (lambda d: by_patient(d, 0), "over 0 clients"),
        (lambda d: quantity(d, 5, 0.0), "alpha of a Dirichlet distribution is 0"),
        (lambda d: quantity(d, 5, 1.0, least=5), "5 clients with at least 5 each"),
        (lambda d: dirichlet(d, 12, 1e-3, least=2), "draws with alpha=0.001 left a client with fewer than 2"),
        (lambda d: intensity(by_patient(d, 2), 2.0), "strength of scanner shifts is 2"),
        (lambda d: assign(d, Partition({"a": ("nobody",)})), "'nobody', which .* has not"),
        (
            lambda d: assign(d, Partition({"a": ("cell_000",), "b": ("cell_000",)})),
            "'cell_000' is at 'a' and at 'b'",
        ),
    ],
)
def test_what_cannot_be_divided_is_one_sentence(cells, make, sentence):
    with pytest.raises(BadPartition, match=sentence):
        make(cells)
