import json
from collections import Counter
from pathlib import Path

import pytest

from medvfm_jax.data import BadDataset, BadSplit, Case, Dataset, nnunet_folds, split
from medvfm_jax.data.splits import stratified_order
from tests.data.small_folders import LABELS, assert_one_sentence

SITES = {"Oslo": 40, "Bern": 20, "Rome": 10}


def dataset_of(*who, folder="nowhere"):
    """Dataset of (case, patient, site); nothing is read to split it."""
    return Dataset("d", Path(folder), tuple(Case(c, p, s, (Path(c),)) for c, p, s in who), LABELS)


def at_sites(sites, per_patient=1, **options):
    """Dataset with that many patients at each site and per_patient cases of each."""
    return dataset_of(
        *[
            (f"{site}{i}_{visit}", f"{site}{i}", site)
            for site, n in sites.items()
            for i in range(n)
            for visit in range(per_patient)
        ],
        **options,
    )


def numbered(folder, count, patients=None):
    patients = patients or [f"p{i}" for i in range(count)]
    return dataset_of(*[(f"c{i}", patients[i], "all") for i in range(count)], folder=folder)


def write_folds(folder, folds):
    (folder / "splits_final.json").write_text(folds if isinstance(folds, str) else json.dumps(folds))


def patients(dataset, cases):
    return {dataset.case(c).patient for c in cases}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_patient", [1, 3])
def test_parts_are_disjoint_by_patient_and_cover_everything(seed, per_patient):
    dataset = at_sites(SITES, per_patient)
    parts = split(dataset, seed=seed)
    assert sorted(c for part in parts for c in part) == sorted(dataset.by_id)
    who = [patients(dataset, part) for part in parts]
    assert sum(map(len, who)) == 70  # nobody is in two parts
    assert [len(w) for w in who] == [46, 10, 14]  # val and test: round(0.15 × 70), round(0.2 × 70)


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    splits = [split(at_sites(SITES), seed=seed) for seed in (3, 3, 4)]
    assert splits[0] == splits[1]
    assert set(splits[0].test) != set(splits[2].test)


def test_the_order_of_the_cases_in_the_folder_does_not_matter():
    dataset = at_sites(SITES)
    backwards = Dataset("d", dataset.folder, dataset.cases[::-1], LABELS)
    for part, other in zip(split(dataset, seed=1), split(backwards, seed=1)):
        assert set(part) == set(other)


def test_five_folds_share_the_test_and_cover_the_rest_once():
    dataset = at_sites(SITES)
    plain, folds = split(dataset, seed=2), [split(dataset, seed=2, fold=k) for k in range(5)]
    assert {fold.test for fold in folds} == {plain.test}
    rest = sorted({*plain.train, *plain.val})
    assert sorted(c for fold in folds for c in fold.val) == rest
    assert all(sorted((*fold.train, *fold.val)) == rest for fold in folds)
    with pytest.raises(BadSplit, match="no fold 5; choose from 0 to 4"):
        split(dataset, fold=5)
    with pytest.raises(BadSplit, match="4 patients beside the test, too few for 5 folds"):
        split(numbered("few", 5), fold=0)


@pytest.mark.parametrize("seed", range(8))
def test_every_part_has_the_sites_in_proportion(seed):
    dataset = at_sites(SITES)
    for part in split(dataset, seed=seed):
        count = Counter(dataset.case(c).site for c in part)
        for site, n in SITES.items():
            assert abs(count[site] - n / 70 * len(part)) <= 2
            assert count[site] > 0


@pytest.mark.parametrize("seed", range(4))
def test_every_beginning_of_the_order_has_the_sites_in_proportion(seed):
    dataset = at_sites({"Oslo": 30, "Bern": 15})
    order = stratified_order(dataset, dataset.by_id, seed)
    assert sorted(order) == sorted(patients(dataset, dataset.by_id))
    for stop in range(1, 46):
        oslo = sum(p.startswith("Oslo") for p in order[:stop])
        assert abs(oslo - stop * 2 / 3) <= 1.5


def test_smaller_training_sets_lie_in_larger_ones_and_nothing_else_changes():
    dataset = at_sites(SITES, 2)
    whole = split(dataset, seed=2)
    smaller = set()
    for n in (1, 5, 20, 46):
        cut = split(dataset, seed=2, n_train=n)
        assert len(patients(dataset, cut.train)) == n
        assert len(cut.train) == 2 * n
        first = stratified_order(dataset, dataset.by_id, 2)[24 : 24 + n]  # after 14 for the test and 10
        assert patients(dataset, cut.train) == set(first)
        assert smaller <= set(cut.train) <= set(whole.train)
        assert (cut.val, cut.test) == (whole.val, whole.test)
        smaller = set(cut.train)
    assert smaller == set(whole.train)


@pytest.mark.parametrize("n_train", [0, -1, 47])
def test_more_training_patients_than_there_are_cannot_be_had(n_train):
    with pytest.raises(BadSplit) as caught:
        split(at_sites(SITES), n_train=n_train)
    assert_one_sentence(caught, n_train, "leaves 46")


def test_a_patient_seen_at_two_sites_stays_whole():
    dataset = dataset_of(*[(f"c{i}_{site}", f"p{i}", site) for i in range(20) for site in "AB"])
    parts = split(dataset)
    assert sum(len(patients(dataset, part)) for part in parts) == 20
    assert [len(part) for part in parts] == [26, 6, 8]


def test_shares_of_zero_and_few_cases():
    assert split(at_sites(SITES), val=0.0, test=0.0).train == tuple(at_sites(SITES).by_id)
    assert [len(p) for p in split(at_sites({"Oslo": 3}))] == [1, 1, 1]
    assert [len(p) for p in split(at_sites({"Oslo": 2}))] == [2, 0, 0]
    assert [len(p) for p in split(at_sites({"Oslo": 2}), val=0.0)] == [1, 0, 1]


@pytest.mark.parametrize("shares", [{"val": 0.5, "test": 0.5}, {"val": 1.0}, {"test": -0.1}])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(BadSplit) as caught:
        split(at_sites(SITES), **shares)
    assert_one_sentence(caught, "sum below 1")


def test_the_validation_cases_of_splits_final_are_our_test(tmp_path):
    dataset = numbered(tmp_path, 12)
    names = sorted(dataset.by_id)
    write_folds(tmp_path, [{"train": names[:9], "val": names[9:11]}, {"train": names[3:], "val": names[:3]}])
    first = split(dataset, fold=0)
    assert set(first.test) == set(names[9:11])
    assert set(first.train) | set(first.val) == set(names[:9])  # the twelfth is in no part
    assert len(first.val) == 2  # 15 of the 80 % that are left: round(0.1875 × 9)
    assert set(split(dataset, fold=1).test) == set(names[:3])
    assert split(dataset, fold=0, seed=5).test == first.test
    assert {split(dataset, fold=0, seed=s).val for s in range(6)} != {first.val}
    assert split(dataset, n_train=3)[1:] == first[1:]
    assert set(split(dataset, n_train=3).train) < set(first.train)
    assert len(split(dataset, use_file=False).test) == 2
    assert set().union(*split(dataset, use_file=False)) == set(names)


def test_a_test_list_in_splits_final_is_taken_as_it_is(tmp_path):
    dataset = numbered(tmp_path, 6)
    write_folds(tmp_path, [{"train": ["c0", "c1", "c2"], "val": ["c3"], "test": ["c4", "c5"]}])
    assert split(dataset) == (("c0", "c1", "c2"), ("c3",), ("c4", "c5"))


@pytest.mark.parametrize(
    ("fold", "who"),
    [
        ({"train": ["c0", "c2", "c4"], "val": ["c1", "c5"]}, "p"),
        ({"train": ["c0", "c1", "c4"], "val": ["c3"], "test": ["c2", "c5"]}, "q"),
        ({"train": ["c3", "c5"], "val": ["c4"], "test": ["c0", "c2"]}, "q"),
    ],
)
def test_a_file_that_puts_one_patient_into_two_parts_is_refused(tmp_path, fold, who):
    dataset = numbered(tmp_path, 6, ["p", "p", "q", "q", "r", "s"])
    write_folds(tmp_path, [fold])
    with pytest.raises(BadSplit) as caught:
        split(dataset, val=0.2)
    assert_one_sentence(caught, tmp_path, "splits_final.json", "two parts", f"patient '{who}'")


def test_one_patients_cases_stay_in_the_part_the_file_puts_them_into(tmp_path):
    dataset = numbered(tmp_path, 6, ["p", "p", "q", "q", "r", "s"])
    write_folds(tmp_path, [{"train": ["c0", "c1", "c4", "c5"], "val": ["c2"]}])
    cut = split(dataset, val=0.0)
    assert cut == (("c0", "c1", "c4", "c5"), (), ("c2",))  # c3 is q's too, but the file leaves it out


def test_a_file_that_names_a_missing_case_is_refused(tmp_path):
    dataset = numbered(tmp_path, 4)
    write_folds(tmp_path, [{"train": ["c0", "c1"], "val": ["c7"]}])
    with pytest.raises(BadDataset) as caught:
        split(dataset)
    assert_one_sentence(caught, tmp_path / "splits_final.json", "'c7'")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read (it is not JSON, "),
        ("{", "cannot be read (it is not JSON, "),
        ("{}", "holds {}"),
        ('{"a": [[[]]]}', 'holds {"a": [[[]]]}'),
        ("[1]", "has 1 as fold 0"),
        ('[["c0"]]', 'has ["c0"] as fold 0'),
        ('[{"train": ["c0"]}]', 'has {"train": ["c0"]} as fold 0'),
        ('[{"train": 1, "val": 2}]', 'has {"train": 1, "val": 2} as fold 0'),
        ('[{"train": ["c0"], "val": [["c1"]]}]', "as fold 0"),
        ('["ab"]', 'has "ab" as fold 0'),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, said):
    write_folds(tmp_path, content)
    with pytest.raises(BadSplit) as caught:
        split(numbered(tmp_path, 4))
    assert_one_sentence(
        caught, tmp_path / "splits_final.json", said, 'expected [{"train": [...], "val": [...]}, ...]'
    )
    assert not any(word in str(caught.value) for word in ("object", "subscript", "indices", "(0)"))


@pytest.mark.parametrize("fold", [1, 5, -1])
def test_a_fold_that_is_not_there_is_refused(tmp_path, fold):
    write_folds(tmp_path, [{"train": ["c0", "c1"], "val": ["c2"]}])
    with pytest.raises(BadSplit) as caught:
        split(numbered(tmp_path, 4), fold=fold)
    assert_one_sentence(caught, tmp_path / "splits_final.json", "has 1 fold;", f"no fold {fold}")


# scikit-learn 1.9.1: [t.tolist() for _, t in KFold(5, shuffle=True, random_state=12345).split(range(n))]
SKLEARN = {
    5: [[0], [4], [3], [1], [2]],
    7: [[3, 6], [0, 4], [1], [5], [2]],
    13: [[0, 7, 9], [3, 6, 10], [8, 11, 12], [1, 4], [2, 5]],
    23: [[3, 8, 10, 17, 19], [0, 7, 12, 15, 16], [6, 11, 14, 18, 20], [9, 13, 21, 22], [1, 2, 4, 5]],
}


@pytest.mark.parametrize("n", SKLEARN)
def test_folds_are_those_of_nnunet(n):
    names = [f"case_{i:02d}" for i in range(n)]
    folds = nnunet_folds(names[::-1])
    assert [fold["val"] for fold in folds] == [[names[i] for i in part] for part in SKLEARN[n]]
    for fold in folds:
        assert fold["train"] == sorted(set(names) - set(fold["val"]))


def test_nnunets_folds_can_be_written_and_used(tmp_path):
    dataset = numbered(tmp_path, 10)
    folds = nnunet_folds(list(dataset.by_id))
    write_folds(tmp_path, folds)
    tests = [split(dataset, fold=i).test for i in range(5)]
    assert [list(t) for t in tests] == [f["val"] for f in folds]
    assert sorted(c for t in tests for c in t) == sorted(dataset.by_id)


@pytest.mark.parametrize(("cases", "folds"), [(4, 5), (10, 1), (0, 5)])
def test_impossible_folds_are_refused(cases, folds):
    with pytest.raises(BadSplit) as caught:
        nnunet_folds([str(i) for i in range(cases)], folds)
    assert_one_sentence(caught, f"{cases} cases", f"{folds} folds")
