"""Downloads against a local web server: mirrors, checksums, damage, races."""

import hashlib
import http.server
import os
import signal
import subprocess
import sys
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
        if kind == "first_stalls":
            kind = "stalls" if len(self.server.hits) == 1 else "good"
        body = b"x" + CONTENT[1:] if kind == "wrong" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind in ("slow", "stalls"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.go_on.wait(60)
            body = body[len(body) // 2 :] if kind == "slow" else b""
        self.wfile.write(body[: len(body) // 2] if kind == "truncated" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        found.hits = []
        found.go_on = threading.Event()
        found.url = f"http://127.0.0.1:{found.server_port}"
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.go_on.set()
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


FETCH = """
import signal, sys
from pathlib import Path
from dlrun.data._download import RemoteFile, fetch

def stop(number, frame):
    raise SystemExit(128 + number)

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, stop)
file = RemoteFile("a.gz", sys.argv[1], (sys.argv[2],))
fetch(file, Path(sys.argv[3]), [file])
"""


def downloader(server, kind, folder):
    """A process that downloads the file into `folder`."""
    words = [MD5, f"{server.url}/{kind}/a.gz", str(folder)]
    return subprocess.Popen([sys.executable, "-c", FETCH, *words], stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def wait_for(condition):
    """Waits until a condition holds, for a minute at most."""
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited in vain")


def half_there(folder):
    """Whether a part of the file lies in `folder` with something in it."""
    return any(part.stat().st_size for part in folder.glob(".a.gz.*.part")) if folder.is_dir() else False


def waits_for_a_lock(process):
    """Whether a process waits for the lock of a file."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any(" -> " in line and line.split()[5] == str(process.pid) for line in locks)


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="shows who waits on Linux only")
def test_two_processes_at_once(server, tmp_path):
    """Two processes that want one file at the same time make one request, and both succeed."""
    first = downloader(server, "slow", tmp_path / "raw")
    wait_for(lambda: server.hits)
    second = downloader(server, "slow", tmp_path / "raw")
    wait_for(lambda: waits_for_a_lock(second))
    server.go_on.set()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert server.hits == ["/slow/a.gz"]
    assert names(tmp_path / "raw") == ["a.gz"]
    assert (tmp_path / "raw" / "a.gz").read_bytes() == CONTENT


def test_a_killed_download(server, tmp_path):
    """A download killed half-way holds up nobody, and what it left is neither taken for the file nor kept."""
    first = downloader(server, "first_stalls", tmp_path / "raw")
    wait_for(lambda: half_there(tmp_path / "raw"))
    first.kill()
    assert first.wait(60) == -signal.SIGKILL
    assert names(tmp_path / "raw") == [f".a.gz.{first.pid}.part"]
    (tmp_path / "raw" / ".b.gz.1.part").touch()  # of another file
    file = remote(server, "first_stalls")
    assert fetch(file, tmp_path / "raw", [file]).read_bytes() == CONTENT
    assert names(tmp_path / "raw") == [".b.gz.1.part", "a.gz"]
    assert server.hits == ["/first_stalls/a.gz"] * 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_download(server, tmp_path, number):
    """A signal half-way leaves nothing: no part of the file, no folder made for it."""
    process = downloader(server, "stalls", tmp_path / "new" / "raw")
    wait_for(lambda: half_there(tmp_path / "new" / "raw"))
    os.kill(process.pid, number)
    assert process.wait(60) == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143}[number]
    assert names(tmp_path) == []


def test_without_locks(server, tmp_path, monkeypatch):
    """On a file system without locks the file still comes, and what may be another process's part stays."""
    import fcntl

    def refuse(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".a.gz.1.part").touch()
    file = remote(server, "good")
    assert fetch(file, tmp_path, [file]).read_bytes() == CONTENT
    assert names(tmp_path) == [".a.gz.1.part", "a.gz"]
