from pathlib import Path

import pytest

from medvfm_jax import metrics
from medvfm_jax.report import RunRecord, tables
from tests.report.parsed_page import Page
from tests.report.synthetic_run import case_rows, scores


def record(name="samed", **changes) -> RunRecord:
    return RunRecord(name, Path(name), {}, [], scores(**changes), [])


def only_table(html: str) -> list[list[str]]:
    (table,) = Page(html).tables
    return table


def test_scores_have_labels_down_and_metrics_across_with_intervals_n_and_median():
    found = scores()
    head, *body = only_table(tables.scores_table(found))
    assert head[:4] == ["label", "Dice ↑", "IoU ↑", "HD (mm) ↓"]
    assert [row[0] for row in body] == ["all labels", "anterior", "posterior"]
    row = next(r for r in found["summary"] if (r["metric"], r["label"]) == ("dice", "posterior"))
    assert body[2][1] == (
        f"{row['mean']:.3f}{row['low']:.3f} to {row['high']:.3f}n 12, median {row['median']:.3f}"
    )


def test_a_score_of_one_patient_has_no_interval_and_a_missing_one_is_a_dash():
    rows = [
        {"case": "a", "label": "liver", "dice": 0.5, "hd95": None},
        {"case": "a", "label": "spleen", "dice": 0.7, "hd95": 3.0},
    ]
    _, whole, liver, spleen = only_table(tables.scores_table(metrics.summarise(rows) | {"cases": rows}))
    assert whole[1] == "0.600no intervaln 1, median 0.600"
    assert liver == ["liver", "0.500no intervaln 1, median 0.500", "–"]
    assert spleen[2] == "3.00no intervaln 1, median 3.00"


def test_instances_have_tables_of_their_own():
    found = scores(rows=case_rows(patients=3, instances=True))
    of_labels, of_instances = Page(tables.scores_table(found)).tables
    assert [row[0] for row in of_labels] == ["label", "all labels", "anterior", "posterior"]
    assert of_instances[0] == [
        "label", "AJI ↑", "PQ ↑", "SQ ↑", "DQ ↑", "F1 at IoU 0.50 ↑", "F1 at IoU 0.75 ↑",
    ]  # fmt: skip
    of_labels, of_instances = Page(tables.cases_table(found)).tables
    assert (len(of_labels), len(of_instances)) == (7, 4)
    assert not [row for row in of_labels + of_instances if "–" in row]
    assert of_instances[0][-2:] == ["objects, reference", "objects, predicted"]
    assert of_instances[1][-2:] == ["7", "9"]


def test_distances_have_their_unit_only_when_all_cases_agree():
    assert tables.unit_of(scores()) == "mm"
    assert tables.unit_of({"cases": [{"unit": "mm"}, {"unit": "pixel"}]}) is None
    assert tables.unit_of({"cases": [{"label": "instances"}]}) is None
    assert tables.unit_of({}) is None


def test_cases_carry_the_values_to_sort_by():
    rows = case_rows(patients=2)
    rows[2]["hd95"] = None
    page = Page(tables.cases_table(scores(rows=rows)))
    head, *body = page.tables[0]
    assert head == [
        "case", "patient", "site", "label", "Dice", "IoU", "HD (mm)", "HD95 (mm)", "ASSD (mm)", "NSD",
        "size, reference", "size, prediction", "empty",
    ]  # fmt: skip
    assert len(page.all("button")) == len(head)
    kinds = [cell.get("class") for cell in page.all("th")]
    assert [head[k] for k, kind in enumerate(kinds) if kind == "text"] == [
        "case", "patient", "site", "label", "empty",
    ]  # fmt: skip
    cells = page.all("td")
    assert len(cells) == len(body) * len(head)
    dice = [float(cell["data-value"]) for cell in cells[head.index("Dice") :: len(head)]]
    assert dice == [row["dice"] for row in rows]  # unrounded
    hd95 = [cell["data-value"] for cell in cells[head.index("HD95 (mm)") :: len(head)]]
    assert hd95[2] == ""
    assert float(hd95[1]) == rows[1]["hd95"]
    assert body[2][head.index("HD95 (mm)")] == "–"
    assert body[1][-1] == "prediction"


def test_columns_that_say_nothing_are_left_out():
    rows = [{"case": c, "patient": c, "site": "", "label": "cell", "dice": 0.5, "empty": None} for c in "ab"]
    head, *_ = only_table(tables.cases_table(scores(rows=rows)))
    assert head == ["case", "label", "Dice"]
    assert tables.cases_table({}) == tables.cases_table({"cases": []}) == ""


def test_runs_side_by_side():
    zero_shot = scores(rows=case_rows(-0.1), prompt="box", model="lite-medsam")
    zero_shot["provenance"]["trained"] = None
    runs = [record(), RunRecord("zero shot", Path("z"), {}, [], zero_shot, [])]
    head, first, second = only_table(tables.side_by_side(runs))
    assert head == ["run", "Dice ↑", "NSD ↑", "HD95 (mm) ↓", "ASSD (mm) ↓", "trained parameters"]
    assert first[0] == "samedlite-medsam + samed, no prompts"
    assert second[0] == "zero shotlite-medsam, zero-shot, box prompts"
    assert (first[-1], second[-1]) == ("4,200,12343 %", "none")
    assert first[1].startswith(f"{runs[0].summary_row('dice')['mean']:.3f}")


def test_a_unit_is_not_shown_for_runs_that_measured_in_different_ones():
    in_pixels = scores()
    for row in in_pixels["cases"]:
        row["unit"] = "pixel"
    head, *_ = only_table(tables.side_by_side([record(), RunRecord("b", Path("b"), {}, [], in_pixels, [])]))
    assert head[3] == "HD95 ↓"


def shifted(name: str, by: float, patients: int = 8) -> RunRecord:
    """Every patient's Dice is higher by exactly `by`; the distances are lower by 4 and 2 times that."""
    rows = [row for row in case_rows(patients=patients) if row["label"] == "anterior"]
    for row in rows:
        dice = 0.5 + 0.01 * int(row["case"][-3:]) + by
        row |= {
            "dice": dice,
            "iou": None,
            "nsd": None,
            "hd": None,
            "hd95": 5 - 4 * dice,
            "assd": 3 - 2 * dice,
        }
    return record(name, rows=rows)


def test_a_constant_shift_is_the_difference_its_interval_and_an_exact_p_value():
    table = only_table(tables.paired_differences([shifted("a", 0.0), shifted("b", 0.1)]))
    assert table[1] == [
        # Both signs of all 8 differences equal: 2 of 256 patterns are as extreme, 0.0078.
        "b minus a", "Dice", "8", "+0.100", "+0.100 to +0.100", "0.008", "0.008", "better",
    ]  # fmt: skip
    assert table[2][:5] == ["b minus a", "HD95", "8", "-0.40", "-0.40 to -0.40"]
    assert table[2][-1] == "better"  # a smaller distance
    worse = only_table(tables.paired_differences([shifted("b", 0.1), shifted("a", 0.0)]))
    assert [row[-1] for row in worse[1:]] == ["worse"] * 3
    same = only_table(tables.paired_differences([shifted("a", 0.0), shifted("b", 0.0)]))
    assert [row[-1] for row in same[1:]] == ["no clear difference"] * 3


@pytest.mark.parametrize(
    ("n", "p", "reading"),
    [(3, "0.250", "too few patients"), (5, "0.062", "too few patients"), (6, "0.031", "better")],
)
def test_few_patients_get_no_verdict_however_sure_the_bootstrap_is(n, p, reading):
    """Of n equal differences 2 of 2^n sign patterns are as extreme, which only from six on can be below 0.05."""
    few = []
    for run in (shifted("a", 0.0), shifted("b", 0.1)):
        few.append(record(run.name, rows=run.scores["cases"][:n]))
    table = only_table(tables.paired_differences(few))
    assert table[1][2:6] == [str(n), "+0.100", "+0.100 to +0.100", p]
    assert {row[-1] for row in table[1:]} == {reading}


def test_every_pair_is_compared_and_patients_of_one_run_only_are_counted():
    runs = [shifted("a", 0.0), shifted("b", 0.1, patients=6), shifted("c", 0.2)]
    table = only_table(tables.paired_differences(runs))
    pairs = [row[0] for row in table[1:] if row[1] == "Dice"]
    assert pairs == ["b minus a", "c minus a", "c minus b"]
    assert [row[2] for row in table[1:] if row[1] == "Dice"] == ["62 left out", "8", "62 left out"]


def test_one_shared_patient_is_too_few():
    table = only_table(tables.paired_differences([shifted("a", 0.0, 1), shifted("b", 0.1, 1)]))
    assert table[1][4] == "–"
    assert table[1][-1] == "too few patients"


@pytest.mark.parametrize("what", ["profile", "data", "patients"])
def test_runs_that_share_only_names_are_not_paired(what):
    a, b = shifted("a", 0.0), shifted("b", 0.1)
    if what == "profile":
        b.scores["metric_profile"] = "nnunet"
    elif what == "data":
        b.scores["provenance"]["data_sha256"] = "cd" * 32
    else:
        for row in b.scores["cases"]:
            row["patient"] = "other " + row["patient"]
    assert tables.paired_differences([a, b]) == ""


def test_facts_leave_out_what_is_not_known():
    html = tables.facts(
        [("seed", 0), ("command", "a <b>"), ("device", None), ("note", "")], code=("command",)
    )
    assert only_table(html) == [["seed", "0"], ["command", "a <b>"]]
    assert "<code>a &lt;b&gt;</code>" in html
    assert tables.facts([("device", None)]) == ""
