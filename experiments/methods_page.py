"""docs/methods.md: every method of the package, from its own records and docstrings.

python -m experiments.methods_page

A test holds the page against the records, so that a new method cannot be missing from it.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medvfm_jax import losses, systems
from medvfm_jax.adapters.serialise import KINDS
from medvfm_jax.catalog import description_of
from medvfm_jax.federated import systems as federated_systems
from medvfm_jax.federated.algorithms import catalog as algorithm_catalog
from medvfm_jax.federated.codecs.catalog import CODECS
from medvfm_jax.models.catalog import MODELS

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
RESULTS = PAGE.with_name("results.md")
_HEAD = """# Methods

Made from the package's records by `python -m experiments.methods_page`; do not edit. Where the column of differences is
empty none is known to us. What was measured: [Results](results.md), [Performance](performance.md);
what adapters cost and which merge: [What adapters cost](adapter-costs.md).
How to add one: [Contributing](../CONTRIBUTING.md), [a system](own-system.md), [an algorithm](own-algorithm.md),
[a codec](own-codec.md). Tests lie in the folders of the code: `tests/systems/`, `tests/federated/codecs/`, ...
"""


def page() -> str:
    """The whole page."""
    sections = (_systems, _federated, _algorithms, _codecs, _adapters, _models, _losses)
    return "\n".join([_HEAD, *(line for section in sections for line in section())])


def _systems() -> list[str]:
    rows = [
        (f"`{name}`", s.description, _link(s.source), s.differences, _measured(name))
        for name, s in systems.SYSTEMS.items()
    ]
    columns = ("name", "what trains", "source", "differs from it", "measured")
    return _section("Systems: `medvfm adapt --adapter NAME`, `medvfm federate --preset NAME`", columns, rows)


def _federated() -> list[str]:
    rows = [
        (f"`{name}`", s.description, _link(s.system.source), s.system.differences, _measured(name))
        for name, s in federated_systems.SYSTEMS.items()
    ]
    columns = ("name", "what it does", "source", "differs from it", "measured")
    return _section("Federated systems: `medvfm federate --preset NAME`", columns, rows)


def _algorithms() -> list[str]:
    rows = [
        (f"`{name}`", description_of(entry), _options(entry.options), _measured(name))
        for name, entry in algorithm_catalog.ALGORITHMS.items()
    ]
    title = "Federated algorithms: `medvfm federate --algorithm NAME --set algorithm.OPTION=VALUE`"
    return _section(title, ("name", "what it does", "options", "measured"), rows)


def _codecs() -> list[str]:
    rows = [
        (f"`{name}`", description_of(entry), _options(entry.options), _measured(name))
        for name, entry in CODECS.items()
    ]
    title = "Codecs: `medvfm federate --codec NAME --set codec.OPTION=VALUE`"
    return _section(title, ("name", "what it does", "options", "measured"), rows)


def _adapters() -> list[str]:
    rows = [(f"`{name}`", description_of(make), _references(make)) for name, make in KINDS.items()]
    columns = ("kind", "what it does", "source")
    return _section("Adapters: parts of a system, and `medvfm_jax.adapters`", columns, rows)


def _models() -> list[str]:
    rows = [
        (
            f"`{name}`",
            e.family,
            f"{e.spec.size}",
            e.spec.task,
            ", ".join(e.spec.prompts),
            e.spec.licence,
        )
        for name, e in MODELS.items()
        if not name.endswith("-test")
    ]
    columns = ("name", "family", "pixels", "task", "prompts", "licence")
    return _section("Models: `--model NAME`", columns, rows)


def _losses() -> list[str]:
    rows = [
        (f"`{name}`", description_of(getattr(losses, name)), _references(getattr(losses, name)))
        for name in sorted(losses.__all__)
        if inspect.isfunction(getattr(losses, name))
    ]
    return _section("Losses: `medvfm_jax.losses`, from Python", ("name", "what it is", "source"), rows)


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in ([*columns], ["---"] * len(columns), *cells)]
    return [f"## {title}", "", *lines, ""]


def _link(source: str) -> str:
    return f"[{source.removeprefix('https://').removeprefix('arxiv.org/abs/')}]({source})"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in options.items())


def _measured(name: str) -> str:
    """A link where the page of results has a word about the method."""
    words = {_bare(word).removesuffix("style") for word in RESULTS.read_text(encoding="utf-8").split()}
    return f"[yes]({RESULTS.name})" if _bare(name) in words else ""


def _bare(word: str) -> str:
    """FFA-LoRA, `ffa_lora` -> ffalora."""
    return re.sub(r"[\W_]", "", word).lower()


def _references(function: Any) -> str:
    """The links of a docstring."""
    return ", ".join(
        _link(link.rstrip(".,;")) for link in re.findall(r"https://\S+", inspect.getdoc(function) or "")
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
