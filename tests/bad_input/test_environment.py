"""A machine that is not as it should be: no CUDA, no space, no home, no right to write."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun import checkpoint, rundir

QUICK = ("model=mlp", "model.hidden=[4]", "model.dropout=0", "device=cpu", "trainer.epochs=3", "callbacks=none")
TOY = ("data=xor", "data.samples=60")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="paths of Linux")


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither HOME nor an entry of this user, as in some containers."""
    import pwd

    def unknown(_: object) -> Any:
        raise KeyError("no such user")

    for name in ("HOME", "DLRUN_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def setting(name: str, value: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Sets an environment variable."""
    return lambda monkeypatch: monkeypatch.setenv(name, value)


def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine as it is."""


def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


MNIST = ("data=mnist",)
ROWS: list[tuple[str, Callable[[pytest.MonkeyPatch], None], tuple[str, ...], list[str]]] = [
    ("no CUDA", no_cuda, (*TOY, "device=cuda"), ["device: 'cuda'", "no usable CUDA device", "device=cpu or auto"]),
    ("no second CUDA", no_cuda, (*TOY, "device=cuda:1"), ["device: 'cuda:1'", "no usable CUDA device"]),
    ("no home", no_home, MNIST, ["data.root: the home folder is unknown; set data.root or DLRUN_DATA_DIR"]),
    ("home of nobody", setting("DLRUN_DATA_DIR", "~nobody-of-that-name"), MNIST, ["data.root: the home folder"]),
    (
        "data nowhere",
        setting("DLRUN_DATA_DIR", "gone"),
        MNIST,
        ["data.root: ", "no network", "put into gone/MNIST/raw"],
    ),
    ("data under a file", setting("DLRUN_DATA_DIR", "file"), MNIST, ["data.root: ", "Not a directory"]),
    ("uci nowhere", setting("DLRUN_DATA_DIR", "gone"), ("data=uci",), ["data.dataset: no gone/uci/yacht/data.txt"]),
    ("run folder under a file", nothing, (*TOY, "hydra.run.dir=file/run"), ["hydra.run.dir: cannot create 'file/run'"]),
    ("run folder is a file", nothing, (*TOY, "hydra.run.dir=file"), ["hydra.run.dir"]),
    (
        "run folder with a file name too long",
        nothing,
        (*TOY, f"hydra.run.dir={'x' * 300}"),
        ["hydra.run.dir: cannot create"],
    ),
    ("resume a file", nothing, ("resume=file",), ["resume: 'file' is not the folder of a run"]),
    ("test a file", nothing, ("action=test", "run=file"), ["run: 'file' is not the folder of a run"]),
    ("resume of nobody", nothing, ("resume=~nobody-of-that-name/x",), ["resume: "]),
]


@pytest.mark.parametrize(("name", "prepare", "words", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_unfit_machines_get_one_line(
    refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    prepare: Callable[[pytest.MonkeyPatch], None],
    words: tuple[str, ...],
    expected: list[str],
) -> None:
    """What the machine lacks is said in one line that names the setting to change."""
    (tmp_path / "file").touch()
    prepare(monkeypatch)
    refused((*(QUICK if not words[0].startswith(("resume", "action")) else ()), *words), expected)


def test_generated_data_need_no_home(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no data are read, no folder for them is looked for."""
    no_home(monkeypatch)
    done = cli(*QUICK, *TOY)
    assert done.rc == 0, done.stderr


@linux
def test_an_unreadable_table(refused) -> None:
    """A file that gives an error when it is read, also to the superuser."""
    words = ("data=csv", "data.path=/proc/self/mem", "data.target=y")
    refused((*QUICK, *words), ["/proc/self/mem: cannot be read (Input/output error)"])


@linux
def test_a_folder_without_right_to_write(refused) -> None:
    """Not even the superuser makes a folder there."""
    refused((*QUICK, *TOY, "hydra.run.dir=/proc/none/run"), ["hydra.run.dir: cannot create '/proc/none"])


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold the superuser back")
def test_a_read_only_folder(cli, tmp_path: Path) -> None:
    """The user's own read-only folder: one line with the reason."""
    (tmp_path / "outputs").mkdir(mode=0o555)
    done = cli(*QUICK, *TOY)
    assert (done.rc, done.stderr.count("\n"), "Permission denied" in done.stderr) == (1, 1, True)


def test_disk_full_in_mid_run(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space for the second checkpoint: exit code 1, one line with the file and the reason, the first checkpoint as it
    was, and results that say failed."""
    write, kept = torch.save, []

    def full(state: Any, file: Any, **settings: Any) -> None:
        last = tmp_path / "run" / rundir.LAST
        if last.exists() and state.get("counters", {}).get("epoch") == 2:
            kept.append(last.read_bytes())
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(state, file, **settings)

    monkeypatch.setattr(torch, "save", full)
    done = cli(*QUICK, *TOY, "hydra.run.dir=run")
    assert done.rc == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "No space left on device" in lines[0]
    assert (tmp_path / "run" / rundir.LAST).read_bytes() == kept[0]
    assert checkpoint.load(tmp_path / "run" / rundir.LAST)["counters"]["epoch"] == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "failed"
    assert list((tmp_path / "run" / "checkpoints").glob(".*")) == []


def test_a_limit_of_file_sizes(cli, tmp_path: Path) -> None:
    """A real limit of the system, too small for any checkpoint: one line, and nothing left behind that looks like one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        done = cli(*QUICK, *TOY, "model.hidden=[400,400]", "hydra.run.dir=run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done.rc == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "File too large" in lines[0]
    assert not list(tmp_path.rglob("*.pt"))
    assert not list(tmp_path.rglob("*.tmp"))
