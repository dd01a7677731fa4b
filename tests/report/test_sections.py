import base64
import json
from pathlib import Path

import pytest

from medvfm_jax.data import mni152
from medvfm_jax.report import Overlay, RunRecord, draw_overlay, sections
from medvfm_jax.report.sections import section
from medvfm_jax.runs.goodput import Goodput
from tests.report.parsed_page import Page
from tests.report.synthetic_run import arrays, case_rows, config, pixels, scores


def record(found: dict | None = None, settings: dict | None = None, lines=(), overlays=()) -> RunRecord:
    found, settings = scores() if found is None else found, config() if settings is None else settings
    return RunRecord("samed", Path("runs/samed"), settings, list(lines), found, list(overlays))


def as_it_is(**changes) -> dict:
    found = scores(model="lite-medsam", prompt="box", prompt_source="the reference of each slice", **changes)
    found["provenance"]["trained"] = None
    return found


NOTHING = {"found": {}, "settings": {}}


def facts_of(html: str) -> dict[str, str]:
    return dict(next(table for table in Page(html).tables if len(table[0]) == 2))


def test_a_section_without_content_is_a_sentence_or_nothing():
    assert section("T", "<i>x</i>", "lead") == "<section><h2>T</h2><p>lead</p><i>x</i></section>"
    assert section("T", "", "lead", "None <yet>.") == "<section><h2>T</h2><p>None &lt;yet&gt;.</p></section>"
    assert section("T", "", "lead") == ""


def test_the_cards_hold_what_a_reader_looks_for_first():
    run = record()
    shown = Page(sections.cards(run)).text
    dice = run.summary_row("dice")
    assert f"Dice {dice['mean']:.3f} mean over labels" in shown
    assert f"95 % interval {dice['low']:.3f} to {dice['high']:.3f}" in shown
    assert "patients 12 test split, 12 cases" in shown
    assert "trained parameters 4,200,123 of 9,790,000 (43 %)" in shown
    assert "size of the delta 16.8 MB" in shown
    assert sections.cards(record(**NOTHING)) == ""
    assert "trained" not in sections.cards(record(as_it_is()))


def test_the_card_of_one_patient_has_no_interval_and_one_label_its_name():
    rows = case_rows(patients=1)[:1]
    assert "anterior no interval" in Page(sections.cards(record(scores(rows=rows)))).text
    assert "test split, 1 case" in Page(sections.cards(record(scores(rows=rows)))).text


def test_the_note_of_the_data_is_shown():
    assert sections.notes(record(scores(note="Made up."))) == ["Made up."]
    assert sections.notes(record()) == []


@pytest.mark.parametrize(
    "run",
    [
        record(scores(data=mni152.NAME, note=mni152.NOTE)),
        record(scores(data=mni152.NAME)),  # scores from before notes were written
        record({}, config(data=mni152.NAME)),  # not scored yet
    ],
)
def test_the_built_in_data_are_called_a_demonstration(run):
    (note,) = sections.notes(run)
    assert "One template brain" in note
    assert "not evidence" in note


def test_prompts_few_patients_compatibility_profiles_and_skipped_cases_are_noted():
    found = as_it_is(
        rows=case_rows(patients=4),
        metric_profile="transunet_compat",
        skipped=[{"case": "a", "why": "cut off"}],
        checked={
            "cases": 3,
            "findings": [
                {"severity": "note", "message": "2 cases (b, c): displaced (by at most 0.0031 mm)"},
            ],
        },
    )
    notes = " ".join(sections.notes(record(found)))
    assert "box prompts were made from the reference of each slice" in notes
    assert "Only 4 patients" in notes
    assert "transunet_compat profile reproduces published conventions" in notes
    assert "1 case was skipped" in notes
    assert "2 cases (b, c): displaced (by at most 0.0031 mm)." in notes
    assert sections.notes(record(scores(rows=case_rows(patients=1)))) == [
        "There is only one patient, so there are no intervals."
    ]


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (record(), "lite-medsam + samed, no prompts, on Hippocampus"),
        (record(as_it_is(flips=True), {}),
         "lite-medsam, zero-shot, box prompts, averaged over flips, on Hippocampus"),
        (record({}), "lite-medsam + samed, on Dataset004_Hippocampus"),
        (record(**NOTHING), ""),
    ],
)  # fmt: skip
def test_the_summary_line_says_what_was_run(run, line):
    assert sections.summary_line(run) == line


@pytest.mark.parametrize("profile", ["strict", "nnunet", "transunet_compat", "medsam_compat"])
def test_every_metric_profile_is_named_and_explained(profile):
    shown = Page(sections.scores(record(scores(metric_profile=profile)))).text
    assert f"Metric profile {profile} :" in shown


def test_empty_masks_are_counted():
    rows = case_rows()
    rows[3]["empty"], rows[4]["empty"] = "reference", "both"
    shown = Page(sections.scores(record(scores(rows=rows)))).text
    assert "1 in the reference only, 1 in the prediction only, 1 in both" in shown


def test_missing_scores_are_a_sentence(tmp_path):
    run = record({})._replace(folder=tmp_path)
    assert "run medvfm evaluate on this run" in sections.scores(run)
    (tmp_path / "scores_val.json").write_text("{}")
    assert "report on the file scores_val.json instead" in sections.scores(run)
    assert "Nothing could be scored" in sections.scores(record(scores(rows=[])))


def test_overlays_are_pictures_in_the_page_from_best_to_worst():
    png = draw_overlay(**arrays())
    order = [("worst", 0.2), ("median", 0.6), ("best", 0.9)]
    found = [Overlay(png, f"case {rank}", label, rank, dice) for label in ("a", "b") for rank, dice in order]
    page = Page(sections.overlays(record(overlays=found)))
    images = page.all("img")
    assert [image["alt"] for image in images[:3]] == [
        "best case case best, a", "median case case median, a", "worst case case worst, a",
    ]  # fmt: skip
    kind, data = images[0]["src"].split(",")
    assert kind == "data:image/png;base64"
    assert (pixels(base64.b64decode(data)) == pixels(png)).all()
    assert "best , Dice 0.900 case best" in page.text
    assert len(images) == 6


def test_missing_overlays_are_a_sentence_only_when_there_are_scores():
    assert "There are no overlays" in sections.overlays(record())
    assert sections.overlays(record({})) == ""


LINES = [
    {"step": 1, "loss": 0.9, "images_per_s": 2.0},
    {"step": 2, "loss": 0.8, "images_per_s": 4.0},
    {"step": 2, "val_dice": 0.41, "val_loss": 0.7},
    {"step": 3, "loss": None, "images_per_s": 90.0},
    {"step": 1204, "val_dice": 0.62},
    {"step": 1300, "val_dice": 0.55},
    {"loss": 3.0},
]


def test_the_learning_curve_names_the_best_step_and_the_mean_speed():
    page = Page(sections.learning_curve(record(lines=LINES)))
    assert "Best validation Dice 0.620 at step 1,204" in page.text
    assert "Mean speed 7.66 images/s" in page.text  # 2 / (1 / 4 + 1 / 90)
    assert [svg["aria-label"] for svg in page.all("svg")] == ["Training loss", "Validation Dice"]
    assert len(page.all("circle")) == 3


def test_the_learning_curve_says_where_the_wall_time_went():
    spent = Goodput(0.75, 400.0, 2, {"steps": 300.0, "repeated": 60.0, "compilation": 40.0})
    page = Page(sections.learning_curve(record(lines=LINES)._replace(goodput=spent)))
    assert (
        "Wall time: goodput 75% of 400 s in 2 attempts: steps 75%, repeated 15%, compilation 10%."
        in page.text
    )


def test_a_missing_learning_curve_is_a_sentence_for_a_run_and_nothing_for_a_model_as_it_is():
    assert "logged no training steps" in sections.learning_curve(record())
    assert sections.learning_curve(record(as_it_is(), {})) == ""
    only_loss = Page(sections.learning_curve(record(lines=LINES[:2])))
    assert [svg["aria-label"] for svg in only_loss.all("svg")] == ["Training loss"]


def test_what_was_trained():
    found = facts_of(sections.trained(record()))
    assert found["trained parameters"] == "4,200,123 of 9,790,000 (43 %)"
    assert found["delta"] == "16.8 MB"
    assert found["cases"] == "3 to train on, 1 for validation, 12 for the test"
    assert (found["loss"], found["learning rate"]) == ("samed", "0.001")  # as resolved, not "auto"
    assert json.loads(found["adapter options"]) == config()["resolved"]["adapter"]
    assert "known once the run has been evaluated" in sections.trained(record({}))
    assert "Nothing was trained" in sections.trained(record(as_it_is(), {}))
    assert "base weights are frozen" in sections.trained(record())
    assert "Every parameter was free" in sections.trained(record(settings=config(adapter="full")))
    student = sections.trained(record(settings=config(adapter="student", recipe="task", teacher="runs/a")))
    assert "A student learnt from a teacher" in student
    assert (facts_of(student)["recipe"], facts_of(student)["teacher"]) == ("task", "runs/a")


def test_skipped_cases_are_listed_with_their_reason():
    skipped = [{"case": "case_<013>", "why": "The file is cut off."}]
    page = Page(sections.cases(record(scores(skipped=skipped))))
    assert page.tables[-1] == [["case_<013>", "The file is cut off."]]
    assert "No case was scored" in sections.cases(record(scores(rows=[])))
    assert sections.cases(record({})) == ""


def test_provenance_says_how_to_make_the_numbers_again():
    html = sections.provenance(record())
    found = facts_of(html)
    assert found["command"] == "medvfm evaluate --run runs/samed"
    assert found["weights sha256"] == "79d8c9" + "0" * 58
    assert found["data sha256"] == "ab" * 32
    assert found["versions"] == "python 3.11.2, jax 0.10.2"
    assert (found["seed"], found["data"]) == ("0", "Hippocampus")
    assert (found["device"], found["evaluated"]) == ("cpu (2 cores, x86_64)", "2026-01-02T03:04:05+00:00")
    assert "&quot;batch_size&quot;: 4" in html


def test_provenance_of_a_run_without_scores_comes_from_its_settings():
    found = facts_of(sections.provenance(record({})))
    assert (found["data sha256"], found["seed"]) == ("ab" * 32, "0")
    assert "command" not in found
    from_python = scores()
    from_python["provenance"]["command"] = None
    assert facts_of(sections.provenance(record(from_python)))["command"] == "none, called from Python"
