"""dlrun's own launcher: warm workers; what becomes of a run that raises, is killed or hangs; the numbers of lone runs."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dlrun import rundir
from dlrun.cli import run
from dlrun.sweeps import submitted
from dlrun.sweeps.capacity import packed
from dlrun.sweeps.job import is_own, record

pytestmark = pytest.mark.xdist_group("launcher")  # one fork server

QUICK = (
    "model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.epochs=2", "data.limit_train=64",
    "callbacks=[metrics_file]", "launcher.workers=2", "launcher.threads=1",
)  # fmt: skip
SWEEP = (*QUICK, "seed=0,1,2", "hydra.sweep.dir=sweep", "-m")

TROUBLE = """
import os, signal, sys, time
from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback


def wait_for_ever():
    while True:
        time.sleep(0.1)


@CALLBACKS.register("trouble")
class Trouble(Callback):
    def __init__(self, *, kind: str = "none"):
        self.kind = kind

    def on_epoch_start(self, run):
        print("said in the run")
        if self.kind == "raise":
            raise RuntimeError("the disk is on fire")
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "hang":
            wait_for_ever()
        if self.kind == "exit":
            sys.exit(2)
        if self.kind == "leave":
            os._exit(7)
"""


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def statuses(sweep: Path, count: int) -> list[str]:
    return [results(sweep / str(number))["status"] for number in range(count)]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / rundir.LAST, weights_only=True)["model"]


@pytest.fixture
def trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Words that choose a callback which makes trouble."""
    (tmp_path / "troubles.py").write_text(TROUBLE)
    (tmp_path / "mine" / "callbacks").mkdir(parents=True)
    (tmp_path / "mine" / "callbacks" / "trouble.yaml").write_text(
        "trouble:\n  name: trouble\n  import: troubles\n  kind: none\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return ("--config-dir", "mine", "callbacks=[metrics_file,trouble]")


def test_runs_that_fail_are_recorded_and_the_others_go_on(cli, tmp_path: Path, trouble: tuple[str, ...]) -> None:
    """Raising, killed by SIGKILL, hanging past the timeout, sys.exit, os._exit: each has its status and message, the first and
    the third their tracebacks in their own log; the others finish; exit code 4."""
    kinds = "callbacks.trouble.kind=none,raise,kill,hang,exit,leave,none"
    words = [word for word in QUICK if not word.startswith("callbacks")]
    done = cli(*words, *trouble, kinds, "launcher.timeout=12", "hydra.sweep.dir=sweep", "-m")
    sweep = tmp_path / "sweep"
    assert done.rc == 4, done.stderr
    assert statuses(sweep, 7) == ["finished", "failed", "killed", "timeout", "failed", "killed", "finished"]
    messages = [results(sweep / str(number)).get("message", "") for number in range(7)]
    assert "the disk is on fire" in messages[1]
    assert "SIGKILL" in messages[2]
    assert "launcher.timeout=12" in messages[3]
    assert "sys.exit(2)" in messages[4]
    assert "exit code 7" in messages[5]
    assert "RuntimeError: the disk is on fire" in (sweep / "1" / "dlrun.log").read_text()
    assert "wait_for_ever" in (sweep / "3" / "dlrun.log").read_text()
    assert "said in the run" in (sweep / "0" / "dlrun.log").read_text()
    assert "said in the run" not in done.stdout + done.stderr
    assert submitted.states(sweep) == dict(enumerate(statuses(sweep, 7)))


def test_numbers_are_those_of_lone_runs(cli, tmp_path: Path) -> None:
    """Weights, metrics and results of each run, bit for bit, as from the command line at one thread; twice per worker."""
    words = [word for word in QUICK if not word.startswith("launcher")]
    assert cli(*QUICK, "model.dropout=0.3", "seed=0,1,2,3", "hydra.sweep.dir=sweep", "-m").rc == 0
    for seed in range(4):
        alone, mine = tmp_path / f"alone{seed}", tmp_path / "sweep" / str(seed)
        lone = (*words, "model.dropout=0.3", f"seed={seed}", "trainer.threads=1")
        assert cli(*lone, f"hydra.run.dir={alone}").rc == 0
        assert results(mine)["metrics"] == results(alone)["metrics"]
        assert (mine / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
        theirs = tensors(alone)
        assert all(torch.equal(value, theirs[name]) for name, value in tensors(mine).items())
        assert rundir.read_config(mine, "run") == rundir.read_config(alone, "run")


def test_fail_fast_begins_no_other_run(cli, tmp_path: Path, trouble: tuple[str, ...]) -> None:
    """The first failure ends the sweep, with exit code 4 and the leaderboard; what was running has a checkpoint."""
    words = [word for word in QUICK if not word.startswith("callbacks")]
    kinds = "callbacks.trouble.kind=raise,none,none,none"
    sweep = (*words, *trouble, kinds, "hydra.sweep.dir=sweep", "-m", "launcher.workers=1")
    done = cli(*sweep, "fail_fast=true")
    assert (done.rc, "fail_fast=true" in done.stderr) == (4, True), done.stderr
    assert [(tmp_path / "sweep" / str(number)).exists() for number in range(4)] == [True, False, False, False]
    assert cli(*sweep).rc == 4
    assert statuses(tmp_path / "sweep", 4) == ["failed", "finished", "finished", "finished"]


@pytest.mark.parametrize("launcher", ["basic", "dlrun"])
def test_a_run_is_what_was_submitted(cli, tmp_path: Path, launcher: str) -> None:
    """An option is edited while a sweep is stopped: what is missing runs with the old value, and a line says so; rerun=true
    takes the new one in a new folder."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    option = tmp_path / "mine" / "model" / "tiny.yaml"
    option.write_text("name: mlp\nhidden: [4]\n")
    words = [word for word in QUICK if not word.startswith(("model", "launcher"))]
    sweep = ("--config-dir", "mine", *words, "model=tiny", "seed=0,1", "-m", f"hydra/launcher={launcher}")
    assert cli(*sweep).rc == 0
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    (folder / "1" / "results.json").unlink()
    (folder / "1" / rundir.LAST).unlink()
    (folder / "1" / rundir.LAST.with_name("best.pt")).unlink()
    option.write_text("name: mlp\nhidden: [5]\n")
    done = cli(*sweep)
    assert (done.rc, "2 of 2 runs have another configuration by now" in done.stderr) == (0, True), done.stderr
    assert rundir.read_config(folder / "1", "run")["model"]["hidden"] == [4]
    assert next(iter(tensors(folder / "1").values())).shape[0] == 4
    assert cli(*sweep, "rerun=true").rc == 0
    again = folder.with_name(folder.name + "_2")
    assert rundir.read_config(again / "1", "run")["model"]["hidden"] == [5]


def test_the_same_command_goes_on_in_the_same_folder(cli, tmp_path: Path) -> None:
    """The folder is named after the sweep, whatever the order of its words; nothing is run twice."""
    words = (*QUICK, "seed=0,1", "-m")
    assert cli(*words).rc == 0
    (folder,) = (tmp_path / "outputs" / "multirun").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.is_file()}
    done = cli(*reversed(words))
    assert (done.rc, done.stderr.count("finished already")) == (0, 2)
    assert list((tmp_path / "outputs" / "multirun").iterdir()) == [folder]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/**/*") if path.is_file()} == before
    assert cli(*QUICK, "seed=0,2", "-m").rc == 0
    assert len(list((tmp_path / "outputs" / "multirun").iterdir())) == 2


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command line in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dlrun", *words], cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


LONG = [*(word.replace("epochs=2", "epochs=150") for word in SWEEP), "trainer.checkpoint_every_steps=1"]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long sweep, never stopped."""
    folder = tmp_path_factory.mktemp("twin") / "sweep"
    assert run([word.replace("=sweep", f"={folder}") for word in LONG]) == 0
    return folder


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "SIGKILL"])
def test_a_stopped_sweep_goes_on_bit_for_bit(cli, twin: Path, tmp_path: Path, how: str) -> None:
    """Ctrl-C reaches the whole group, SIGTERM the main process; both leave checkpoints and say how to go on. SIGKILL leaves no
    worker behind. Afterwards the same command gives what an unbroken sweep gives."""
    process = start(tmp_path, *LONG)
    sweep = tmp_path / "sweep"
    wait_for(lambda: all((sweep / n / rundir.LAST).exists() for n in "01"))
    workers = [
        pid for pid in os.listdir("/proc") if pid.isdigit() and _group(pid) == process.pid and int(pid) != process.pid
    ]
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, how))
    _, said = process.communicate(timeout=90)
    assert process.returncode == {"Ctrl-C": 130, "SIGTERM": 143, "SIGKILL": -9}[how]
    wait_for(lambda: not any(_group(pid) == process.pid for pid in workers), 10)
    if how != "SIGKILL":
        assert said.splitlines()[-1].endswith("dlrun resume=sweep"), said
        assert "Traceback" not in said
        assert [results(sweep / n)["status"] for n in "01"] == ["interrupted"] * 2
    assert not (sweep / "2").exists()
    assert cli(*LONG).rc == 0
    for name in "012":
        assert results(sweep / name)["metrics"] == results(twin / name)["metrics"]
        assert (sweep / name / "metrics.jsonl").read_bytes() == (twin / name / "metrics.jsonl").read_bytes()


def _group(pid: str) -> int:
    """The process group of a process that lives; -1 of one that does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if state[0] == "Z" else int(state[2])
    except OSError:
        return -1


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    """SIGKILL for the worker at a run: that run is recorded as killed, the others finish."""
    process = start(tmp_path, *[word.replace("epochs=2", "epochs=60") for word in SWEEP], "launcher.workers=1")
    sweep = tmp_path / "sweep"
    wait_for(lambda: (sweep / "0" / rundir.LAST).exists())
    lock = (sweep / "0" / ".lock").read_text()
    os.kill(int(lock.split()[1]), signal.SIGKILL)
    process.communicate(timeout=90)
    assert (process.returncode, statuses(sweep, 3)) == (4, ["killed", "finished", "finished"])


def test_wrong_settings_of_the_launcher(cli, tmp_path: Path) -> None:
    """One line each, exit code 1, nothing left behind but what says which sweep it was."""
    for word, said in (
        ("launcher.workers=0", "launcher.workers: got 0"),
        ("launcher.threads=many", "launcher.threads: got 'many'"),
        ("launcher.timeout=-1", "launcher.timeout: got -1"),
        ("launcher.stack=maybe", "launcher.stack: got 'maybe'"),
        ("launcher.wrokers=2", "wrokers"),
        ("seed=range(0)", "seed: no value in 'seed=range(0)'"),
        ("seed=interval(0,1)", "hydra/sweeper=optuna"),
        ("optimizer.lrr=1,2", "optimizer.lrr: unknown setting"),
        ("seed=range(100000)", "allow_large=true"),
        ("fail_fast=perhaps", "fail_fast: got 'perhaps'"),
    ):
        done = cli(*QUICK, "-m", word)
        assert (done.rc, len(done.stderr.splitlines())) == (1, 1), (word, done.stderr)
        assert said in done.stderr
        assert not list(tmp_path.rglob("results.json"))


def test_a_dry_run_shows_jobs_and_estimate_and_leaves_nothing(cli, tmp_path: Path) -> None:
    """The table has a line for each job; time and disk are estimated; no file is made; after a run the states are shown."""
    done = cli(*SWEEP, "dry_run=true")
    assert done.rc == 0, done.stderr
    assert all(f"seed={seed}" in done.stdout for seed in range(3))
    assert "3 runs to do: about" in done.stdout
    assert "of disk" in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert cli(*SWEEP).rc == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    done = cli("resume=sweep", "dry_run=true")
    assert (done.rc, done.stdout.count("finished"), "nothing is left to run" in done.stdout) == (0, 3, True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_folders_of_other_versions_and_damage(cli, tmp_path: Path) -> None:
    """Another format, a job that is missing in the file, other words for a job, no sweep at all: one line, nothing changes."""
    assert cli(*SWEEP).rc == 0
    sweep = tmp_path / "sweep"
    manifest, jobs = (sweep / "sweep.yaml").read_text(), (sweep / "jobs.jsonl").read_text()

    def refused(*words: str) -> str:
        before = {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()}
        done = cli(*words)
        assert (done.rc, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert {path: path.read_bytes() for path in sweep.rglob("*") if path.is_file()} == before
        return done.stderr

    found = yaml.safe_load(manifest)
    (sweep / "sweep.yaml").write_text(yaml.safe_dump({**found, "format": 7, "code": {"dlrun": "9.9"}}))
    assert "written by dlrun 9.9 (format 7; this one reads 1)" in refused("resume=sweep")
    (sweep / "sweep.yaml").write_text(manifest)
    lines = jobs.splitlines(keepends=True)
    (sweep / "jobs.jsonl").write_text("".join(line for line in lines if '"job": 1' not in line))
    assert "job 1 is missing" in refused("resume=sweep")
    (sweep / "jobs.jsonl").write_text(jobs.replace("seed=1", "seed=5"))
    assert "job 1 is" in refused("resume=sweep")
    (sweep / "jobs.jsonl").write_text(jobs + '{"job": 3, "config": 1}\n')
    assert "is damaged (line" in refused("resume=sweep")
    (sweep / "jobs.jsonl").write_text(jobs + '{"job": 1, "sta')
    assert cli("action=resume_sweep", "sweep=sweep").rc == 0
    assert "not the folder of a sweep" in refused("action=resume_sweep", "sweep=sweep/0")
    assert "sweep: no folder given" in refused("action=resume_sweep")


def test_other_code_is_told(cli, tmp_path: Path) -> None:
    """A sweep that goes on with another commit says so."""
    assert cli(*SWEEP).rc == 0
    file = tmp_path / "sweep" / "sweep.yaml"
    found = yaml.safe_load(file.read_text())
    found["code"] = {"dlrun": "0.0.1"}
    file.write_text(yaml.safe_dump(found))
    done = cli("resume=sweep")
    assert (done.rc, "the code has changed since the sweep began (dlrun 0.0.1 then" in done.stderr) == (0, True)


def test_seeds_are_a_sweep(cli, tmp_path: Path) -> None:
    """`seeds=3` without -m: three runs, one row."""
    done = cli(*QUICK, "seeds=3", "hydra.sweep.dir=sweep")
    assert done.rc == 0, done.stderr
    assert [rundir.read_config(tmp_path / "sweep" / n, "run")["seed"] for n in "012"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("peak", "total", "cores", "devices", "runs"),
    [
        (1000.0, 80_000.0, 16, 1, 16),
        (10_000.0, 80_000.0, 16, 1, 5),
        (70_000.0, 80_000.0, 16, 1, 1),
        (100.0, 80_000.0, 16, 4, 4),
        (90_000.0, 80_000.0, 2, 1, 1),
    ],
)
def test_runs_are_packed_by_memory(peak: float, total: float, cores: int, devices: int, runs: int) -> None:
    """80,000 / (1.2 x 10,000 + 1,500) = 5.9: five runs; never more than there are cores, never none."""
    assert packed(peak, total, cores, devices) == runs


def test_a_run_that_was_killed_before_it_had_a_folder_is_run_again(cli, tmp_path: Path) -> None:
    """What is recorded of it does not make another run of its folder; a folder that another run has taken stays as it is."""
    assert cli(*SWEEP).rc == 0
    sweep = tmp_path / "sweep"
    job = submitted.read(sweep)[1]
    shutil.rmtree(sweep / "1")
    record(job, "killed", "its process was killed by SIGKILL")
    assert (results(sweep / "1")["status"], is_own(job)) == ("killed", True)
    assert cli(*SWEEP).rc == 0
    assert statuses(sweep, 3) == ["finished"] * 3
    before = {path: path.read_bytes() for path in (sweep / "2").rglob("*") if path.is_file()}
    record(dataclasses.replace(job, folder=sweep / "2"), "killed", "its process was killed by SIGKILL")
    assert {path: path.read_bytes() for path in (sweep / "2").rglob("*") if path.is_file()} == before


def test_workers_that_cannot_begin(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, exit code 1, and the sweep goes on when they can."""
    with monkeypatch.context() as patch:
        patch.setattr("dlrun.sweeps.workers.MODULE", "nothing_of_this_name")
        done = cli(*SWEEP)
    assert (done.rc, "workers in a row did not begin: its process ended with exit code 1" in done.stderr) == (1, True)
    assert cli(*SWEEP).rc == 0
    assert statuses(tmp_path / "sweep", 3) == ["finished"] * 3


def test_a_full_disk_when_the_jobs_are_written(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, nothing half written; with room again the sweep is run."""
    original = os.write

    def full(handle: int, data: Any) -> int:
        if b'"config"' in bytes(data):
            original(handle, bytes(data)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(handle, data)

    with monkeypatch.context() as patch:
        patch.setattr("dlrun.sweeps.submitted.os.write", full)
        done = cli(*SWEEP)
    assert (done.rc, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "No space left on device" in done.stderr
    assert "jobs.jsonl" in done.stderr
    assert cli(*SWEEP).rc == 0
    assert statuses(tmp_path / "sweep", 3) == ["finished"] * 3
    assert submitted.states(tmp_path / "sweep") == dict.fromkeys(range(3), "finished")


def test_two_sweeps_on_one_folder(cli, tmp_path: Path) -> None:
    """The second is refused in one line that names the process at work."""
    process = start(tmp_path, *LONG)
    wait_for(lambda: (tmp_path / "sweep" / "0" / rundir.LAST).exists())
    done = cli(*LONG)
    process.terminate()
    process.communicate(timeout=90)
    assert (done.rc, f"in use by process {process.pid}" in done.stderr, len(done.stderr.splitlines())) == (1, True, 1)


def test_the_main_process_imports_no_torch(tmp_path: Path) -> None:
    """Neither to compose, nor to listen, nor for the leaderboard."""
    code = f"import sys\nfrom dlrun.cli import run\ncode = run({[*SWEEP]!r})\nprint(code, 'torch' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    """`dlrun -m ... 2>&1 | head -1`: the runs come to their end, and the command does."""
    process = start(tmp_path, *SWEEP)
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    process.wait(timeout=90)
    assert statuses(tmp_path / "sweep", 3) == ["finished"] * 3


HYGIENE = """
import os
import torch
from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback


@CALLBACKS.register("untidy")
class Untidy(Callback):
    def __init__(self, *, kind: str = "none"):
        self.kind = kind

    def on_run_end(self, run, results):
        if self.kind == "chdir":
            os.chdir("/")
        if self.kind == "environment":
            os.environ["DLRUN_DATA_DIR"] = "/nowhere"
        if self.kind == "double":
            torch.set_default_dtype(torch.float64)
        if self.kind == "gradients":
            torch.set_grad_enabled(False)
        if self.kind == "Ctrl-C":
            raise KeyboardInterrupt
"""


def test_what_a_run_leaves_behind_does_not_reach_the_next(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder, environment, default type, gradients switched off: the last run of the same worker lies where it belongs
    and has the numbers of a lone one; a component that raises KeyboardInterrupt fails its own run."""
    (tmp_path / "untidy.py").write_text(HYGIENE)
    (tmp_path / "mine" / "callbacks").mkdir(parents=True)
    text = "untidy:\n  name: untidy\n  import: untidy\n  kind: none\n"
    (tmp_path / "mine" / "callbacks" / "untidy.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    words = [word for word in QUICK if not word.startswith(("callbacks", "launcher.workers"))]
    kinds = "callbacks.untidy.kind=chdir,environment,double,gradients,Ctrl-C,none"
    words += ["--config-dir", "mine", "callbacks=[metrics_file,untidy]", "launcher.workers=1", "-m"]
    done = cli(*words, kinds, "hydra.sweep.dir=sweep")
    assert done.rc == 4
    sweep = tmp_path / "sweep"
    assert statuses(sweep, 6)[:4] + statuses(sweep, 6)[5:] == ["finished"] * 5, done.stderr
    assert "KeyboardInterrupt" in done.stderr
    metrics = [results(sweep / str(number))["metrics"] for number in (0, 1, 2, 3, 5)]
    assert all(found == metrics[0] for found in metrics)


def test_folders_outside_the_sweep_are_refused(cli, tmp_path: Path) -> None:
    """One line, nothing left behind."""
    for pattern in ("../${seed}", "${seed}/x", "/tmp/${seed}", "."):
        done = cli(*SWEEP, f"hydra.sweep.subdir={pattern}")
        assert (done.rc, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "hydra.sweep.subdir: run 0 would lie in" in done.stderr
        assert not list(tmp_path.rglob("results.json"))


def test_a_folder_with_an_apostrophe(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep is found below any folder."""
    place = tmp_path / "sp a=ü'q"
    place.mkdir()
    monkeypatch.chdir(place)
    assert cli(*SWEEP).rc == 0
    done = cli(f"resume={place}/sweep")
    assert (done.rc, done.stderr.count("finished already")) == (0, 3), done.stderr
