"""What a docstring of a public name has to say: arguments, result, errors, and links to the papers it names."""

import ast
import builtins
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from experiments.site_pages import public_packages

SECTIONS = ("Args", "Returns", "Yields", "Raises", "Attributes", "References")
PUBLICATION = re.compile(r"\bet al\.|\b[A-Z][a-z]+ (?:and [A-Z][a-z]+ )?(?:19|20)\d\d\b")
LINK = re.compile(r"https://(arxiv\.org/abs|doi\.org)/\S+")


class Docstring(NamedTuple):
    """A docstring in parts: the text before all sections, and each section's lines."""

    text: str
    sections: dict[str, str]

    def names(self, section: str) -> set[str]:
        """What a section has an entry for, without the stars of ``*inputs``."""
        entries = re.findall(r"^([*\w]+):", self.sections.get(section, ""), re.MULTILINE)
        return {name.lstrip("*") for name in entries}


def parsed(docstring: str) -> Docstring:
    """A docstring -> its parts."""
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):\n", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return Docstring(
        pieces[0], {n: textwrap.dedent(body) for n, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    )


def complaints(thing: Any) -> Iterator[str]:
    """What the docstring of a function or class lacks."""
    if not thing.__doc__:
        yield "no docstring"
        return
    docstring = parsed(thing.__doc__)
    if PUBLICATION.search(thing.__doc__) and not LINK.search(docstring.sections.get("References", "")):
        yield "names a publication without a link under References"
    if isinstance(thing, type):
        yield from _of_record(thing, docstring)
    else:
        yield from _of_function(thing, docstring)


def _of_record(record: type, docstring: Docstring) -> Iterator[str]:
    fields = getattr(record, "_fields", None) or getattr(record, "__dataclass_fields__", ())
    if missing := set(fields) - docstring.names("Attributes") - described_below(record):
        yield f"Attributes lacks {', '.join(sorted(missing))}"


def described_below(record: type) -> set[str]:
    """Fields with a string below them, as settings have them, of a class and those it inherits from."""
    found = set()
    for one in record.__mro__[:-1]:
        if one.__module__.startswith(("medvfm_jax", __name__)):
            body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0].body
            found |= {
                field.target.id
                for field, text in itertools.pairwise(body)
                if isinstance(field, ast.AnnAssign) and _is_text(text)
            }
    return found


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _of_function(function: Callable[..., Any], docstring: Docstring) -> Iterator[str]:
    signature = inspect.signature(function)
    described = docstring.names("Args")
    if described != set(signature.parameters):
        yield f"Args differs from the signature in {', '.join(sorted(described ^ set(signature.parameters)))}"
    gives = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    if gives and not {"Returns", "Yields"} & docstring.sections.keys():
        yield "Returns is missing"
    if unsaid := raised(function) - docstring.names("Raises"):
        yield f"Raises lacks {', '.join(sorted(unsaid))}"


def raised(function: Callable[..., Any]) -> set[str]:
    """Names of the errors that the body of a function raises itself; an error made by a helper is not seen."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [
        node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    ]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    known = vars(builtins) | function.__globals__
    return {name for name in names if isinstance(known.get(name), type)}


def public_things() -> Iterator[Any]:
    for package in public_packages():
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isfunction(thing) or isinstance(thing, type):
                yield pytest.param(thing, id=f"{package}.{name}")


@pytest.mark.parametrize("thing", public_things())
def test_a_public_docstring_is_complete(thing):
    assert list(complaints(thing)) == []


def good(x: int, *rest: int) -> int:
    """Add up, as Somebody 2020.

    Args:
        x: a number.
        *rest: more.

    Returns:
        The sum.

    Raises:
        ValueError: below 0.

    References:
        https://arxiv.org/abs/1234.56789
    """
    if x < 0:
        raise ValueError("negative")
    return x + sum(rest)


def bad(x: int, y: int) -> int:
    """Add up, as Somebody 2020.

    Args:
        x: a number.
        z: none.
    """
    if x < 0:
        raise ValueError("negative")
    return x + y


class Pair(NamedTuple):
    """Two things.

    Attributes:
        first: one.
    """

    first: int
    second: int


class Settings(NamedTuple):
    """Fields that are described below them, but one."""

    first: int = 1
    """One."""
    second: int = 2


def test_what_is_complained_about():
    assert list(complaints(good)) == []
    assert list(complaints(bad)) == [
        "names a publication without a link under References",
        "Args differs from the signature in y, z",
        "Returns is missing",
        "Raises lacks ValueError",
    ]
    assert list(complaints(Pair)) == ["Attributes lacks second"]
    assert list(complaints(Settings)) == ["Attributes lacks second"]
