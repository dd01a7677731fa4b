"""Paths are on this machine, and names out of files stay names."""

import dataclasses
from pathlib import Path

import pytest

from medvfm_jax.local_paths import BadPath, check, check_all, file_word
from medvfm_jax.types import MedvfmError


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("gs://bucket/run", "gs://bucket/run"),
        (Path("gs://bucket/run"), "gs://bucket/run"),
        ("s3://b", "s3://b"),
        ("file:///tmp/x", "file:///tmp/x"),
        ("hdfs:///", "hdfs:///"),
        (Path("hdfs:///"), "hdfs:"),
        (Path("hdfs:///data/x"), "hdfs:/data/x"),
        (Path("gs://"), "gs://"),
        ("hdfs+x.y-1://h/p", "hdfs+x.y-1://h/p"),
        ("x://b/y", "x://b/y"),
        (Path("x://b/y"), "x://b/y"),
        (" gs://b/y", " gs://b/y"),
        (Path(" gs://b/y"), "gs://b/y"),
    ],
)
def test_a_scheme_is_refused_and_shown_as_it_was_given(path, shown):
    with pytest.raises(BadPath, match="is not supported: give a path on a disk of this machine") as caught:
        check(path, "--out")
    assert str(caught.value).startswith(f"--out is {shown}, ")
    assert isinstance(caught.value, MedvfmError)


@pytest.mark.parametrize(
    "path",
    ["runs/a", "/runs/a", "../a", "a:b", "a:", "runs/gs:/x", "12:30/x", "ü" * 127, "/".join("a" * 2000)],
)
def test_what_a_file_system_can_hold_is_a_path(path):
    check(path)
    check(Path(path))


@pytest.mark.parametrize("path", ["a" * 256, "x/" + "ü" * 128 + "/y", "a/" * 2100, "a\0b"])
def test_names_that_no_file_system_holds_are_refused(path):
    with pytest.raises(BadPath, match=r"longer than file systems allow|zero byte") as caught:
        check(path)
    assert len(str(caught.value)) < 250


@dataclasses.dataclass
class Settings:
    out: Path | None = None
    images: tuple[Path, ...] = ()
    data: str = "cells"
    text: str = ""
    from_: Path | None = None
    steps: int = 1


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("out", Path("gs://x")),
        ("images", (Path("a"), Path("s3://x"))),
        ("text", "gs://x"),
        ("out", Path("a" * 300)),
        ("from_", Path("gs://x")),  # an option named like a word of Python
    ],
)
def test_every_path_of_a_record_is_checked_and_named(changed, value):
    check_all(Settings(Path("a"), (Path("b"),), "a" * 300))  # a text that is no path may be long
    check_all(Settings(data="gs://bucket/cells"))
    with pytest.raises(BadPath, match=f"^{changed.rstrip('_')} is "):
        check_all(Settings(**{changed: value}))


def test_an_address_of_data_holds_no_password():
    with pytest.raises(BadPath, match=r"^data holds a password or a key"):
        check_all(Settings(data="s3://key:hidden@bucket/x"))


def test_a_name_becomes_one_word_of_a_file_name():
    assert (
        file_word("Dataset001_MSD-Hippocampus v2.1 (test+val)")
        == "Dataset001_MSD-Hippocampus v2.1 _test+val_"
    )
    for attack in (
        "../../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..",
        ".hidden",
        "",
        "a\0b",
        "\x1b[2J",
        "x" * 999,
        "ü" * 99,
    ):
        word = file_word(attack)
        path = Path("folder") / f"scores_{word}.json"
        assert path.parent == Path("folder")
        assert ".." not in path.parts
        assert 1 <= len(word.encode()) <= 100
        assert word.isprintable()
