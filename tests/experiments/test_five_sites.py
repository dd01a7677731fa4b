"""Rows made anew go into the table that is there, and nothing made with other settings stays beside them."""

import dataclasses
import json

import pytest
from rich.console import Console

from experiments import five_sites
from experiments.five_sites import BadTable, Plan


def table_of(plan, rows, value):
    return {
        "plan": json.loads(json.dumps(dataclasses.asdict(plan), default=str)),
        "profile": "strict",
        "data_sha256": "0",
        "rows": dict.fromkeys(rows, value),
        "left_out": {row: value for row in rows if row == "fedavg"},
        "paired_dice": {f"{row} minus local": value for row in rows if row != "local"},
    }


@pytest.fixture
def plan(tmp_path):
    """Of two rows, beside a file with three."""
    before = Plan("data", rows=("local", "fedavg", "fedprox"), results=tmp_path / "table.json")
    before.results.write_text(json.dumps(table_of(before, before.rows, "before")))
    return dataclasses.replace(before, rows=("local", "local_kept"))


def test_new_rows_replace_their_own_and_what_was_compared_with_them_is_gone(plan):
    found = five_sites._with_rows_before(plan, table_of(plan, plan.rows, "now"))
    assert found["rows"] == {"local": "now", "fedavg": "before", "fedprox": "before", "local_kept": "now"}
    assert list(found["rows"]) == ["local", "local_kept", "fedavg", "fedprox"] == found["plan"]["rows"]
    assert found["made_last"] == ["local", "local_kept"]
    assert found["left_out"] == {"fedavg": "before"}
    assert found["paired_dice"] == {"local_kept minus local": "now"}


def test_a_table_of_other_settings_is_not_mixed(plan):
    other = dataclasses.replace(plan, rounds=7)
    with pytest.raises(BadTable, match="was made with rounds 6, these rows with 7: name another file"):
        five_sites._with_rows_before(other, table_of(other, plan.rows, "now"))
    with pytest.raises(BadTable, match="data_sha256 0, these rows with 1"):
        five_sites._with_rows_before(plan, table_of(plan, plan.rows, "now") | {"data_sha256": "1"})


@pytest.mark.parametrize(
    ("row", "record", "fits"),
    [
        ("local", {}, False),  # older than the option: moments were kept
        ("local", {"keep_optimizer": False}, True),
        ("local_kept", {"keep_optimizer": False}, False),
        ("local_kept", {}, True),
        ("fedavg", {}, True),
    ],
)
def test_a_finished_run_is_taken_only_if_its_optimizer_is_that_of_the_row(tmp_path, row, record, fits):
    plan = Plan("data", out=tmp_path)
    folder = tmp_path / f"{row}_seed0"
    folder.mkdir()
    (folder / "seconds.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps(record))
    if fits:
        five_sites._make(plan, row, 0, None, Console())
    else:
        with pytest.raises(BadTable, match="was made with another --keep-optimizer"):
            five_sites._make(plan, row, 0, None, Console())
