"""Every path option of every command, found by looking at the commands: a new one is covered by itself."""

import dataclasses
import functools
import importlib
import typing
from pathlib import Path

import numpy as np
import pytest

from medvfm_jax import report
from medvfm_jax.cli.main import COMMANDS
from medvfm_jax.cli.usage import subcommands
from medvfm_jax.images.image import Image
from medvfm_jax.images.writing import write_mask
from medvfm_jax.local_paths import URL, BadPath
from medvfm_jax.predict.loading import load_segmenter
from medvfm_jax.runs import run_directory
from medvfm_jax.settings import EvaluateConfig
from medvfm_jax.settings.federate import FederateConfig
from medvfm_jax.train import AdaptConfig
from medvfm_jax.weights import artifacts

REMOTE = "gs://bucket/x"


def commands():
    """(words, dataclass of its arguments) of every command and subcommand."""
    for name in COMMANDS:
        kind = getattr(importlib.import_module(f"medvfm_jax.cli.options.{name}"), f"{name.capitalize()}Args")
        if dataclasses.is_dataclass(kind):
            yield (name,), kind
            continue
        for word, part in subcommands(kind).items():
            yield (name, word), part


def kinds_in(hint):
    """All types in an annotation."""
    return {hint} | functools.reduce(set.union, map(kinds_in, typing.get_args(hint)), set())


def described(kind):
    """(flag or None for one given by its place, types, whether it must be given) of each field; none for addresses."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        about = repr(getattr(hints[field.name], "__metadata__", ()))
        given = [a.name for a in getattr(hints[field.name], "__metadata__", ()) if getattr(a, "name", None)]
        flag = f"--{(given[0] if given and isinstance(given[0], str) else field.name).replace('_', '-')}"
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        types = set() if field.metadata.get(URL) else kinds_in(hints[field.name])
        yield None if "Positional" in about else flag, types, needed


HERE = "HERE"  # stands for the value in the words of a command


def options(*kinds):
    """(name of the option, words of a command that gives it the value HERE) for options of these types."""
    for words, kind in commands():
        rows = list(described(kind))
        for flag, types, _ in rows:
            if types.isdisjoint(kinds) and flag != "--data":
                continue
            given = [flag, HERE] if flag else [HERE]
            for other, _, needed in rows:
                if needed and other != flag:
                    given = [*given, other, "x"] if other else ["x", *given]  # options of many words take all
            yield pytest.param(flag, [*words, *given], id=f"{' '.join(words)} {flag or 'place'}")


def with_value(words, value):
    return [value if word is HERE else word for word in words]


def test_the_options_that_are_known_are_found():
    names = {option.id for option in options(Path)}
    assert {
        "adapt --out",
        "adapt --data",
        "weights get --from",
        "weights export place",
        "report place",
    } <= names
    flags = [option.values[0] for option in options(Path)]
    assert (
        flags.count("--out") >= 8
    )  # quickstart, adapt, federate, evaluate, segment, report, bench, convert, export
    assert {"--sites", "--logits", "--weights", "--delta", "--run", "--file", "--data"} <= set(flags)


@pytest.mark.parametrize(
    ("flag", "words"), [option for option in options(Path, str) if option.values[0] != "--data"]
)
def test_a_bucket_is_refused_before_anything_is_done(flag, words, medvfm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    medvfm(*with_value(words, REMOTE)).refused(
        REMOTE, "gs:// is not supported: give a path on a disk of this machine", code=2
    )
    assert list(tmp_path.iterdir()) == []


def test_addresses_are_few_and_named():
    found = {
        (words, f.name) for words, kind in commands() for f in dataclasses.fields(kind) if f.metadata.get(URL)
    }
    trainings = {((command,), name) for command in ("adapt", "distill") for name in ("mirror", "mlflow")}
    assert found == trainings | {(("fetch",), "url")}


@pytest.mark.parametrize(
    ("flag", "address"),
    [
        ("--mirror", "s3://AKIA:hid/den@bucket/run"),
        ("--mirror", "az://box/run?SIG=hidden"),
        ("--mlflow", "http://me:hidden@host:5000"),
    ],
)
def test_an_address_with_a_password_is_refused_unseen_for_it_would_be_recorded(
    flag, address, medvfm, tmp_path
):
    said = medvfm("adapt", "--data", "cells", "--out", tmp_path / "run", flag, address)
    said.refused(f"{flag[2:]} holds a password or a key", "leave it out of the address", code=2)
    assert "hid" not in said.out + said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["gs://bucket/a:b@c", "sftp://me@host/run", "http://host:5000/a@b", "file:///a/b?x=1"]
)
def test_an_address_without_a_password_is_taken(address):
    assert AdaptConfig("cells", mirror=address, mlflow=address).mirror == address


@pytest.mark.parametrize("kind", [AdaptConfig, EvaluateConfig, FederateConfig])
def test_the_records_of_settings_refuse_it_too(kind):
    needed = {"data": "cells"} if kind is not EvaluateConfig else {"run": Path("runs/a")}
    names = [
        f.name for f in dataclasses.fields(kind) if Path in kinds_in(typing.get_type_hints(kind)[f.name])
    ]
    assert "out" in names
    for name in names:
        with pytest.raises(BadPath, match=f"{name} is {REMOTE}"):
            kind(**(needed | {name: Path(REMOTE)}))
    assert kind(**(needed | {"data": REMOTE})).data == REMOTE  # which may lie elsewhere


def test_functions_that_write_refuse_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = np.zeros((2, 2), np.uint8)
    picture = Image(array=labels[..., None], spacing=(1.0, 1.0), affine=None, path=Path("x.png"))
    for call in (
        lambda: report.write([tmp_path], Path(REMOTE)),
        lambda: report.write([Path(REMOTE)]),
        lambda: load_segmenter(run=Path(REMOTE)),
        lambda: load_segmenter("sam-b", Path(REMOTE)),
        lambda: artifacts.save_delta(Path(REMOTE), {"a": {"b": labels}}, {}),
        lambda: write_mask(Path(REMOTE) / "mask.png", labels, picture),
        lambda: run_directory.locked(Path(REMOTE)).__enter__(),
    ):
        with pytest.raises(BadPath, match="is not supported"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_in_a_bucket_is_refused(medvfm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDVFM_CACHE", REMOTE)
    medvfm("weights", "list").refused("MEDVFM_CACHE is gs://bucket/x", code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 300, "d/" * 2100], ids=["name", "path"])
@pytest.mark.parametrize(("flag", "words"), options(Path))
def test_what_is_too_long_for_a_file_system_is_one_sentence(flag, words, name, medvfm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    medvfm(*with_value(words, name)).refused()
    assert list(tmp_path.iterdir()) == []
