"""What storage holds of a run is read whole or refused, and lies apart from the run."""

import json

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from medvfm_jax.runs.retrieve import fetch
from medvfm_jax.runs.stored_copy import MirrorError, digest_of, refuse_inside


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b'{"digest": "0", "content": {"format": 1, "files": {}}}', b"[1]"]
)
def test_a_manifest_that_is_none_is_refused(run, tmp_path, damage):
    MemoryFileSystem().pipe_file("/a/manifest.json", damage)
    with pytest.raises(MirrorError, match=r"manifest\.json is not what a run writes"):
        fetch("memory://a", tmp_path)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ".lock", ""])
def test_names_that_lead_out_of_the_run_are_refused(tmp_path, name):
    body = {"format": 1, "files": {name: {"sha256": "0" * 64, "bytes": 1}}}
    record = {"digest": digest_of(body), "content": body}
    MemoryFileSystem().pipe_file("/a/manifest.json", json.dumps(record).encode())
    with pytest.raises(MirrorError, match="outside the run"):
        fetch("memory://a", tmp_path)


@pytest.mark.parametrize("place", ["run", "run/copy", "other/../run/copy"])
def test_a_place_inside_the_run_is_refused(run, tmp_path, place):
    """Each copy would hold all those before it."""
    (tmp_path / "other").mkdir()
    with pytest.raises(MirrorError, match="lie in each other"):
        refuse_inside(f"file://{tmp_path}/{place}", run)


def test_a_run_inside_the_files_of_the_copy_is_refused_and_places_beside_it_are_taken(run, tmp_path):
    with pytest.raises(MirrorError, match="lie in each other"):
        refuse_inside(f"file://{tmp_path}/copy", tmp_path / "copy" / "files" / "run")
    for url in (f"file://{tmp_path}/run2", f"file://{tmp_path}", f"memory://{run}/copy"):
        refuse_inside(url, run)


def test_storage_that_cannot_be_reached_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(MirrorError, match="Protocol not known: foo"):
        fetch("foo://a", tmp_path)

    def cat_file(self, path, **options):
        raise PermissionError("denied")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    with pytest.raises(MirrorError, match=r"cannot be read \(PermissionError: denied\)"):
        fetch("memory://a", tmp_path)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(MirrorError, match=r"pip install 'medvfm-jax\[storage\]'"):
        fetch("gs://bucket/run", tmp_path)
