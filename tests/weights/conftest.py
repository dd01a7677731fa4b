"""A cache of its own for every test, so that nobody's real cache is touched."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("MEDVFM_CACHE", str(folder))
    return folder
