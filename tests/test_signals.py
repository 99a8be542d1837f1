"""Real signals to real processes: the exit code, one line, and nothing lost or left behind."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dlrun.trainer import Trainer

QUICK = (
    "model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.epochs=3", "data.limit_train=64",
    "callbacks=none", "hydra.run.dir=run",
)  # fmt: skip
STREAMING = ("data=image_folder", "data.path=pictures", "data.image_size=8", "data.loader=streaming", "data.workers=2")
WAIT_S = 120  # for what comes much sooner; only a failing test waits so long


def start(folder: Path, script: str, *words: str) -> subprocess.Popen[str]:
    """A process that runs `script` and then the command line, in a process group of its own. The parent's choice to ignore
    Ctrl-C, which a job in the background inherits, is undone."""
    code = f"import os, signal, sys, time\n{script}\nfrom dlrun.cli import main\nmain(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def pictures(folder: Path) -> None:
    """160 small images of two classes in `pictures`, which worker processes read."""
    generator = torch.Generator().manual_seed(0)
    for i in range(160):
        path = folder / "pictures" / ("no", "yes")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(0, 256, (8, 8), dtype=torch.uint8, generator=generator).numpy()).save(path)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists(), process.communicate(timeout=WAIT_S)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and standard error of a process that ends by itself."""
    try:
        _, stderr = process.communicate(timeout=WAIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its workers
        raise
    return process.returncode, stderr


def group(number: int) -> list[str]:
    """Processes of a session that are still there, zombies included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[3] == str(number):
                found.append(stat.parent.name)
    return found


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def assert_same(folder: Path, twin: Path) -> None:
    """Both runs have finished with the same metrics and the same weights and optimizer state, bit for bit."""
    assert (results(folder)["status"], results(twin)["status"]) == ("finished", "finished")
    assert results(folder)["metrics"] == results(twin)["metrics"]
    mine, other = (torch.load(path / "checkpoints" / "last.pt", weights_only=True) for path in (folder, twin))
    assert mine["model"].keys() == other["model"].keys()
    assert all(torch.equal(mine["model"][key], other["model"][key]) for key in mine["model"])
    assert repr(mine["optimizer"]) == repr(other["optimizer"])


# the script of a run that says when it is in its 4th step, and stays there until it is signalled
IN_STEP = """
import dlrun.trainer as t
step = t.Trainer._step
def waiting(self, *args):
    if self.run.step == 3:
        open('reached', 'w').close()
        while not self.signals.arrived: time.sleep(0.01)
    return step(self, *args)
t.Trainer._step = waiting
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_while_training(cli, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, or SLURM's SIGUSR1: the step is finished, a checkpoint written, and the last line has a command that goes on
    when it is pasted; the run then ends as one that was never stopped."""
    process = start(tmp_path, IN_STEP, *QUICK)
    wait_for(tmp_path / "reached", process)
    process.send_signal(number)
    code, stderr = end(process)
    assert code == (130 if number == signal.SIGINT else 143)
    assert "Traceback" not in stderr
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
    assert results(tmp_path / "run")["status"] == "interrupted"
    command = re.fullmatch(r"dlrun: interrupted after step 4 .*; go on: (.*)", stderr.splitlines()[-1])
    assert command, stderr
    if number == signal.SIGINT:
        subprocess.run(command[1], shell=True, cwd=tmp_path, check=True, capture_output=True)
    else:
        assert cli("resume=run").rc == 0
    assert cli(*QUICK[:-1], "hydra.run.dir=twin").rc == 0
    assert_same(tmp_path / "run", tmp_path / "twin")


def test_a_signal_while_validating(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation is given up, and repeated when the run goes on."""
    original = Trainer.evaluate

    def stopped(self: Trainer, split: Any) -> dict[str, float]:
        if self.run.epoch == 2 and split == "val":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, split)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", stopped)
        done = cli(*QUICK)
    assert done.rc == 143
    assert re.fullmatch(r"dlrun: interrupted .*; go on: .*dlrun resume=run", done.stderr.splitlines()[-1])
    assert cli("resume=run").rc == 0
    assert cli(*QUICK[:-1], "hydra.run.dir=twin").rc == 0
    assert_same(tmp_path / "run", tmp_path / "twin")


@pytest.fixture
def stalling_server() -> Iterator[str]:
    """The address of a server that sends the beginning of a file and then nothing more."""
    over = threading.Event()

    class Stalling(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 20))
            self.end_headers()
            self.wfile.write(bytes(1 << 19))
            self.wfile.flush()
            over.wait(WAIT_S)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    over.set()
    server.shutdown()
    server.server_close()


def test_a_signal_while_downloading(tmp_path: Path, stalling_server: str) -> None:
    """Ctrl-C during a download that has stalled: exit code 130, one line, no part of the file and no run is left."""
    script = f"""
import dlrun.data._download as d
d.RemoteFile.urls = property(lambda self: ({stalling_server!r},), lambda self, value: None)
plain = d._with_progress
def chunks(*args):
    for chunk in plain(*args):
        yield chunk
        open('reached', 'w').close()
d._with_progress = chunks
"""
    process = start(tmp_path, script, "data=mnist", "data.root=files", "hydra.run.dir=run", "device=cpu")
    wait_for(tmp_path / "reached", process)
    assert list((tmp_path / "files").rglob("*.part"))
    process.send_signal(signal.SIGINT)
    code, stderr = end(process)
    assert (code, "Traceback" in stderr) == (130, False), stderr
    assert stderr.splitlines()[-1] == "dlrun: interrupted (exit code 130)"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "reached"]


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    """Ctrl-C twice, to the whole process group as a terminal does, while worker processes are in the middle of a long read:
    nothing waits for them, nobody prints a traceback, and no process is left."""
    script = """
import dlrun.data._streaming as s, torch.utils.data._utils as loaders
loaders.MP_STATUS_CHECK_INTERVAL = 1000  # seconds that a loader waits for each worker; 5 if left alone
def stuck(self, rows):
    open(f'reached{loaders.worker.get_worker_info().id}', 'w').close()
    time.sleep(1000)
s._Reader.__getitems__ = stuck
"""
    pictures(tmp_path)
    process = start(tmp_path, script, *(word for word in QUICK if word != "data=digits"), *STREAMING)
    wait_for(tmp_path / "reached0", process)
    wait_for(tmp_path / "reached1", process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(2)]
    assert "Ctrl-C once more leaves at once" in lines[1]
    os.killpg(process.pid, signal.SIGINT)
    code, stderr = end(process)
    assert (code, stderr) == (130, "dlrun: interrupted (exit code 130)\n")
    assert group(process.pid) == []


def test_workers_leave_a_signal_to_the_run(tmp_path: Path) -> None:
    """SIGTERM to the whole process group, as a cluster sends it: the workers go on until the step is finished and the
    checkpoint written."""
    pictures(tmp_path)
    words = (word for word in QUICK if word != "data=digits")
    process = start(tmp_path, IN_STEP, *words, *STREAMING, "data.batch_size=16")
    wait_for(tmp_path / "reached", process)
    os.killpg(process.pid, signal.SIGTERM)
    code, stderr = end(process)
    assert (code, len(stderr.splitlines())) == (143, 1), stderr
    assert (tmp_path / "run" / "checkpoints" / "last.pt").is_file()
    assert group(process.pid) == []


def test_a_signal_during_an_import(tmp_path: Path) -> None:
    """SIGTERM while PyTorch is being imported: exit code 143, one line, nothing left."""
    script = """
class Stop:
    def find_spec(self, name, *args):
        if name == 'torch': os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Stop())
"""
    code, stderr = end(start(tmp_path, script, *QUICK))
    assert (code, stderr) == (143, "dlrun: interrupted (exit code 143)\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_shuts_down(tmp_path: Path, second: signal.Signals) -> None:
    """The second signal ends a process that takes its time to end after the first; the exit code stays that of the first."""
    script = """
import atexit, dlrun.cli
from dlrun import saved_run
def slow():
    open('reached', 'w').close()
    time.sleep(1000)
def hit(argv):
    dlrun.cli._work_begins()
    atexit.register(slow)
    os.kill(os.getpid(), signal.SIGUSR1)
saved_run.use_saved_run = hit
"""
    process = start(tmp_path, script, *QUICK)
    wait_for(tmp_path / "reached", process)
    process.send_signal(second)
    assert end(process) == (143, "dlrun: interrupted (exit code 143)\n")


def test_a_signal_that_nobody_raises_is_not_lost(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python cannot raise (a destructor, say), the next action does not begin."""
    import dlrun.cli

    monkeypatch.setattr(dlrun.cli, "_arrived", 143)
    done = cli(*QUICK)
    assert (done.rc, done.stderr) == (143, "dlrun: interrupted (exit code 143)\n")


def test_a_system_without_sigusr1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no SIGUSR1: the modules can be imported."""
    import importlib

    import dlrun.cli
    import dlrun.signals

    with monkeypatch.context() as patch:
        patch.delattr(signal, "SIGUSR1")
        assert len(importlib.reload(dlrun.cli)._SIGNALS) == 2
    importlib.reload(dlrun.cli)
