"""`medvfm report`: one HTML page; an earlier page is replaced, nothing else ever is."""

import json

import pytest

from tests.cli.commands import contents
from tests.report.synthetic_run import write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "runs" / "samed")


def test_one_run_gets_its_page_and_another_one_replaces_it(medvfm, run):
    result = medvfm("report", run)
    assert result == (0, f"report: {run / 'report.html'}\n", "")
    first = (run / "report.html").read_bytes()
    assert first.startswith(b"<!doctype html>")
    (run / "report.html").write_bytes(first + b"<!-- old -->")
    assert medvfm("report", run, "--json").json == {"report": str(run / "report.html"), "runs": [str(run)]}
    assert (run / "report.html").read_bytes() == first


def test_several_runs_are_compared_beside_the_first(medvfm, run, tmp_path):
    other = write_run(tmp_path / "runs" / "unet", shift=-0.1)
    result = medvfm("report", run, other)
    assert result.out == f"report: {tmp_path / 'runs' / 'comparison.html'}\n"
    page = (tmp_path / "runs" / "comparison.html").read_text(encoding="utf-8")
    assert "Paired differences" in page
    assert not (run / "report.html").exists()
    out = tmp_path / "new" / "page.html"
    assert medvfm("report", run / "scores.json", other, "--out", out).code == 0
    assert "samed/scores" in out.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_real_run_before_and_after_it_was_scored(medvfm, trained, scored, tmp_path):
    pages = []
    for name, folder in {"trained": trained, "scored": scored}.items():
        assert medvfm("report", folder, "--out", tmp_path / f"{name}.html").code == 0
        pages.append((tmp_path / f"{name}.html").read_text(encoding="utf-8"))
    dice = json.loads((scored / "scores.json").read_text())["summary"][0]["mean"]
    assert f"{dice:.3f}" in pages[1]
    assert "data:image/png" in pages[1]
    assert "data:image/png" not in pages[0]
    assert "528 of 73,372" in pages[1]
    assert "Training loss" in pages[0]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "there is no run to report on"),
        (("NOWHERE",), 1, "There is no "),
        (("FOLDER",), 1, "is not a run directory: it has neither scores.json nor config.json"),
        (("FILE",), 1, "cannot be read as JSON"),
        (("RUN", "NOWHERE"), 1, "There is no "),
        (("RUN", "--out", "FILE"), 1, "exists and is no report, so it is not replaced"),
        (("RUN", "--out", "FOLDER"), 1, "is a folder; give --out a file name"),
        (("RUN", "--out", "FILE/page.html"), 1, "The report cannot be written to "),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(medvfm, run, tmp_path, words, code, sentence):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "sites.csv").write_text("mine")
    (tmp_path / "file.txt").write_text("mine")
    places = {"RUN": run, "FOLDER": tmp_path / "folder", "FILE": tmp_path / "file.txt"}
    places |= {"NOWHERE": tmp_path / "nowhere", "FILE/page.html": tmp_path / "file.txt" / "page.html"}
    before = contents(tmp_path)
    medvfm("report", *(places.get(word, word) for word in words)).refused(sentence, code=code)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("file", ["scores.json", "config.json"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[]", b""])
def test_a_damaged_run_is_one_sentence(medvfm, run, file, content):
    (run / file).write_bytes(content)
    medvfm("report", run).refused(file, code=1)
    assert not (run / "report.html").exists()
