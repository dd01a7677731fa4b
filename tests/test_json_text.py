"""JSON of unknown origin: what this package writes is read, everything else is one short reason."""

import json

import pytest

from medvfm_jax.json_text import DEEPEST, BadJson, parse, parse_object


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_values_are_read_as_json_reads_them():
    record = {"a": [1, -2.5, None, True, "ü"], "b": {"c": 2**64 - 1, "d": 1e-300}}
    assert parse(json.dumps(record)) == parse(json.dumps(record, ensure_ascii=False).encode()) == record
    assert parse(r'"\ud83d\ude00"') == "😀"
    assert parse(nested(DEEPEST)) == json.loads(nested(DEEPEST))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (nested(DEEPEST + 1), "deeper than 64 levels"),
        (nested(100_000), "deeper than 64 levels"),
        ("NaN", "holds NaN"),
        ('{"a": -Infinity}', "holds -Infinity"),
        ("1e999", "number that is too large"),
        ("-1e999", "number that is too large"),
        (str(2**64), "number that is too large"),
        ("9" * 10_000, "number that is too large"),
        (r'{"a": "\ud800"}', "half a character"),
        (r'{"\uDC00": 1}', "half a character"),
        ('{"a": {"b": 1, "b": 2}}', "'b' is there twice"),
    ],
)
def test_everything_else_is_one_short_reason(text, reason):
    with pytest.raises(BadJson, match=reason) as caught:
        parse(text)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("text", "kind"),
    [("[1]", "a list"), ('"x"', "a string"), ("1", "a number"), ("null", "null"), ("true", "true")],
)
def test_an_object_is_an_object(text, kind):
    assert parse_object('{"a": 1}') == {"a": 1}
    with pytest.raises(BadJson, match=f"holds {kind}.* where an object was expected"):
        parse_object(text)
