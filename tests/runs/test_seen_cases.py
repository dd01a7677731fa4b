"""What a run and its teachers have seen, from their records."""

from medvfm_jax.runs.seen_cases import Seen, of_data, read, rows, seen_by


def test_own_cases_and_those_of_teachers_and_of_theirs():
    split = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    first = {"resolved": {"split": split, "data_sha256": "one"}}
    assert seen_by(first) == (Seen("one", frozenset("abc")),)
    second = {
        "resolved": {
            "split": {"train": ["x"], "val": [], "test": []},
            "data_sha256": "made",
            "teacher": {"model": "m", "seen": rows(seen_by(first))},
        }
    }
    assert seen_by(second) == (Seen("made", frozenset("x")), Seen("one", frozenset("abc")))
    third = {"resolved": {"teacher": {"seen": rows(seen_by(second))}}}
    assert of_data(seen_by(third), "one") == frozenset("abc")
    assert of_data(seen_by(third), "other") == frozenset()


def test_what_a_run_was_compressed_with_is_seen_where_it_is_not_its_own_data():
    split = {"train": ["a"], "val": [], "test": ["d"]}
    record = {"resolved": {"split": split, "data_sha256": "one"}}
    record["resolved"]["calibration"] = rows([Seen("other", frozenset("xy"))])
    assert of_data(seen_by(record), "other") == frozenset("xy")
    assert of_data(seen_by(record), "one") == frozenset("a")


def test_records_that_say_nothing():
    assert seen_by({}) == ()
    assert (
        seen_by({"resolved": {"split": {"train": [], "val": [], "test": ["a"]}, "data_sha256": "one"}}) == ()
    )
    assert read(["a", {"cases": "abc", "data_sha256": "one"}, {"cases": ["a"]}]) == ()
