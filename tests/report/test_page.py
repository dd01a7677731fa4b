import json
import os
import re
import shutil

import pytest

from medvfm_jax.report import NothingToReport, load, page, render, write
from tests.report.parsed_page import Page
from tests.report.synthetic_run import case_rows, change_scores, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {"samed": write_run(folder / "samed"), "unet": write_run(folder / "unet", shift=-0.05)}


@pytest.fixture(scope="module")
def one(runs):
    return render([load(runs["samed"])])


@pytest.fixture(scope="module")
def two(runs):
    return render([load(runs["unet"]), load(runs["samed"])])


@pytest.fixture
def run(runs, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(runs["samed"], tmp_path / "samed")


def test_a_page_has_every_section_in_reading_order(one):
    assert list(Page(one).sections) == [
        "", "Scores", "Overlays", "Learning curve", "What was trained", "Cases", "Provenance",
    ]  # fmt: skip
    assert len(Page(one).all("img")) == 3
    assert len(Page(one).all("svg")) == 2


def test_a_page_needs_nothing_from_elsewhere(two):
    found = Page(two)
    assert not [
        tag for tag, _ in found.elements if tag in ("link", "iframe", "object", "embed", "base", "form")
    ]
    for tag, attributes in found.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    without_pictures = re.sub(r'"data:[^"]*"', "", two)
    assert not re.search(r"url\(|@import|https?:|//[a-z]|fetch|XMLHttp|import\(", without_pictures)


def test_the_browser_is_told_to_fetch_nothing(one):
    (policy,) = [
        m["content"] for m in Page(one).all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'",
        "script-src": "'unsafe-inline'", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def poisoned(value):
    """Every string in a record replaced; keys stay."""
    if isinstance(value, dict):
        return {key: poisoned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [poisoned(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


NOTE = {("div", frozenset({"class", "role"}))}


def kinds(html: str) -> set[tuple[str, frozenset[str]]]:
    return {(tag, frozenset(attributes)) for tag, attributes in Page(html).elements}


def test_whatever_a_record_says_is_shown_as_text(runs, one, two):
    record = load(runs["samed"])
    overlays = [o._replace(case=HOSTILE, label=HOSTILE, rank=HOSTILE) for o in record.overlays]
    bad = record._replace(
        name=HOSTILE, scores=poisoned(record.scores), config=poisoned(record.config), overlays=overlays
    )
    for html, clean in ((render([bad]), one), (render([bad, bad._replace(name=HOSTILE * 2)]), two)):
        assert kinds(html) <= kinds(clean) | NOTE
        assert len(Page(html).all("script")) == 1
        assert Page(html).text.count("<script>alert(1)</script>") > 20
    rows = [row | {"case": HOSTILE} for row in record.scores["cases"]]
    html = render([record._replace(scores=record.scores | {"cases": rows}), record])
    assert kinds(html) <= kinds(two)
    assert any(HOSTILE in cell for row in Page(html).tables[-1] + Page(html).tables[4] for cell in row)


def test_names_of_columns_are_text_too(runs):
    record = load(runs["samed"])
    rows = [row | {HOSTILE: 0.5} for row in record.scores["cases"]]
    summary = [*record.scores["summary"], {"metric": HOSTILE, "label": "all", "mean": 0.5, "n": 12}]
    versions = {"versions": {HOSTILE: "1.0"}}
    found = record.scores | {"cases": rows, "summary": summary}
    found["provenance"] = found["provenance"] | versions
    html = render([record._replace(scores=found, config={HOSTILE: HOSTILE} | record.config)])
    assert len(Page(html).all("script")) == 1
    assert Page(html).text.count("<script>") >= 4


def test_the_built_in_data_are_marked_at_the_top(run):
    note = "One template brain cut into slabs: a demonstration, not evidence."
    change_scores(run, data="mni152_tissue", note=note)
    html = render([load(run)])
    assert note in Page(html).sections[""]
    assert html.index(note) < html.index("<section>")


def test_several_runs_stand_side_by_side_before_each_alone(runs, two):
    found = Page(two)
    assert list(found.sections)[:5] == ["", "Side by side", "Paired differences", "unet", "Scores"]
    assert two.index(">unet</h2>") < two.index(">samed</h2>")
    assert [row[0] for row in found.tables[0][1:]] == [
        "unetlite-medsam + samed, no prompts", "samedlite-medsam + samed, no prompts",
    ]  # fmt: skip
    (dice,) = [row for row in found.tables[1] if row[1] == "Dice"]
    means = [load(runs[name]).summary_row("dice")["mean"] for name in ("unet", "samed")]
    assert dice[0] == "samed minus unet"
    assert float(dice[3]) == pytest.approx(means[1] - means[0], abs=6e-4)
    assert dice[-1] == "better"
    assert "12" in dice[2]


def test_notes_of_some_runs_say_of_which(runs):
    note = "Made up."
    a, b = load(runs["samed"]), load(runs["unet"])
    with_note = b._replace(scores=b.scores | {"note": note})
    assert f"unet: {note}" in Page(render([a, with_note])).text.replace(" :", ":")
    both = Page(render([a._replace(scores=a.scores | {"note": note}), with_note])).text
    assert both.count(note) == 1
    assert f"unet: {note}" not in both


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"metric_profile": "nnunet"}, "under different metric profiles: their means do not compare"),
        ({"split": "val"}, "on different splits: their means do not compare"),
        ({"provenance": {"data_sha256": "cd" * 32}}, "on different data: their means do not compare"),
        ({"split": "val", "metric_profile": "nnunet"}, "profiles and on different splits"),
        ({}, None),
    ],
)
def test_runs_that_do_not_compare_are_called_so(runs, changes, warning):
    a = load(runs["samed"])
    text = Page(render([a, a._replace(name="b", scores=a.scores | changes)])).text
    assert ("do not compare" in text) == (warning is not None)
    assert (warning or "") in text
    assert ("Nothing can be compared in pairs" in text) == bool(
        {"metric_profile", "provenance"} & set(changes)
    )


def test_runs_without_scores_are_shown_and_said_to_have_none(runs):
    a = load(runs["samed"])
    empty = a._replace(name="new", scores={}, overlays=[])
    page_of_two = Page(render([a, empty]))
    assert [row[0] for row in page_of_two.tables[0][1:]] == ["samedlite-medsam + samed, no prompts"]
    assert "There are no scores yet" in page_of_two.text
    assert "None of the runs has scores yet." in Page(render([empty, empty])).text


def test_runs_of_equal_name_get_numbers(runs):
    a = load(runs["samed"])
    html = render([a, a, a._replace(name="unet")])
    assert "<h1>samed (1) · samed (2) · unet</h1>" in html


def test_everything_that_is_missing_is_a_sentence(tmp_path):
    run = tmp_path / "bare"
    run.mkdir()
    (run / "config.json").write_text('{"model": "lite-medsam"}')
    text = Page(render([load(run)])).text
    for sentence in ("There are no scores yet", "There is no learning curve", "known once the run has been"):
        assert sentence in text
    (run / "config.json").unlink()
    (run / "scores.json").write_text('{"format": 1, "summary": [], "cases": []}')
    text = Page(render([load(run)])).text
    for sentence in (
        "Nothing could be scored",
        "There are no overlays",
        "Nothing was trained",
        "No case was",
    ):
        assert sentence in text


def test_parts_that_are_null_are_like_parts_that_are_missing(run):
    keys = json.loads((run / "scores.json").read_text())
    nothing = dict.fromkeys(keys) | {"format": 1, "summary": [], "cases": []}
    (run / "scores.json").write_text(json.dumps(nothing))
    assert "Nothing could be scored" in Page(render([load(run)])).text


def test_the_file_goes_into_the_run_or_beside_several_or_where_it_is_told(run, runs, tmp_path):
    assert write([run]) == run / "report.html"
    (run / "scores_val.json").write_text((run / "scores.json").read_text())
    assert write([run / "scores_val.json"]) == run / "scores_val.html"
    other = shutil.copytree(runs["unet"], tmp_path / "unet")
    assert write([run, other]) == tmp_path / "comparison.html"
    out = tmp_path / "new" / "folder" / "page.html"
    assert write([run], out) == out
    assert out.read_text(encoding="utf-8") == (run / "report.html").read_text(encoding="utf-8")


def test_no_runs_or_a_wrong_one_write_nothing(run, tmp_path):
    with pytest.raises(NothingToReport, match="at least one run directory"):
        write([])
    with pytest.raises(NothingToReport, match="There is no"):
        write([run, tmp_path / "missing"])
    assert not list(tmp_path.rglob("*.html"))


def test_a_page_replaces_another_as_a_whole_or_not_at_all(run, monkeypatch):
    old = write([run])
    content = old.read_text(encoding="utf-8") + "<!-- the old page -->"
    old.write_text(content, encoding="utf-8")
    before = {path.name for path in run.iterdir()}

    def full_disk(source, target):
        assert source.read_text(encoding="utf-8").endswith("</html>\n")  # written out before the exchange
        assert old.read_text(encoding="utf-8") == content
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(page.os, "replace", full_disk)
        with pytest.raises(page.NoPlaceForReport, match=r"cannot be written to .*No space left"):
            write([run])
    assert old.read_text(encoding="utf-8") == content
    assert {path.name for path in run.iterdir()} == before
    write([run])
    assert old.read_text(encoding="utf-8") == content.removesuffix("<!-- the old page -->")
    assert {path.name for path in run.iterdir()} == before


def test_a_file_that_is_no_report_is_never_replaced(run, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html><title>my page</title>")
    with pytest.raises(page.NoPlaceForReport, match=r"mine\.html exists and is no report"):
        write([run], mine)
    assert mine.read_text() == "<!doctype html><title>my page</title>"
    with pytest.raises(page.NoPlaceForReport, match="is a folder"):
        write([run], tmp_path)


def test_a_page_is_no_more_public_than_other_files_of_the_user(run):
    mask = os.umask(0o077)
    try:
        assert write([run]).stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(mask)


def test_a_thousand_cases_make_a_page_in_which_every_case_is_found(run):
    rows = case_rows(patients=1000)
    change_scores(run, cases=rows)
    shown = set(re.findall("<td[^>]*>([^<]*)</td>", render([load(run)])))
    assert {row["case"] for row in rows} <= shown
