"""Cells of tutorials, notebooks, and a reference that leaves nothing out."""

import importlib
import json

import pytest

from experiments.site_pages import ROOT, cells, notebook, page, public_names, public_packages, reference, run

PROGRAM = """# %% [markdown]
# # Title
#
# Text.

# %%
x = 1
print(x + 1)

# %%
print(x)
"""


def test_cells_of_a_program():
    found = cells(PROGRAM)
    assert [cell.markdown for cell in found] == [True, False, False]
    assert found[0].source == "# Title\n\nText."
    assert found[1] == (False, "x = 1\nprint(x + 1)", 7)


def test_a_program_is_run_in_a_folder_of_its_own_and_its_page_shows_what_it_printed(tmp_path):
    path = tmp_path / "one.py"
    path.write_text(PROGRAM + "open('left', 'w').close()\n")
    printed = run(path)
    assert printed == ["", "2", "1"]
    assert not (ROOT / "left").exists()
    text = page(path, printed)
    assert text.startswith("# Title\n\nText.\n\n```python\nx = 1\nprint(x + 1)\n```\n\n```text")
    assert "\n2\n```" in text


def test_an_error_in_a_program_names_its_line(tmp_path):
    path = tmp_path / "one.py"
    path.write_text(PROGRAM + "1 / 0\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(path)
    assert caught.traceback[-1].lineno + 1 == len(PROGRAM.splitlines()) + 1


def test_a_notebook_has_the_cells(tmp_path):
    path = tmp_path / "one.py"
    path.write_text(PROGRAM)
    made = json.loads(notebook(path))
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert [cell["cell_type"] for cell in made["cells"]] == ["markdown", "code", "code"]
    assert "".join(made["cells"][1]["source"]) == "x = 1\nprint(x + 1)"


def test_the_reference_names_every_public_name_where_it_is_defined():
    packages = public_packages()
    assert {"medvfm_jax.adapters", "medvfm_jax.federated.codecs", "medvfm_jax.train"} <= packages.keys()
    for package, file in packages.items():
        module, text = importlib.import_module(package), reference(package)
        assert list(public_names(file)) == list(module.__all__)
        for name, where in public_names(file).items():
            assert f"::: {where}\n" in text or f"**`{name}`**: see [" in text, (package, name)
            if where not in packages:
                home, _, attribute = where.rpartition(".")
                found = getattr(importlib.import_module(home), attribute)
                assert found is getattr(module, name), where


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    navigation = text[text.index("\nnav:") :]
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []
