"""Processes that want the same thing at the same moment: folders, locks. Forked from a light process, so that hundreds are
cheap."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlrun import rundir

START = """
import os, sys, time
from pathlib import Path
from dlrun import rundir
from dlrun.registry import ConfigError

def at_once(count, work):
    "Runs work(number) in `count` processes that start together; whether none failed."
    read, write = os.pipe()
    children = []
    for number in range(count):
        if (child := os.fork()) == 0:
            os.close(write)
            os.read(read, 1)  # until the parent closes its end
            try:
                work(number)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        children.append(child)
    os.close(write)
    codes = [os.waitpid(child, 0)[1] for child in children]
    os.close(read)
    return not any(codes)
"""


def in_processes(script: str, cwd: Path) -> str:
    """Runs a script that may use `at_once`; its output."""
    done = subprocess.run([sys.executable, "-c", START + script], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_hundred_runs_at_once(tmp_path: Path) -> None:
    """A hundred processes that want a folder of the same name in the same second get a hundred folders."""
    script = """
def work(number):
    rundir.arm()
    folder = Path(rundir.claim("train", "outputs/day/time_lenet_mnist"))
    with rundir.lock(folder, "hydra.run.dir"):
        rundir.refuse_used(folder)
        rundir.write_config(folder, {"seed": number})

assert at_once(100, work)
"""
    in_processes(script, tmp_path)
    folders = list((tmp_path / "outputs" / "day").iterdir())
    assert len(folders) == 100
    assert {rundir.read_config(folder, "run")["seed"] for folder in folders} == set(range(100))
    assert {path.name for folder in folders for path in folder.iterdir()} == {".hydra"}


def test_one_of_many_gets_a_given_folder(tmp_path: Path) -> None:
    """Of eight processes with the same `hydra.run.dir` exactly one trains; the others say so, name it while it is at work, and
    leave its files alone, the maker of the folder too. Thirty times."""
    script = """
def attempt(number):
    folder = Path("outputs/run")
    rundir.disarm()
    rundir.create(folder)
    try:
        with rundir.lock(folder, "hydra.run.dir", patience_s=0.1):
            rundir.refuse_used(folder)
            rundir.write_config(folder, {"seed": os.getpid()})
            if rounds % 2:  # the winner stays until the others have left
                while len(list(Path("losers").iterdir())) < 7:
                    time.sleep(0.005)
            rundir.write_json(folder / "results.json", {"winner": os.getpid()})
    except ConfigError as error:
        rundir.remove_created()
        Path(f"losers/{os.getpid()}").write_text(str(error))

import shutil
for rounds in range(30):
    os.mkdir("losers")
    assert at_once(8, attempt)
    (winner,) = [rundir.read_results(Path("outputs/run"))["winner"]]
    assert rundir.read_config("outputs/run", "run") == {"seed": winner}
    assert sorted(os.listdir("outputs/run")) == [".hydra", "results.json"]
    for path in Path("losers").iterdir():
        print(winner if rounds % 2 else "", path.read_text())
    assert len(os.listdir("losers")) == 7
    shutil.rmtree("losers"); shutil.rmtree("outputs")
"""
    lines = in_processes(script, tmp_path).splitlines()
    assert len(lines) == 30 * 7
    for line in lines:
        assert "hydra.run.dir: 'outputs/run' " in line
        if winner := re.match(r"\d+", line):
            assert line.endswith(f" is in use by process {winner[0]} on {socket.gethostname()}")


def test_never_two_at_a_time(tmp_path: Path) -> None:
    """Six processes that take and leave the lock of one folder over and over never hold it together."""
    script = """
os.mkdir("run")

def work(number):
    taken = 0
    while taken < 150:
        try:
            with rundir.lock(Path("run"), patience_s=5):
                os.close(os.open("run/inside", os.O_CREAT | os.O_EXCL))  # fails if somebody else is inside
                os.unlink("run/inside")
                taken += 1
        except ConfigError:
            continue

assert at_once(6, work)
assert os.listdir("run") == []
"""
    in_processes(script, tmp_path)


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    """A killed process leaves a lock file that blocks nobody, even while a worker process that it forked lives on."""
    script = """
import signal
with rundir.lock(Path(".")):
    worker = os.fork()
    if worker == 0:
        signal.pause()
    print(worker, flush=True)
    signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", START + script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    try:
        with pytest.raises(rundir.ConfigError, match=f"is in use by process {parent.pid} on"), rundir.lock(tmp_path):
            pass
        parent.kill()
        parent.wait()
        assert (tmp_path / ".lock").read_text().startswith(f"process {parent.pid} on")
        os.kill(worker, 0)  # it is still there
        with rundir.lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    finally:
        os.kill(worker, signal.SIGKILL)
        parent.kill()
        parent.stdout.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_at_work_is_left_alone(cli, tmp_path: Path) -> None:
    """A second command on the folder of a run at work is refused with the first one's pid and host, blaming the setting that
    was given, and changes nothing there."""
    words = ["model=mlp", "model.hidden=[4]", "data=digits", "device=cpu", "callbacks=none", "hydra.run.dir=run"]
    first = subprocess.Popen(
        [sys.executable, "-m", "dlrun", *words, "trainer.epochs=100000"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    config = tmp_path / "run" / ".hydra" / "config.yaml"
    try:
        for _ in range(6000):
            if config.exists() or first.poll() is not None:
                break
            time.sleep(0.02)
        before = config.read_bytes()
        holder = re.escape(f"run' is in use by process {first.pid} on {socket.gethostname()}")
        for command, key in ((words, "hydra.run.dir"), (["resume=run"], "resume")):
            done = cli(*command)
            assert done.rc == 1
            assert re.fullmatch(rf"dlrun: {key}: '[^']*{holder}\n", done.stderr), done.stderr
        assert first.poll() is None
        assert config.read_bytes() == before
    finally:
        first.kill()
        first.wait()
    done = cli(*words)
    assert (done.rc, "already holds a run; go on with it by resume=" in done.stderr) == (1, True), done.stderr
