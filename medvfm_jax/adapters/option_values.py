"""Turn "lora.rank=8" from a command line into a typed option."""

import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from medvfm_jax.adapters.errors import BadAdapterConfig

_TRUE, _FALSE, _NONE = ("true", "yes", "1"), ("false", "no", "0"), ("none", "null")


def parse_assignments(
    texts: Iterable[str], form: str = "part.option=value, such as lora.rank=8"
) -> dict[str, str]:
    """Split ["lora.rank=8"] into {"lora.rank": "8"}.

    Args:
        texts: "name=value" each.
        form: what to write, for the message.

    Returns:
        {name: text of the value}.

    Raises:
        BadAdapterConfig: a text that is not "name=value", or a name that is given twice.
    """
    assignments: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise BadAdapterConfig(f"'{text}' is no setting: write {form}.")
        name, value = name.strip(), value.strip()
        if name in assignments:
            raise BadAdapterConfig(f"{name} is set to {assignments[name]} and to {value}; give it once.")
        assignments[name] = value
    return assignments


def typed(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` (text from a command line, or already a value) as the annotated type ``hint``.

    Raises BadAdapterConfig naming ``where`` it was and what was expected.
    """
    for choice in _choices(hint):
        converted = _convert(value, choice)
        if converted is not _UNFIT:
            return converted
    expected = " or ".join(_shown(choice) for choice in _choices(hint))
    raise BadAdapterConfig(f"{where} must be {expected}, not '{value}'.")


_UNFIT = object()


def _choices(hint: Any) -> list[Any]:
    """Split a union, None first: the text "none" is otherwise a string."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return sorted(typing.get_args(hint), key=lambda choice: choice is not type(None))
    return [hint]


def _convert(value: Any, choice: Any) -> Any:
    text = value.lower() if isinstance(value, str) else None
    if choice is type(None):
        return None if value is None or text in _NONE else _UNFIT
    if typing.get_origin(choice) is Literal:
        return value if value in typing.get_args(choice) else _UNFIT
    if choice is bool:
        if text is None:
            return value if isinstance(value, bool) else _UNFIT
        return True if text in _TRUE else False if text in _FALSE else _UNFIT
    if choice in (int, float):
        return _number(value, choice)
    return value if isinstance(value, choice) else _UNFIT


def _number(value: Any, choice: type) -> Any:
    if isinstance(value, bool) or (choice is int and isinstance(value, float)):
        return _UNFIT
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        return _UNFIT  # Python reads 1_0 and digits of other scripts
    try:
        number = choice(value)
    except (TypeError, ValueError):
        return _UNFIT
    return number if abs(number) < math.inf else _UNFIT


def _shown(choice: Any) -> str:
    if choice is type(None):
        return "none"
    if typing.get_origin(choice) is Literal:
        return " or ".join(f"'{option}'" for option in typing.get_args(choice))
    return {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}.get(
        choice, str(choice)
    )
