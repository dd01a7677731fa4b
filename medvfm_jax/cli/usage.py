"""What is wrong with the words of a command, told from the dataclass that they should have become.

tyro parses, and draws what is wrong into a frame of several lines; it has no public form of that for programs (its
events of failures are private, its parser object is deprecated). So words that tyro has refused are looked at here once
more, for one sentence; words that it takes are never refused here.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from medvfm_jax.catalog import nearest

_EVERYWHERE = ("--json", "--debug", "--version", "--help")  # taken out before a command sees its arguments


class Option(NamedTuple):
    """word: "--steps", or "FILE" for one that is given by its place (``placed``).  kind: a tuple for several values.

    repeated: may be given several times, with one element of the tuple each time.
    """

    word: str
    kind: Any
    required: bool
    placed: bool
    repeated: bool


def subcommands(args_type: Any) -> dict[str, Any]:
    """{name: dataclass} of a union of commands, which are called as their classes; {} for a command without any.

    Words of a class's name are joined by hyphens, as tyro does.
    """
    if dataclasses.is_dataclass(args_type):
        return {}
    return {re.sub(r"\B([A-Z])", r"-\1", kind.__name__).lower(): kind for kind in typing.get_args(args_type)}


def complaint(args_type: Any, words: Sequence[str]) -> str | None:
    """One sentence on what is wrong with the words, None if nothing is seen to be."""
    parts = subcommands(args_type)
    if not parts:
        return _complaint([*options_of(args_type)], words)
    if words and words[0] in parts:
        return _complaint([*options_of(parts[words[0]])], words[1:])
    named = next((word for word in words if not _is_option(word)), None)
    if named is None:
        return f"say which: {_one_of(parts)}"
    return f"there is no subcommand '{named}'{_did_you_mean(named, parts)}"


def options_of(kind: Any) -> Iterator[Option]:
    """Every option of a dataclass, called as tyro calls it."""
    import tyro

    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        marks = getattr(hints[field.name], "__metadata__", ())
        placed = tyro.conf.Positional in marks
        named = next((mark.name for mark in marks if getattr(mark, "name", None)), field.name)
        word = f"--{'no-' if field.default is True else ''}{named.replace('_', '-')}"
        if placed:
            word = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), named)
        inner = typing.get_args(hints[field.name])[0] if marks else hints[field.name]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        yield Option(word, inner, required, placed, tyro.conf.UseAppendAction in marks)


def _complaint(options: Sequence[Option], words: Sequence[str]) -> str | None:
    known = {option.word: option for option in options if not option.placed}
    places = [option for option in options if option.placed]
    given: list[tuple[Option, list[str]]] = []
    loose: list[str] = []
    for word in words:
        if _is_option(word):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            if name not in known:
                return f"there is no option {name}{_did_you_mean(name, [*known, *_EVERYWHERE])}"
            given.append((known[name], [value] if equals else []))
        elif given and len(given[-1][1]) < len(_kinds(given[-1][0], len(given[-1][1]) + 1)):
            given[-1][1].append(word)
        else:
            loose.append(word)
    there = {option.word for option, _ in given} | {option.word for option, _ in zip(places, loose)}
    if missing := [option.word for option in options if option.required and option.word not in there]:
        return f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
    if len(loose) > len(places) and not (places and _is_open(places[-1])):
        return f"'{loose[len(places)]}' belongs to no option; quote names that contain spaces"
    return next((wrong for option, values in given if (wrong := _wrong_value(option, values))), None)


def _wrong_value(option: Option, values: Sequence[str]) -> str | None:
    kinds = _kinds(option, len(values))
    if len(values) < len(kinds):
        wanted = "a value" if len(kinds) == 1 else f"{len(kinds)} values"
        return f"{option.word} needs {wanted}" + (f" and has {len(values)}" if values else "")
    if all(map(_reads, kinds, values)):
        return None
    unlike = dict.fromkeys(map(_expected, kinds)) if _is_open(option) else map(_expected, kinds)
    return f"{option.word} is '{' '.join(values)}'; expected {', '.join(unlike)}"


def _kinds(option: Option, n: int) -> list[Any]:
    """What the n values after an option should be; of a tuple of any length at least one."""
    inner = typing.get_args(option.kind)
    kind = inner[0] if option.repeated else option.kind
    if typing.get_origin(kind) is not tuple:
        return [] if kind is bool else [kind]
    inner = typing.get_args(kind)
    return [inner[0]] * max(n, 1) if inner[-1] is Ellipsis else [*inner]


def _is_open(option: Option) -> bool:
    """Whether it takes any number of values at once."""
    return not option.repeated and typing.get_args(option.kind)[-1:] == (Ellipsis,)


def _is_option(word: str) -> bool:
    return word.startswith("-") and word.lstrip("-")[:1].isalpha()


def _choices(kind: Any) -> tuple[Any, ...]:
    """The types of a union, without that of None."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return tuple(choice for choice in typing.get_args(kind) if choice is not type(None))
    return (kind,)


def _reads(kind: Any, text: str) -> bool:
    return any(_is_of(choice, text) for choice in _choices(kind)) or (
        text == "None" and _choices(kind) != (kind,)
    )


def _is_of(kind: Any, text: str) -> bool:
    if typing.get_origin(kind) is typing.Literal:
        return text in typing.get_args(kind)
    if kind in (int, float):
        try:
            kind(text)
        except ValueError:
            return False
    return True


def _expected(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text"}
    said = [
        _one_of(typing.get_args(choice))
        if typing.get_origin(choice) is typing.Literal
        else names.get(choice, "a path")
        for choice in _choices(kind)
    ]
    return " or ".join(said)


def _one_of(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean {near}" if near else ""
