import json

import pytest

from medvfm_jax.runs import goodput
from medvfm_jax.runs.run_directory import RunError


def line(attempt, step, **seconds):
    return {"attempt": attempt, "step": step, "seconds": seconds}


def test_one_attempt_counts_its_steps_alone():
    found = goodput.summarise(
        [
            line(7.0, 0, start=10.0),
            line(7.0, 20, compilation=5.0, steps=60.0, data=3.0, validation=7.0, other=1.0),
            line(7.0, 40, steps=12.0, checkpoint=2.0),
        ]
    )
    assert found.wall == 100.0
    assert found.share == 0.72
    assert found.attempts == 1
    assert found.seconds == {
        "start": 10.0, "compilation": 5.0, "steps": 72.0, "data": 3.0, "validation": 7.0, "other": 1.0,
        "checkpoint": 2.0,
    }  # fmt: skip
    assert found.describe() == (
        "goodput 72% of 100 s: steps 72%, start 10%, validation 7%, compilation 5%, data 3%, checkpoint 2%, other 1%"
    )


def test_what_lies_behind_the_step_that_a_later_attempt_went_on_from_is_repeated():
    found = goodput.summarise(
        [
            line(1.0, 0, start=2.0),
            line(1.0, 10, steps=10.0),
            line(1.0, 17, steps=7.0, other=1.0),  # killed here
            line(2.0, 10, start=2.0),
            line(2.0, 15, steps=5.0, compilation=1.0),  # killed again, before a checkpoint
            line(3.0, 10, start=2.0),
            line(3.0, 20, steps=10.0),
        ]
    )
    assert found.attempts == 3
    assert found.seconds == {"start": 6.0, "steps": 20.0, "repeated": 14.0}
    assert (found.wall, found.share) == (40.0, 0.5)
    assert "in 3 attempts" in found.describe()


def test_a_later_attempt_that_falls_back_further_takes_back_more():
    lines = [
        line(1.0, 0),
        line(1.0, 4, steps=4.0),
        line(1.0, 8, steps=4.0),
        line(2.0, 8),
        line(2.0, 12, steps=4.0),
    ]
    assert goodput.summarise(lines).seconds == {"steps": 12.0}
    lines += [line(3.0, 4), line(3.0, 12, steps=8.0)]  # the checkpoint of step 8 was damaged
    assert goodput.summarise(lines).seconds == {"steps": 12.0, "repeated": 8.0}


def test_a_clock_that_went_back_changes_nothing():
    lines = [line(9.0, 0), line(9.0, 8, steps=8.0), line(2.0, 4), line(2.0, 8, steps=4.0)]
    assert goodput.summarise(lines).seconds == {"steps": 4.0, "repeated": 8.0}


def test_the_parts_always_add_up_and_no_time_at_all_is_no_goodput():
    assert goodput.summarise([]) is None
    assert goodput.summarise([line(1.0, 0)]) is None


def test_lines_are_appended_and_what_a_kill_cut_off_is_left_out(tmp_path):
    goodput.append(tmp_path, 1.5, 0, {"start": 0.25, "data": 0.0}, now=100.0)
    with open(tmp_path / goodput.TIMES, "a") as file:
        file.write('{"attempt": 1.5, "st')
    goodput.append(tmp_path, 2.5, 3, {"steps": 0.75}, now=101.0)
    found, damaged = goodput.read(tmp_path)
    assert found == [
        {"attempt": 1.5, "step": 0, "seconds": {"start": 0.25}, "time": 100.0},
        {"attempt": 2.5, "step": 3, "seconds": {"steps": 0.75}, "time": 101.0},
    ]
    assert damaged == 1
    assert goodput.of_run(tmp_path).share == 0.75


@pytest.mark.parametrize(
    "record",
    [
        [], {"attempt": 1.0, "step": 1}, {"attempt": "a", "step": 1, "seconds": {}},
        {"attempt": 1.0, "step": True, "seconds": {}}, {"attempt": 1.0, "step": -1, "seconds": {}},
        {"attempt": 1.0, "step": 1, "seconds": {"steps": -1.0}},
        {"attempt": 1.0, "step": 1, "seconds": {"steps": "long"}}, {"attempt": 1.0, "step": 1, "seconds": {"x": 1.0}},
    ],
)  # fmt: skip
def test_lines_that_are_no_record_are_left_out_and_counted(record, tmp_path):
    (tmp_path / goodput.TIMES).write_text(json.dumps(record) + "\n")
    assert goodput.read(tmp_path) == ([], 1)


def test_a_run_without_the_file_and_one_with_a_folder_in_its_place(tmp_path):
    assert goodput.of_run(tmp_path) is None
    (tmp_path / goodput.TIMES).mkdir()
    with pytest.raises(RunError, match=r"times\.jsonl cannot be read"):
        goodput.of_run(tmp_path)
