"""JSON from untrusted or damaged files: a value of sane depth, finite numbers, or one short reason."""

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from medvfm_jax.printable import shortened

DEEPEST = 64  # levels; what this package writes has about ten
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_LARGEST = 2**64  # of a whole number; hashes and seeds are below


class BadJson(ValueError):
    """Text that is not JSON as this package writes it; the message is a clause, without a full stop."""


def parse(text: bytes | str) -> Any:
    """UTF-8 JSON -> the value.

    Raises BadJson for other bytes, text after the value, NaN and infinite numbers, whole numbers of 2**64 and more,
    halves of characters, the same name twice in an object and more than ``DEEPEST`` levels: all of these only fail
    later, in code that did not expect them, or not at all.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=once,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_sane_int,
        )
    except UnicodeDecodeError as error:
        raise BadJson(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise BadJson(f"it is nested deeper than {DEEPEST} levels") from error
    except BadJson:
        raise
    except ValueError as error:
        raise BadJson(f"it is not JSON, {error}") from error
    _refuse_deep(value)
    if _HALF.search(text):  # half of a pair, or both: only the value tells
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadJson("it holds half a character") from error
    return value


def read(path: Path) -> Any:
    """The value in a file; raises BadJson as ``parse`` does, and for a file that cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadJson(error.strerror or "the file system does not give it") from error
    return parse(data)


def shown(value: Any) -> str:
    """A value as JSON writes it, for a message: cut off."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:40]}..."


def parse_object(text: bytes | str) -> dict[str, Any]:
    """UTF-8 JSON -> the object; raises BadJson as ``parse`` does, and for any other value."""
    value = parse(text)
    if not isinstance(value, dict):
        raise BadJson(f"it holds {_WORDS[type(value)]} where an object was expected")
    return value


_WORDS = {
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; BadJson for one with the same name twice, as only one of both could be used."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise BadJson(f"'{shortened(name)}' is there twice")
        found[name] = value
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise BadJson(f"it holds {word}, which JSON does not have")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadJson("it holds a number that is too large")
    return value


def _sane_int(text: str) -> int:
    if len(text) > 20 or abs(value := int(text)) >= _LARGEST:
        raise BadJson("it holds a number that is too large")
    return value


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            child
            for part in level
            if isinstance(part, dict | list)
            for child in (part.values() if isinstance(part, dict) else part)
        ]
        if not level:
            return
    raise BadJson(f"it is nested deeper than {DEEPEST} levels")
