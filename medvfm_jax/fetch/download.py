"""Download one file over https: resumable, verified, renamed into place when complete."""

import errno
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from medvfm_jax.fetch.cache import FetchError, WrongDigest, explain, lock, publish, verify
from medvfm_jax.printable import counted
from medvfm_jax.types import MedvfmError

Progress = Callable[[int, int | None], None]  # (bytes so far, bytes in all or None)

PIECE = 1 << 18
TIMEOUT_S = 60
ATTEMPTS = 4  # a connection that breaks off is resumed this often within one call
PAUSE_S = 1.0  # after the first failure, twice as long after each further one
LOCAL_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT)


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    examine: Callable[[Path], object] | None = None,
) -> Path:
    """Fetch `url` to `target`; a `target` that is already there is verified, not fetched.

    An interrupted download leaves `target.part` and continues there the next time, if the server says the
    file is still the same one (HTTP Range and If-Range).

    Args:
        url: an https address, or one of this machine.
        target: where the file goes.
        sha256: hexadecimal, None: not known.
        size: in bytes, None: not known.
        progress: callback (bytes so far, bytes in all or None).
        examine: called with the whole file before it gets its name; raises MedvfmError for a wrong one.

    Returns:
        `target`.

    Raises:
        FetchError: another kind of address, no connection, refused, disk full.
        WrongDigest: the file arrived whole but is another one, or is refused; the part is deleted.
    """
    require_secure(url)
    if target.exists():  # it has its name once it is whole; a cache that can only be read serves it too
        verify(target, sha256, size)
        return target
    with lock(target):
        if target.exists():  # another process was faster
            verify(target, sha256, size)
            return target
        part = target.with_name(target.name + ".part")
        for attempt in range(ATTEMPTS):
            try:
                if _transfer(url, part, size, sha256 is not None, progress):
                    break
            except (OSError, HTTPException) as error:
                if getattr(error, "errno", None) in LOCAL_ERRORS:
                    raise explain(error, part) from error
                if attempt == ATTEMPTS - 1 or _permanent(error):
                    raise FetchError(
                        f"Cannot download {url}: {_reason(error)}; {_ways_out(target)}"
                    ) from error
                time.sleep(PAUSE_S * 2**attempt)  # a server that is starting again needs a moment
        else:
            raise FetchError(
                f"The connection to {url} broke off {ATTEMPTS} times; run the command again to continue."
            )
        try:
            verify(part, sha256, size)
            if examine is not None:
                examine(part)
        except MedvfmError as error:
            _forget(part)
            raise WrongDigest(
                f"What {url} sent is not the recorded file and was deleted: {str(error).replace(str(part), part.name)}"
            ) from error
        publish(part, target)
        _forget(part)
        return target


def require_secure(url: str) -> None:
    """Only https (or this machine) is acceptable: FetchError otherwise."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost"):
        raise FetchError(f"{url} is not an https address; refusing to fetch weights over an open connection.")


def _transfer(url: str, part: Path, size: int | None, digest_known: bool, progress: Progress | None) -> bool:
    """Append to `part` until the server closes; True when the file is whole."""
    have = part.stat().st_size if part.exists() else 0
    tag = _saved_tag(part, url)
    if have and tag is None and not digest_known:
        have = 0  # without a tag or a digest it is unknown whether both halves are of one file
    if size is not None and have == size:
        return True
    if size is not None and have > size:
        have = 0
    headers = {"User-Agent": "medvfm-jax", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is as long as the file, or longer: start afresh
            _forget(part)
            return False
        raise
    with response:
        require_secure(response.geturl())
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        if response.status == 206 and not resumed:  # another part than was asked for: start afresh
            _forget(part)
            return False
        if not resumed:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else size
        if size is not None and total is not None and total != size:
            raise WrongDigest(
                f"{url} offers {counted(total, 'byte')} where {size} were expected: it is not the recorded file."
            )
        _save_tag(part, url, response.headers.get("ETag"))
        with open(part, "ab" if resumed else "wb") as file:
            while piece := response.read(PIECE):
                file.write(piece)
                have += len(piece)
                if progress:
                    progress(have, total)
                if size is not None and have > size:
                    break
            file.flush()
            os.fsync(file.fileno())
    return total is None or have >= total


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _saved_tag(part: Path, url: str) -> str | None:
    try:
        saved = json.loads(_tag_file(part).read_text())
        return saved["etag"] if saved["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save_tag(part: Path, url: str, etag: str | None) -> None:
    weak = etag is None or etag.startswith("W/")  # If-Range is defined for strong tags only
    _tag_file(part).write_text(json.dumps({"url": url, "etag": None if weak else etag}))


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


def _permanent(error: Exception) -> bool:
    """True for answers that will not change by asking again."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code != 429
    return isinstance(error, urllib.error.URLError)  # no such host, no network, certificate refused


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {str(error.reason).splitlines()[0] if error.reason else ''}".rstrip()
    return str(getattr(error, "reason", error) or type(error).__name__)


def _ways_out(target: Path) -> str:
    return f"check the network, or fetch {target.name} elsewhere and give it to medvfm weights get NAME --from FILE."
