import errno
import hashlib
import subprocess
import sys
import time

import pytest

from medvfm_jax.fetch import cache


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDVFM_CACHE", str(tmp_path / "here"))
    assert cache.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("MEDVFM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / ".cache" / "medvfm"


def test_verify_returns_the_digest_and_names_what_differs(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert cache.verify(path, digest, 3) == digest
    assert cache.verify(path, None, None) == digest
    with pytest.raises(cache.WrongDigest, match="3 bytes where 4"):
        cache.verify(path, digest, 4)
    with pytest.raises(cache.WrongDigest, match="sha256"):
        cache.verify(path, "0" * 64, 3)
    with pytest.raises(cache.FetchError, match="does not exist"):
        cache.verify(tmp_path / "none", None, None)


def test_publish_is_all_or_nothing(tmp_path):
    target = tmp_path / "deep" / "target"
    with pytest.raises(ZeroDivisionError), cache.temporary(target) as part:
        part.write_bytes(b"half" * (1 // 0))
    assert [p.name for p in target.parent.iterdir()] == []
    with cache.temporary(target) as part:
        part.write_bytes(b"whole")
        cache.publish(part, target)
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    assert target.read_bytes() == b"whole"


def test_full_disk_is_a_sentence(tmp_path):
    for folder, remedy in ((cache.cache_dir(), "set MEDVFM_CACHE"), (tmp_path, "choose another place")):
        with (
            pytest.raises(
                cache.FetchError, match=rf"disk is full while writing .*/x; free space or {remedy}"
            ),
            cache.temporary(folder / "x"),
        ):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_cache_below_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(cache.FetchError, match="Cannot write"):
        cache.make_folder(tmp_path / "file" / "cache")


def test_lock_makes_another_process_wait(tmp_path):
    target = tmp_path / "target"
    script = (
        "import sys; from pathlib import Path; from medvfm_jax.fetch.cache import lock\n"
        "print('up', flush=True)\n"
        f"with lock(Path({str(target)!r})): print('in', flush=True)"
    )
    with cache.lock(target):
        other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert other.stdout.readline() == "up\n"
        time.sleep(0.3)
        assert other.poll() is None  # still waiting
    assert other.communicate(timeout=30)[0] == "in\n"


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / ".w.pth.lock").mkdir()  # as a read-only folder does, also where the tests run as root
    with pytest.raises(cache.FetchError, match=r"Cannot write .*/w\.pth: "), cache.lock(tmp_path / "w.pth"):
        pass
