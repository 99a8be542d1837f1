"""Downloads against a local web server: mirrors, checksums, damage, races."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from dlrun.data import _download
from dlrun.data._download import RemoteFile, fetch
from dlrun.registry import ConfigError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.hits.append(self.path)
        kind = self.path.split("/")[1]
        if kind == "busy":
            self.send_error(503)
            return
        body = b"x" + CONTENT[1:] if kind == "wrong" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "truncated" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.hits = []
        found.url = f"http://127.0.0.1:{found.server_port}"
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def remote(server, *kinds):
    return RemoteFile("a.gz", MD5, tuple(f"{server.url}/{kind}/a.gz" for kind in kinds))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_download(server, tmp_path):
    """A good mirror gives the whole file in a folder that did not exist, and no second request once it is there."""
    file = remote(server, "good")
    for _ in range(2):
        assert fetch(file, tmp_path / "new" / "raw", [file]).read_bytes() == CONTENT
    assert server.hits == ["/good/a.gz"]
    assert names(tmp_path / "new" / "raw") == ["a.gz"]


@pytest.mark.parametrize("bad", ["busy", "wrong", "truncated"])
def test_next_mirror(server, tmp_path, bad):
    """A mirror that is busy, serves another file or breaks off is followed by the next one."""
    file = remote(server, bad, "good", "never")
    assert fetch(file, tmp_path, [file]).read_bytes() == CONTENT
    assert server.hits == [f"/{bad}/a.gz", "/good/a.gz"]
    assert names(tmp_path) == ["a.gz"]


def test_nothing_works(server, tmp_path):
    """The error is one line that names every reason, the files with their MD5 and the folder; nothing is left behind."""
    file, other = remote(server, "busy", "wrong", "truncated"), RemoteFile("b.gz", "0" * 32, ())
    with pytest.raises(ConfigError) as caught:
        fetch(file, tmp_path, [file, other])
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "HTTP 503",
        "wrong checksum",
        "broke off",
        f"a.gz (md5 {MD5})",
        f"b.gz (md5 {'0' * 32})",
        str(tmp_path),
    ):
        assert part in message
    assert names(tmp_path) == []


def test_no_network(tmp_path, monkeypatch):
    """A refused connection is one of the reasons, not a traceback."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file = RemoteFile("a.gz", MD5, ("http://127.0.0.1:9/a.gz",))
    with pytest.raises(ConfigError, match="Connection refused"):
        fetch(file, tmp_path, [file])


def test_folder_cannot_be_written(server, tmp_path):
    """A place where no folder can be made is an error that still says what to put where."""
    (tmp_path / "file").write_text("")
    file = remote(server, "good")
    with pytest.raises(ConfigError, match=r"a.gz is missing and cannot be downloaded"):
        fetch(file, tmp_path / "file" / "raw", [file])
    assert server.hits == []


def test_two_at_once(server, tmp_path):
    """Two downloads of one file at the same time make one request and both get the file."""
    file, found = remote(server, "good"), []
    barrier = threading.Barrier(2)

    def work():
        barrier.wait()
        found.append(fetch(file, tmp_path, [file]).read_bytes())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT, CONTENT]
    assert server.hits == ["/good/a.gz"]


def test_interrupted(server, tmp_path, monkeypatch):
    """An interruption in mid-download leaves neither the file nor a part of it."""

    def interrupt(answer, expected, name):
        yield answer.read(1000)
        raise KeyboardInterrupt

    monkeypatch.setattr(_download, "_with_progress", interrupt)
    file = remote(server, "good")
    with pytest.raises(KeyboardInterrupt):
        fetch(file, tmp_path, [file])
    assert names(tmp_path) == []
