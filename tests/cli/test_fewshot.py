"""`medvfm fewshot` with a real, small model."""

from tests.cli.commands import SAM


def test_a_folder_is_scored_from_two_cases(medvfm, cells, tmp_path):
    words = ("--data", cells, "--model", SAM, "--train-cases", 2, "--out", tmp_path / "scores.json")
    record = medvfm("fewshot", "--json", *words).json
    assert record["few_shot"]["method"] == "prototype"
    assert len(record["few_shot"]["support_cases"]) == 2
    assert (tmp_path / "predictions").is_dir()
    assert medvfm("fewshot", *words).code == 0


def test_a_wrong_method_names_those_there_are(medvfm, cells):
    medvfm("fewshot", "--data", cells, "--method", "prototipe").refused("prototype", code=2)


def test_a_learning_curve_has_a_plot(medvfm, cells, tmp_path):
    words = ("--data", cells, "--model", SAM, "--shots", 1, 2, "--seeds", 2, "--out", tmp_path / "curve.json")
    record = medvfm("fewshot", "--json", *words).json
    assert [row["shots"] for row in record["curve"]] == [1, 2]
    plot = (tmp_path / "curve.svg").read_text()
    assert plot.startswith("<svg")
    assert plot.count("<circle") == 2
    out = medvfm("fewshot", *words).out
    assert "lowest and highest seed" in out
    assert "curve.svg" in out
