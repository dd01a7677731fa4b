import jax
import pytest

from medvfm_jax import compilation_cache


@pytest.fixture
def settings(monkeypatch):
    """JAX's settings as they are in a new process, restored afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_lies_in_the_cache_folder(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "compiled")
    assert (tmp_path / "cache" / "compiled").is_dir()


@pytest.mark.parametrize("by", ["environment", "setting"])
def test_a_cache_already_chosen_stays(settings, monkeypatch, tmp_path, by):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "cache"))
    if by == "environment":
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    else:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    before = jax.config.jax_compilation_cache_dir
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == before
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_made_is_no_reason_to_refuse(settings, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "file"))
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
