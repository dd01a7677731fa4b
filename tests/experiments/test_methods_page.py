"""docs/methods.md is what the records say, and every method has a word about it."""

from experiments.methods_page import PAGE, page


def test_the_page_is_that_of_the_records():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m experiments.methods_page"


def test_every_method_is_described():
    rows = [row for row in page().splitlines() if row.startswith("| `")]
    assert len(rows) > 100
    for row in rows:
        assert row.split(" | ")[1].strip(), row
