"""No test of this folder sees, or fills, the cache of whoever runs it."""

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path_factory.mktemp("cache")))
