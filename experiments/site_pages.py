"""Pages of the documentation site that are made while it is built (a hook of mkdocs.yml).

Tutorials are programs, docs/tutorials/NAME.py in cells (``# %%`` code, ``# %% [markdown]`` text).  Each is run from
top to bottom, what a cell prints stands below it, and an error ends the build; the page offers it as a notebook and
as it is. The reference has one page per package with an ``__all__``, so that no public name can be missing.  Pages
that live outside docs/ (CONTRIBUTING.md, ...) are taken from there.
"""

import ast
import contextlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "tpu/README.md": "tpu.md"}


class Cell(NamedTuple):
    """A piece of a tutorial: Markdown, or code with the number of its first line."""

    markdown: bool
    source: str
    line: int


def cells(text: str) -> list[Cell]:
    """A program in cells -> its cells; the text of a Markdown cell without comment signs."""
    found: list[Cell] = []
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        body = lines[start + 1 : end]
        markdown = "[markdown]" in lines[start]
        body = [re.sub(r"^# ?", "", line) for line in body] if markdown else body
        found.append(Cell(markdown, "\n".join(body).strip("\n"), start + 2))
    return found


def read_cells(path: Path) -> list[Cell]:
    """The cells of a tutorial."""
    return cells(path.read_text(encoding="utf-8"))


def run(path: Path) -> list[str]:
    """Run a tutorial in a new, empty folder -> what each of its cells printed."""
    scope: dict[str, Any] = {"__name__": path.stem}
    printed = []
    with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
        for cell in read_cells(path):
            out = io.StringIO()
            if not cell.markdown:
                # Blank lines before it, so that a traceback names the line of the file.
                code = compile("\n" * (cell.line - 1) + cell.source, str(path), "exec")
                with contextlib.redirect_stdout(out):
                    exec(code, scope)
            printed.append(out.getvalue().rstrip())
    return printed


def page(path: Path, printed: Sequence[str]) -> str:
    """A tutorial and what it printed -> Markdown."""
    parts = []
    for cell, out in zip(read_cells(path), printed, strict=True):
        parts.append(cell.source if cell.markdown else f"```python\n{cell.source}\n```")
        if out:
            parts.append(f'```text title="prints"\n{out}\n```')
    parts.append(
        f"Run it yourself: [as a notebook]({path.stem}.ipynb) or [as a program]({path.name}). "
        "What stands here was printed when this site was built."
    )
    return "\n\n".join(parts) + "\n"


def notebook(path: Path) -> str:
    """A tutorial -> a Jupyter notebook without outputs (format 4.5)."""
    made = []
    for i, cell in enumerate(read_cells(path)):
        common = {"id": f"cell-{i}", "metadata": {}, "source": cell.source.splitlines(keepends=True)}
        code = {"cell_type": "code", "execution_count": None, "outputs": []}
        made.append(({"cell_type": "markdown"} if cell.markdown else code) | common)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return (
        json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
    )


def tutorials() -> list[Path]:
    """Every tutorial."""
    return sorted(TUTORIALS.glob("*.py"))


def public_names(file: Path) -> dict[str, str]:
    """An ``__init__.py`` -> {public name: where it is defined}, in the order of ``__all__``; {} for one without it."""
    package = ".".join(file.parent.relative_to(ROOT).parts)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = next((n.value for n in tree.body if isinstance(n, ast.Assign) and _target(n) == "__all__"), None)
    names = [] if found is None else ast.literal_eval(found)
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return {name: imported.get(name, f"{package}.{name}") for name in names}


def public_packages() -> dict[str, Path]:
    """Every package that says what is public, medvfm_jax itself first: name -> its ``__init__.py``."""
    files = sorted((ROOT / "medvfm_jax").rglob("__init__.py"))
    return {".".join(file.parent.relative_to(ROOT).parts): file for file in files if public_names(file)}


def reference(package: str) -> str:
    """The page of a package: its docstring, then every public name; packages within it have pages of their own."""
    packages = public_packages()
    others = {
        w: name for name, file in packages.items() for w in public_names(file).values() if w.startswith(name)
    }
    parts = [f"# {package.removeprefix('medvfm_jax.')}", f"::: {package}", _options(members="false")]
    for name, where in public_names(packages[package]).items():
        page = where if where in packages else others.get(where, package)
        if page != package:
            parts.append(f"**`{name}`**: see [{page}]({page}.md).\n")
        else:
            parts += [f"::: {where}", _options(show_root_heading="true")]
    return "\n".join(parts)


def _target(node: ast.Assign) -> str | None:
    return node.targets[0].id if isinstance(node.targets[0], ast.Name) else None


def _options(**options: str) -> str:
    lines = [f"      {name}: {value}" for name, value in options.items()]
    return "\n".join(["    options:", *lines, ""])


def on_config(config: Any) -> Any:
    """Put the pages of the reference into the navigation, in the place of the word GENERATED."""
    names = list(public_packages())
    for section in config["nav"]:
        for title, items in section.items():
            if "GENERATED" in items:
                section[title] = [item for item in items if item != "GENERATED"]
                section[title] += [
                    {name.removeprefix("medvfm_jax."): f"reference/{name}.md"} for name in names
                ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    import jax
    from mkdocs.structure.files import File

    jax.config.update("jax_disable_most_optimizations", True)  # tiny models: compiling is what takes the time

    def add(name: str, content: str) -> None:
        files.append(File.generated(config, name, content=content))

    for name in public_packages():
        add(f"reference/{name}.md", reference(name))
    skip = os.environ.get("MEDVFM_TUTORIALS") == "skip"  # while writing prose
    for path in tutorials():
        add(f"tutorials/{path.stem}.md", page(path, [""] * len(read_cells(path)) if skip else run(path)))
        add(f"tutorials/{path.stem}.ipynb", notebook(path))
    for source, name in OUTSIDE.items():
        add(name, (ROOT / source).read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to pages outside docs/ and to tutorials lead to where the site has them, as those from there do."""
    for source, name in OUTSIDE.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}")
    markdown = re.sub(r"\]\((tutorials/\w+)\.py\)", r"](\1.md)", markdown)
    return markdown.replace("](docs/", "](").replace("](../docs/", "](")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
