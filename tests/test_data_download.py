"""Downloads from a server on this machine: resumed, checked, and never half a file under the final name."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from subbyte.data import DataError
from subbyte.data.files import File, fetch


def facts(name: str, content: bytes, *urls: str) -> File:
    return File(name, hashlib.md5(content).hexdigest(), len(content), urls)


class Server(ThreadingHTTPServer):
    """Serves `contents`. requests: their (path, Range); ranges: is Range honoured; cut: bytes until it closes."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents, self.requests, self.ranges, self.cut = contents, [], True, None

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path[1:], asked))
        content = server.contents.get(self.path[1:])
        if content is None:
            return self.send_error(404)
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if first and first >= len(content):
            return self.send_error(416)
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first : server.cut])

    def log_message(self, *_):
        pass


CONTENT = bytes(range(256)) * 20


@pytest.fixture
def server():
    with Server({"file": CONTENT}) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_fetch(tmp_path, server):
    fetch(facts("file", CONTENT, server.url("file")), tmp_path / "new" / "file")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    (tmp_path / "source").write_bytes(CONTENT)
    fetch(facts("file", CONTENT, (tmp_path / "source").as_uri()), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_fetch_resumes(tmp_path, server, ranges):
    file = facts("file", CONTENT, server.url("file"))
    server.cut = 1000
    with pytest.raises(DataError, match=r"received 1000 bytes \(half-downloaded\?\)[\s\S]*Run it again to resume"):
        fetch(file, tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file.part"]  # the final name never holds half a file
    server.cut, server.ranges = None, ranges
    fetch(file, tmp_path / "file")
    assert server.requests == [("file", None), ("file", "bytes=1000-")]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_fetch_after_a_kill_before_the_rename(tmp_path, server):
    (tmp_path / "file.part").write_bytes(CONTENT)
    fetch(facts("file", CONTENT, server.url("file")), tmp_path / "file")
    assert server.requests == []


@pytest.mark.parametrize("old", [b"x" * 1000, b"x" * len(CONTENT), b"x" * 2 * len(CONTENT)])
def test_fetch_recovers_from_a_wrong_part(tmp_path, server, old):
    file = facts("file", CONTENT, server.url("file"))
    (tmp_path / "file.part").write_bytes(old)
    if len(old) < len(CONTENT):  # resumed, found wrong, thrown away: the next run starts afresh
        with pytest.raises(DataError, match="received MD5"):
            fetch(file, tmp_path / "file")
    fetch(file, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_fetch_refuses_other_content_and_keeps_the_old_file(tmp_path, server):
    (tmp_path / "file").write_bytes(b"old")
    wanted = facts("file", CONTENT[::-1], server.url("file"))
    with pytest.raises(DataError, match=r"could not download file \(5120 bytes, MD5 [\s\S]*received MD5"):
        fetch(wanted, tmp_path / "file")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_fetch_starts_again_if_the_server_has_less(tmp_path, server):
    server.contents["file"] = CONTENT[:500]
    (tmp_path / "file.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match="received 500 bytes"):
        fetch(facts("file", CONTENT, server.url("file")), tmp_path / "file")
    assert server.requests == [("file", "bytes=1000-"), ("file", None)]


def test_fetch_tries_each_address(tmp_path, server):
    dead = ("http://127.0.0.1:9/file", server.url("gone"), "no address")
    fetch(facts("file", CONTENT, *dead, server.url("file")), tmp_path / "file")
    with pytest.raises(DataError) as error:
        fetch(facts("file", CONTENT, *dead), tmp_path / "other")
    text = str(error.value)
    assert "http://127.0.0.1:9/file: " in text
    assert "404" in text
    assert "unknown url type" in text
    assert f"put it at {tmp_path / 'other'}" in text
    with pytest.raises(DataError, match="cannot make the folder"):
        fetch(facts("file", CONTENT, server.url("file")), tmp_path / "file" / "inside")
