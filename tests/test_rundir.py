"""Run folders: one run each, written whole, locked."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlrun import rundir
from dlrun.registry import ConfigError
from dlrun.rundir import _create


def test_only_runs_claim_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions that read make no folder, and nothing is made before a run is certain."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_create, "_armed", False)
    assert rundir.claim("train", "a/b") == "a/b"
    assert rundir.claim("test", "a/b") == "."
    assert list(tmp_path.iterdir()) == []


def test_config_is_written_once(tmp_path: Path) -> None:
    """A resumed run never rewrites the configuration it began with."""
    rundir.write_config(tmp_path, {"seed": 1, "optimizer": {"lr": 1e-5}})
    rundir.write_config(tmp_path, {"seed": 2})
    assert rundir.read_config(tmp_path, "run") == {"seed": 1, "optimizer": {"lr": 1e-5}}


def test_only_what_makes_a_run_is_saved(tmp_path: Path) -> None:
    """The settings of a command, such as the trust in its imports, are never written."""
    command = {"resume": None, "run": None, "debug": True, "trust_imports": True}
    rundir.write_config(tmp_path, {"model": {"name": "mlp"}, "device": "cpu", **command})
    assert rundir.read_config(tmp_path, "run") == {"model": {"name": "mlp"}, "device": "cpu"}


@pytest.mark.parametrize(
    "text", ["a: [", "just text", "\x00", "a: 2026-99-99", "[" * 5000, "!!python/name:os.system {}"]
)
def test_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    """A configuration that cannot be read is blamed by name."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        rundir.read_config(tmp_path, "run")


def test_json_is_strict(tmp_path: Path) -> None:
    """NaN is refused, and the file that was there stays whole."""
    rundir.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        rundir.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_locked_folder_names_its_process(tmp_path: Path) -> None:
    """A second process is refused with the first one's pid and host."""
    code = f"from dlrun import rundir; from pathlib import Path\nwith rundir.lock(Path({str(tmp_path)!r})): pass"
    with rundir.lock(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is in use by process" in done.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_only_its_maker_removes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that want the same folder at once, the one that came second leaves it alone, and so does its maker
    while the other one writes there."""
    monkeypatch.setattr(_create, "_created", [])
    rundir.create(tmp_path / "a" / "b")
    made = list(_create._created)
    _create._created.clear()
    rundir.create(tmp_path / "a" / "b")
    rundir.remove_created()
    assert (tmp_path / "a" / "b").is_dir()
    with rundir.lock(tmp_path / "a" / "b"):
        _create._created.extend(made)
        rundir.remove_created()
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    _create._created.extend(made)
    rundir.remove_created()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "run: 'x' is not the folder of a run (no .hydra/config.yaml in it)"),
        ([".lock"], "run: the run in 'x' stopped before it began: nothing was trained; run the command again"),
        (["dlrun.log"], "run: the run in 'x' stopped before it began: nothing was trained; run the command again"),
        (None, "run: 'x' is not the folder of a run (no such folder)"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files, expected: str) -> None:
    """A folder without a configuration: of a run killed before it wrote one, of no run, or none at all."""
    monkeypatch.chdir(tmp_path)
    if files is not None:
        (tmp_path / "x").mkdir()
        for name in files:
            (tmp_path / "x" / name).touch()
    with pytest.raises(ConfigError) as caught:
        rundir.read_config("x", "run")
    assert str(caught.value) == expected


def test_a_deleted_folder_is_not_made_again(tmp_path: Path) -> None:
    """Writing into the folder of a run that was deleted says so in one line, and leaves it deleted; `.hydra` alone is made."""
    folder = tmp_path / "run"
    for write in (
        lambda: rundir.write_json(folder / "results.json", {}),
        lambda: rundir.write_config(folder, {"seed": 1}),
        lambda: rundir.write_overrides(folder, ["seed=1"]),
        lambda: rundir.write_csv(folder / "leaderboard.csv", [["a"]]),
    ):
        with pytest.raises(ConfigError, match=f"cannot write {folder}/.*: the run's folder is gone"):
            write()
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    rundir.write_overrides(folder, ["seed=1"])
    assert rundir.read_overrides(folder) == ["seed=1"]


def test_the_rests_of_a_killed_process_go(tmp_path: Path) -> None:
    """What a process killed while writing has left goes with the next write of that file; that of a living one stays."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f".a.json.{ended.pid}.tmp", f".a.json.{os.getppid()}.tmp", f".b.json.{ended.pid}.tmp"):
        (tmp_path / name).touch()
    rundir.write_json(tmp_path / "a.json", {})
    left = [f".a.json.{os.getppid()}.tmp", f".b.json.{ended.pid}.tmp", "a.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)


FULL = """
import resource
from pathlib import Path
from dlrun import rundir
from dlrun.registry import ConfigError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: rundir.write_text(Path("a.txt"), "x" * 5000),
    lambda: rundir.write_csv(Path("a.txt"), (["x" * 50] for _ in range(100_000)), key="action.output"),
):
    try:
        write()
    except ConfigError as error:
        print(error)
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """A write that the system refuses names the file and the reason, and what stood there before stays, alone."""
    (tmp_path / "a.txt").write_text("before")
    done = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("cannot write a.txt (File too large"), done.stderr
    assert lines[1].startswith("action.output: cannot write a.txt (File too large")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "before")]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (
            errno.ENOLCK,
            "cannot be locked (No locks available); choose a folder on another file system by hydra.run.dir",
        ),
        (errno.EOPNOTSUPP, "cannot be locked (Operation not supported); choose a folder on another file system"),
    ],
)
def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: str) -> None:
    """A file system without locks is named, and nothing stays open."""
    import fcntl

    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(ConfigError) as caught, rundir.lock(tmp_path):
        pass
    assert str(caught.value).startswith(f"resume: '{tmp_path}' {expected}")
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_a_folder_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is gone, read-only, or whose lock file is a link to another file: one line, and that file is left alone."""
    with pytest.raises(ConfigError, match=r"hydra.run.dir: cannot write in '.*gone' \(the folder was deleted\)"):
        rundir.lock(tmp_path / "gone", "hydra.run.dir").__enter__()
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="resume: cannot write in "):
        rundir.lock(tmp_path / "run").__enter__()
    assert (tmp_path / "mine").read_text() == "precious"

    def refuse(*args: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"resume: cannot write in '.*run' \(Read-only file system\)"):
        rundir.lock(tmp_path / "run").__enter__()


def test_a_checkpoint_or_another_run_keeps_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maker removes a folder with its own configuration in it, but none with a checkpoint, the run of another process, or
    the results of a sweep's job."""
    for name, is_own, file in (
        ("own", True, None),
        ("checkpoint", True, "checkpoints/previous.pt"),
        ("others", False, None),
        ("sweep", True, "0/results.json"),
    ):
        folder = tmp_path / name
        monkeypatch.setattr(_create, "_own", set())
        monkeypatch.setattr(_create, "_created", [])
        rundir.create(folder)
        rundir.write_config(folder, {"seed": 1})
        if not is_own:
            _create._own.clear()
        if file:
            (folder / file).parent.mkdir()
            (folder / file).touch()
        rundir.remove_created()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "others", "sweep"]
