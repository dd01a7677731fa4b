import hashlib
import json
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from medvfm_jax.fetch import FetchError, WrongDigest, download
from medvfm_jax.fetch.download import require_secure

fetching = sys.modules["medvfm_jax.fetch.download"]  # the package names the function like the module

CONTENT = np.random.default_rng(0).bytes(1_000_003)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT with Range support; breaks off after `cut` bytes of a response while `cuts` > 0."""

    etag, cut, cuts, ranges, status, statuses, shift, log = '"one"', 0, 0, True, 200, (), 0, []

    def do_GET(self):
        cls = type(self)
        cls.log.append(self.headers.get("Range"))
        status, *cls.statuses = *cls.statuses, cls.status
        if status == 302:
            self.send_response(status)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        if status != 200:
            self.send_error(status)
            return
        start = 0
        wanted = self.headers.get("Range")
        condition = self.headers.get("If-Range")
        if cls.ranges and wanted and condition in (None, cls.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) - cls.shift
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(body)))
        if cls.etag:
            self.send_header("ETag", cls.etag)
        self.end_headers()
        if cls.cuts > 0:
            cls.cuts -= 1
            body = body[: cls.cut]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE_S", 0.0)
    handler = type("Handler", (Server,), {"log": []})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.handle_error = lambda *_: None  # a client that hangs up early is part of these tests
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{httpd.server_port}/file.pth"
    yield handler
    httpd.shutdown()
    httpd.server_close()


def test_downloads_once_and_then_stays_offline(server, tmp_path):
    target, seen = tmp_path / "sub" / "file.pth", []
    for _ in range(2):
        path = download(
            server.url, target, sha256=DIGEST, size=len(CONTENT), progress=lambda *a: seen.append(a)
        )
        assert path.read_bytes() == CONTENT
    assert len(server.log) == 1
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert sorted(p.name for p in target.parent.iterdir()) == [".file.pth.lock", "file.pth"]


def test_continues_where_the_connection_broke(server, tmp_path):
    server.cut, server.cuts = 400_000, 2
    download(server.url, tmp_path / "f", sha256=DIGEST)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.log == [None, "bytes=400000-", "bytes=800000-"]


def test_starts_afresh_when_the_file_changed_or_ranges_are_unknown(server, tmp_path):
    for change in ({"etag": '"two"'}, {"ranges": False}):
        (tmp_path / "f.part").write_bytes(b"old half")
        (tmp_path / "f.part.json").write_text(json.dumps({"url": server.url, "etag": '"one"'}))
        for name, value in change.items():
            setattr(server, name, value)
        download(server.url, tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == CONTENT
        (tmp_path / "f").unlink()
        server.etag = '"one"'


def test_unknown_digest_and_no_tag_never_joins_two_halves(server, tmp_path):
    server.etag = None
    (tmp_path / "f.part").write_bytes(b"old half")
    download(server.url, tmp_path / "f")
    assert server.log == [None]
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_wrong_digest_leaves_nothing(server, tmp_path):
    with pytest.raises(WrongDigest, match="not the recorded file"):
        download(server.url, tmp_path / "f", sha256="0" * 64)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".") and p.name != "cache"] == []
    with pytest.raises(WrongDigest, match="offers"):
        download(server.url, tmp_path / "f", size=7)


def test_damaged_cached_file_is_refused(server, tmp_path):
    (tmp_path / "f").write_bytes(b"damaged")
    with pytest.raises(WrongDigest, match="sha256"):
        download(server.url, tmp_path / "f", sha256=DIGEST)


def test_server_errors_are_one_sentence(server, tmp_path):
    server.status = 404
    with pytest.raises(FetchError, match=r"answered 404.*--from"):
        download(server.url, tmp_path / "f")
    assert len(server.log) == 1  # asking again would not help
    server.cut, server.cuts, server.status = 10, 99, 200
    with pytest.raises(FetchError, match="broke off"):
        download(server.url, tmp_path / "f", sha256=DIGEST)
    with pytest.raises(FetchError, match="Cannot download"):
        download("http://127.0.0.1:9/none", tmp_path / "g")


def test_only_https():
    with pytest.raises(FetchError, match="not an https address"):
        require_secure("http://example.org/x.pth")
    require_secure("https://example.org/x.pth")


def test_a_killed_download_is_continued_and_leaves_nothing(server, tmp_path):
    """SIGKILL in the middle: the part stays, and the next process asks for the rest of it."""
    target = tmp_path / "f"
    script = (
        "import sys, time; from pathlib import Path; from medvfm_jax.fetch import download\n"
        "def pause(have, total): have < 500_000 or (print('half', flush=True), time.sleep(600))\n"
        "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], progress=pause)"
    )
    words = [sys.executable, "-c", script, server.url, str(target), DIGEST]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    part = target.with_name("f.part").stat().st_size
    assert part > 0
    assert download(server.url, target, sha256=DIGEST).read_bytes() == CONTENT
    assert server.log == [None, f"bytes={part}-"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f.lock", "f"]


def test_a_cache_that_can_only_be_read_serves_what_it_has(server, tmp_path):
    (tmp_path / "f").write_bytes(CONTENT)
    (tmp_path / ".f.lock").mkdir()  # cannot be opened for writing, as in a read-only folder
    assert download(server.url, tmp_path / "f", sha256=DIGEST) == tmp_path / "f"
    assert server.log == []


def test_a_server_that_fails_once_is_given_a_moment(server, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(fetching, "PAUSE_S", 1.0)
    monkeypatch.setattr(fetching.time, "sleep", waited.append)
    server.statuses = [503, 429]
    assert download(server.url, tmp_path / "f").read_bytes() == CONTENT
    assert waited == [1.0, 2.0]


def test_another_part_than_was_asked_for_is_not_joined(server, tmp_path):
    server.cut, server.cuts, server.shift = 700_000, 1, 5
    assert download(server.url, tmp_path / "f").read_bytes() == CONTENT
    assert server.log == [None, "bytes=700000-", None]


def test_a_redirection_to_itself_is_one_line(server, tmp_path):
    server.status = 302
    with pytest.raises(FetchError, match=r"answered 302 ") as told:
        download(server.url, tmp_path / "f")
    assert "\n" not in str(told.value)
