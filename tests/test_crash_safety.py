"""Crash safety with real failures: full disks, lost folders, damaged checkpoints, killed writers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun import checkpoint, rundir
from dlrun.background import NAME
from dlrun.registry import ConfigError

WORDS = (
    "data=digits", "model=mlp", "model.hidden=[32]", "device=cpu", "trainer.epochs=3", "data.limit_train=300",
    "callbacks=[tensorboard,metrics_file]", "callbacks.tensorboard.images_every_epochs=0",
    "callbacks.tensorboard.graph=false", "callbacks.tensorboard.histograms_every_epochs=0", "hydra.run.dir=run",
)  # fmt: skip
LAST, PREVIOUS = Path("run") / rundir.LAST, Path("run") / rundir.LAST.with_name(checkpoint.PREVIOUS)
RESULTS = Path("run") / rundir.RESULTS

# The command, in a process in which something happens when a checkpoint is written for the n-th time.
CHILD = """
import os, resource, sys
from dlrun import checkpoint, cli
original, happens, saves = checkpoint.save, sys.argv[1], 0
def save(*args, **options):
    global saves
    saves += 1
    exec(happens, globals())
    original(*args, **options)
checkpoint.save = save
cli.main(sys.argv[2:])
"""


def failing(tmp_path: Path, happens: str, *before: str, words: tuple[str, ...] = WORDS) -> Any:
    """Runs `CHILD`, below the commands `before` it."""
    return subprocess.run(
        [*before, sys.executable, "-c", CHILD, happens, *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def only_line(stderr: str) -> str:
    """The one line of an error, below warnings."""
    assert "Traceback" not in stderr, stderr
    assert "Logging error" not in stderr, stderr
    lines = [line for line in stderr.splitlines() if line.startswith("dlrun: ") and "warning" not in line]
    assert len(lines) == 1, stderr
    return lines[0]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the run that nothing happens to; the first test that needs it makes it."""
    return tmp_path_factory.mktemp("twins")


@pytest.fixture
def ends_like_a_twin(cli: Callable[..., Any], twins: Path) -> Callable[..., str]:
    """Resumes `run` and expects the checkpoints, metrics and results of a run that nothing happened to; gives what was
    said on standard error."""

    def expect() -> str:
        done = cli("resume=run")
        assert done.rc == 0, done.stderr
        if not (twins / "run").exists():
            assert cli(*WORDS, f"hydra.run.dir={twins / 'run'}").rc == 0
        for name in ("last.pt", "best.pt"):
            resumed, twin = (checkpoint.load(folder / "run" / "checkpoints" / name) for folder in (Path(), twins))
            for times in (resumed, twin):
                for key in ("epoch_seconds", "fit_seconds", "wait_seconds", "callbacks"):
                    times.pop(key, None)
            assert same(resumed, twin), name
        assert Path("run/metrics.jsonl").read_bytes() == (twins / "run/metrics.jsonl").read_bytes()
        resumed, twin = (json.loads((folder / RESULTS).read_text()) for folder in (Path(), twins))
        assert all(resumed[key] == twin[key] for key in ("status", "metrics", "best", "epochs", "steps"))
        assert len(list(Path("run/tensorboard").iterdir())) == 1
        assert not list(LAST.parent.glob(".*"))
        return str(done.stderr)

    return expect


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# ---- the disk ---------------------------------------------------------------------------------------------------------------


def test_a_file_that_may_not_grow(tmp_path: Path, ends_like_a_twin) -> None:
    """The disk refuses the second last.pt in the middle, and the end of the event file: one line, exit code 1, the first
    checkpoint is whole, and once there is room the run ends as if nothing had happened."""
    happens = "if saves == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (3500, resource.RLIM_INFINITY))"
    done = failing(tmp_path, happens)
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert line.startswith(f"dlrun: cannot write {tmp_path / LAST} (File too large; what was written before is whole")
    assert sorted(path.name for path in LAST.parent.iterdir()) == ["best.pt", "last.pt"]
    assert checkpoint.load(LAST)["counters"]["epoch"] == 1
    results = json.loads(RESULTS.read_text())
    assert (results["status"], results["test"]) == ("failed", "not read")
    assert "cannot write" in results["message"]
    ends_like_a_twin()


def can_mount(folder: Path) -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_a_file_system_that_is_full(tmp_path: Path, ends_like_a_twin) -> None:
    """A real small file system fills up while a checkpoint is written: one line, exit code 1, and a copy of the folder on a
    larger disk goes on to the same end."""
    (tmp_path / "small").mkdir()
    if not can_mount(tmp_path / "small"):
        pytest.skip("this system mounts nothing for tests")
    shell = 'mount -t tmpfs -o size=100k tmpfs small && cd small && "$@"; code=$?; cp -r . ..; exit $code'
    done = failing(tmp_path, "", "unshare", "-rm", "sh", "-c", shell, "sh")
    assert done.returncode == 1, done.stderr
    line = only_line(done.stderr)
    assert "No space left on device; what was written before is whole: make room and go on with resume=" in line
    assert not list(LAST.parent.glob(".*"))
    assert checkpoint.load(LAST)["counters"]["epoch"] >= 1
    assert not RESULTS.exists() or json.loads(RESULTS.read_text())["status"] == "failed"
    ends_like_a_twin()


def test_checkpoints_that_became_read_only(tmp_path: Path, ends_like_a_twin) -> None:
    """The folder of the checkpoints refuses the second last.pt; root, who may write everywhere, becomes nobody for it."""
    before = [] if os.geteuid() else ["unshare", "-U"]
    if before and subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("root may write everywhere")
    done = failing(tmp_path, "if saves == 3: os.chmod('run/checkpoints', 0o555)", *before)
    os.chmod(LAST.parent, 0o755)
    assert done.returncode == 1, done.stderr
    assert only_line(done.stderr) == f"dlrun: cannot write {tmp_path / LAST} (Permission denied)"
    assert json.loads(RESULTS.read_text())["status"] == "failed"
    assert checkpoint.load(LAST)["counters"]["epoch"] == 1
    ends_like_a_twin()


@pytest.fixture
def when_saving(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets something happen before a checkpoint is written for the n-th time (2 a good epoch, best.pt and last.pt)."""

    def arrange(number: int, happens: Callable[[], Any]) -> None:
        original, saves = checkpoint.save, [0]

        def save(*args: Any, **options: Any) -> None:
            saves[0] += 1
            if saves[0] == number:
                happens()
            original(*args, **options)

        monkeypatch.setattr(checkpoint, "save", save)

    return arrange


def delete_run() -> None:
    """At once: a thread that writes a file into it meanwhile would have rmtree fail."""
    os.rename("run", "gone")
    shutil.rmtree("gone", ignore_errors=True)


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_run_folder_that_is_gone(cli, when_saving, how: str) -> None:
    """Somebody deletes or moves the run: the message says so, and the folder is not made again."""
    happens = {"deleted": delete_run, "moved": lambda: os.rename("run", "moved")}[how]
    when_saving(3, happens)
    done = cli(*WORDS)
    assert done.rc == 1
    line = only_line(done.stderr)
    # whichever file is written next: checkpoints are written while training goes on
    file = r"/run/(checkpoints/last\.pt|metrics\.jsonl|tensorboard/\S+)"
    assert re.search(rf"{file}: the run's folder is gone; it was moved or deleted while the run went on", line)
    assert not Path("run").exists()
    if how == "moved":
        assert checkpoint.load(Path("moved") / rundir.LAST)["counters"]["epoch"] == 1


def test_a_run_folder_that_is_gone_between_checkpoints(cli) -> None:
    """The next to write a file that a checkpoint counts on notices."""
    from dlrun.callbacks.progress import Progress

    def delete(self: Any, run: Any) -> None:
        for thread in threading.enumerate():
            if thread.name == NAME:  # the checkpoint before is still being written
                thread.join()
        delete_run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "on_epoch_end", delete)
        done = cli(*WORDS[:-1], "callbacks=[tensorboard,metrics_file,progress]", "hydra.run.dir=run")
    assert done.rc == 1
    assert "the run's folder is gone" in only_line(done.stderr)
    assert not Path("run").exists()


def test_a_file_in_place_of_the_checkpoints(cli, when_saving, ends_like_a_twin) -> None:
    """The folder of the checkpoints was renamed and a file has its name: one line; once it is back the run goes on."""

    def swap() -> None:
        os.rename("run/checkpoints", "run/aside")
        Path("run/checkpoints").write_text("")

    when_saving(3, swap)
    done = cli(*WORDS)
    assert done.rc == 1
    assert "last.pt (File exists)" in only_line(done.stderr)
    assert json.loads(RESULTS.read_text())["status"] == "failed"
    os.remove("run/checkpoints")
    os.rename("run/aside", "run/checkpoints")
    ends_like_a_twin()


@pytest.mark.parametrize("lost", ["run/metrics.jsonl", "run/tensorboard", "run/checkpoints"])
def test_a_part_that_is_deleted_is_made_again(cli, when_saving, lost: str) -> None:
    """The run goes on; what the open files still hold is written again, with a warning."""
    when_saving(2, lambda: shutil.rmtree(lost) if Path(lost).is_dir() else os.remove(lost))
    done = cli(*WORDS)
    assert done.rc == 0, done.stderr
    assert ("was deleted or replaced while the run went on" in done.stderr) is (lost != "run/checkpoints")
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 7
    assert sorted(path.name for path in LAST.parent.iterdir()) == ["best.pt", "last.pt", "previous.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_metrics_file_that_cannot_be_written(cli, ends_like_a_twin) -> None:
    """A full disk under metrics.jsonl alone ends the run too: one line, exit code 1, status failed, and it can go on."""
    from dlrun.callbacks._files import GrowingFile

    with pytest.MonkeyPatch.context() as patch:
        original = GrowingFile.flush

        def flush(self: GrowingFile) -> None:
            for thread in threading.enumerate():
                if thread.name == NAME:  # the checkpoint of the epoch before is still being written
                    thread.join()
            if self.path.name == "metrics.jsonl" and LAST.exists():
                os.dup2(os.open("/dev/full", os.O_WRONLY), self._file.fileno())
            original(self)

        patch.setattr(GrowingFile, "flush", flush)
        done = cli(*WORDS)
    assert done.rc == 1
    assert "metrics.jsonl (No space left on device; what was written before is whole" in only_line(done.stderr)
    assert json.loads(RESULTS.read_text())["status"] == "failed"
    assert checkpoint.load(LAST)["counters"]["epoch"] == 1
    ends_like_a_twin()


# ---- damaged checkpoints --------------------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    """A last.pt of step 2 with a previous.pt of step 1; gives the first."""
    generator = torch.Generator().manual_seed(0)
    (folder / "run").mkdir()
    for step in (1, 2):
        state = {
            "counters": {"step": step},
            "model": {"w": torch.randn(40, 30, generator=generator)},
            "history": ["a", 0.5],
        }
        checkpoint.save(folder / LAST, state, keep_previous=True)
    return folder / LAST


def garbled(content: bytes, byte: int, bit: int) -> bytes:
    return content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1 :]


def test_every_damage_falls_back_to_the_checkpoint_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cut to any length or with any bit flipped, last.pt is either read as it was written (the bit meant nothing) or left
    for previous.pt, with one warning; nothing in between, and no other error."""
    path = saved(tmp_path)
    whole, expected = path.read_bytes(), {2: checkpoint.load(path), 1: checkpoint.load(path.with_name("previous.pt"))}
    lengths = [0, 1, 4, 100, len(whole) // 2, len(whole) - 22, len(whole) - 1]
    damages = [whole[:length] for length in lengths]
    damages += [garbled(whole, byte, byte % 8) for byte in range(0, len(whole), 37)]
    damages += [b"\0" * len(whole), whole[:-512] + bytes(512), whole + b"more", b"text"]
    fallen = 0
    for damaged in damages:
        caplog.clear()
        path.write_bytes(damaged)
        state = checkpoint.load_last(path)
        assert state is not None
        step = state["counters"]["step"]
        assert same(state, expected[step])
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == (step == 1)
        assert all("last.pt is damaged" in m and "going on from the checkpoint before it" in m for m in messages)
        fallen += step == 1
    assert fallen > len(damages) / 2


def test_both_damaged_is_one_line(tmp_path: Path) -> None:
    """Nothing is left to go on from: the error names what is damaged."""
    path = saved(tmp_path)
    for file in (path, path.with_name("previous.pt")):
        file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ConfigError, match=r"resume: checkpoint .*\.pt is damaged") as caught:
        checkpoint.load_last(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "deleted", "both"])
def test_a_run_goes_on_from_the_checkpoint_before(cli, when_saving, ends_like_a_twin, damage: str) -> None:
    """The command resumes from previous.pt to the end of a run that nothing happened to; with both damaged: one line."""
    when_saving(6, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli(*WORDS).rc == 130
    whole = LAST.read_bytes()
    content = {
        "cut": whole[:-1],
        "flipped": garbled(whole, len(whole) // 2, 3),
        "empty": b"",
        "both": b"",
        "deleted": None,
    }
    LAST.unlink()
    if (damaged := content[damage]) is not None:
        LAST.write_bytes(damaged)
    if damage == "both":
        PREVIOUS.write_bytes(b"")
        done = cli("resume=run")
        assert done.rc == 1
        assert "is damaged; it was not loaded" in only_line(done.stderr)
        return
    said = ends_like_a_twin()
    assert said.count("going on from the checkpoint before it") == 1


# ---- killed writers ---------------------------------------------------------------------------------------------------------

KILLS = 15
SAVING = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from dlrun import checkpoint
path, random_s = Path(sys.argv[1], "run", "checkpoints", "last.pt"), random.Random(0)
path.parent.parent.mkdir()
step = 0
for kill in range(int(sys.argv[2])):
    reading, writing = os.pipe()
    writer = os.fork()
    if writer == 0:  # saves without end, and tells when it has begun
        while True:
            step += 1
            checkpoint.save(path, {"step": step, "w": torch.full((50_000,), float(step))}, keep_previous=True)
            os.write(writing, b"x")
    os.read(reading, 1)
    time.sleep(random_s.random() * 0.03)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    stale = len(list(path.parent.glob(".*")))
    for name in ("last.pt", "previous.pt") if path.with_name("previous.pt").exists() else ("last.pt",):
        state = checkpoint.load(path.with_name(name))
        assert (state["w"] == state["step"]).all(), name
    found = checkpoint.load(path)["step"]
    assert found > step, "a checkpoint that was written is not there"
    step = found
    print(stale)
checkpoint.save(path, {"step": 0}, keep_previous=True)
print(sorted(file.name for file in path.parent.iterdir()))
"""


def test_writers_killed_at_any_moment(tmp_path: Path) -> None:
    """After each SIGKILL both checkpoints are whole, and the next save removes what the killed writer left."""
    done = subprocess.run(
        [sys.executable, "-c", SAVING, tmp_path, str(KILLS)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *stale, left = done.stdout.splitlines()
    assert left == "['last.pt', 'previous.pt']"
    assert len(stale) == KILLS
    assert sum(map(int, stale)) > 0, "no kill came while a checkpoint was being written"


def test_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    """Those of processes that live stay, and files that are none of ours; none is ever taken for a checkpoint."""
    path = saved(tmp_path)
    gone, living = 2**22 + 5, os.getppid()  # no process has the first number
    ours = [f".{name}.pt.{process}.tmp" for name in ("last", "best", "previous") for process in (gone, os.getpid())]
    others = [f".last.pt.{living}.tmp", ".last.pt.abc.tmp", ".notes.5.tmp", "last.pt.tmp"]
    for name in (*ours, *others):
        path.with_name(name).write_bytes(b"half a checkpo")
    assert checkpoint.load_last(path)["counters"]["step"] == 2  # type: ignore[index]
    checkpoint.save(path, {"step": 3}, keep_previous=True)
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([*others, "last.pt", "previous.pt"])
    assert checkpoint.load(path)["step"] == 3
