"""docs/methods.md is what the records say, and every method has a word about it."""

from experiments.methods_page import PAGE, RESULTS, _measured, page


def test_the_page_is_that_of_the_records():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m experiments.methods_page"


def test_every_method_is_described():
    rows = [row for row in page().splitlines() if row.startswith("| `")]
    assert len(rows) > 100
    for row in rows:
        assert row.split(" | ")[1].strip(), row


def test_what_was_measured_is_what_the_page_of_results_names(tmp_path, monkeypatch):
    results = tmp_path / "results.md"
    results.write_text("| FFA-LoRA, int8, epsilon 8 | FLAP-SAM-style | LiteMedSAM, `samed` |")
    monkeypatch.setattr("experiments.methods_page.RESULTS", results)
    measured = [
        name for name in ("ffa_lora", "int8", "flap_sam", "samed", "lora", "fedavg") if _measured(name)
    ]
    assert measured == ["ffa_lora", "int8", "flap_sam", "samed"]
    assert RESULTS.exists()
