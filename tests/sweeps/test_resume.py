"""Going on with a sweep: whatever stopped it, the runs that ended are kept and the others are made up for."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dlrun import rundir
from dlrun.cli import run
from dlrun.sweeps import job, manifest
from dlrun.sweeps.jobs import Job
from dlrun.trainer import Trainer

QUICK = (
    "model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.epochs=2", "data.limit_train=64",
    "callbacks=none", "hydra/launcher=basic",
)  # fmt: skip
SWEEP = (*QUICK, "seed=0,1,2", "hydra.sweep.dir=sweep", "-m")


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def statuses(sweep: Path) -> list[str]:
    with open(sweep / "leaderboard.csv", newline="") as file:
        return sorted(row["status"] for row in csv.DictReader(file))


def files(folder: Path) -> dict[Path, bytes]:
    """The content of every file but the lock and the manifest of a sweep."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name.name not in (".lock", manifest.FILE)}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / rundir.LAST, weights_only=True)["model"]


def stop_in(monkeypatch: pytest.MonkeyPatch, seed: int, step: int, act: Callable[[], Any]) -> None:
    """Lets something happen in the run of a seed, at the beginning of a step (counted from 0)."""
    original = Trainer._step

    def stopped(self: Trainer, *args: Any) -> Any:
        if (self.seed, self.run.step) == (seed, step):
            act()
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_step", stopped)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise RuntimeError("the disk is on fire")


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep, never stopped."""
    folder = tmp_path_factory.mktemp("twin") / "sweep"
    assert run([*SWEEP[:-2], f"hydra.sweep.dir={folder}", "-m"]) == 0
    return folder


def assert_same(sweep: Path, twin: Path) -> None:
    """Three finished runs with the numbers of the sweep that was never stopped."""
    assert statuses(sweep) == ["finished"] * 3
    for name in "012":
        assert results(sweep / name)["metrics"] == results(twin / name)["metrics"]
        mine, other = tensors(sweep / name), tensors(twin / name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


def test_a_signal_ends_a_sweep_tidily_and_it_goes_on(cli, twin: Path, tmp_path: Path, monkeypatch) -> None:
    """SIGTERM in the second of three runs: one line, a leaderboard of the first; copied to another place and gone on with
    from another folder, the first is not touched and all have the numbers of an unbroken sweep."""
    with monkeypatch.context() as patch:
        stop_in(patch, seed=1, step=1, act=terminate)
        done = cli(*SWEEP)
    assert done.rc == 143
    assert done.stderr.splitlines()[-1].endswith("dlrun resume=sweep")
    assert "Traceback" not in done.stderr
    assert "1 runs, 0 failed" in done.stdout
    sweep = tmp_path / "sweep"
    assert statuses(sweep) == ["finished"]
    assert (results(sweep / "1")["status"], (sweep / "2").exists()) == ("interrupted", False)
    copy = tmp_path / "elsewhere" / "a=copy, (è)"
    shutil.copytree(sweep, copy)
    shutil.rmtree(sweep)
    before = files(copy / "0")
    monkeypatch.chdir(copy.parent)
    done = cli(f"resume={copy.name}")
    assert done.rc == 0, done.stderr
    assert files(copy / "0") == before
    assert "resumed" in (copy / "1" / "dlrun.log").read_text()
    assert_same(copy, twin)
    assert cli(f"resume={copy.name}").rc == 0
    assert_same(copy, twin)


@pytest.mark.parametrize("left", ["checkpoint", "nothing"])
def test_a_killed_sweep_goes_on(cli, twin: Path, tmp_path: Path, monkeypatch, left: str) -> None:
    """As SIGKILL leaves it, without results, and with or without a checkpoint of the run in hand; the same command again
    does the same, whatever the order of its words."""
    with monkeypatch.context() as patch:
        stop_in(patch, seed=1, step=3, act=terminate)
        assert cli(*SWEEP).rc == 143
    folder = tmp_path / "sweep" / "1"
    (folder / rundir.RESULTS).unlink()
    (tmp_path / "sweep" / "leaderboard.csv").unlink()
    if left == "nothing":
        shutil.rmtree(folder / "checkpoints")
        (folder / "metrics.jsonl").write_text("stale")
    done = cli("-m", "hydra.sweep.dir=sweep", "seed=0,1,2", *reversed(QUICK))
    assert done.rc == 0, done.stderr
    assert ("resumed" in (folder / "dlrun.log").read_text()) == (left == "checkpoint")
    assert not (folder / "metrics.jsonl").exists()
    assert_same(tmp_path / "sweep", twin)


def test_a_run_killed_while_its_folder_is_emptied(tmp_path: Path, monkeypatch) -> None:
    """Whichever file was the last that an attempt took away: the folder stays the job's own, and the next one begins."""
    folder = tmp_path / "3"
    mine = Job(3, ["seed=3"], {}, folder, "0" * 12)

    def left_behind() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        job.begin(mine, print)
        for name in (".hydra/config.yaml", "dlrun.log", "tensorboard/events", "metrics.jsonl", "run.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("{}")

    class Killed(BaseException):
        pass

    def dying(remove: Callable[..., None], left: list[int]) -> Callable[..., None]:
        def removed(*args: Any, **options: Any) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            remove(*args, **options)

        return removed

    for moment in range(20):
        left_behind()
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            left = [moment]
            patch.setattr(os, "unlink", dying(os.unlink, left))
            patch.setattr(os, "rmdir", dying(os.rmdir, left))
            job.begin(mine, print)
            break
        assert job.is_own(mine), moment
    assert moment >= 5
    job.begin(mine, print)
    assert [path.name for path in folder.iterdir() if path.name != rundir.LOCK] == [".hydra"]


def test_a_signal_between_two_runs(cli, twin: Path, tmp_path: Path, monkeypatch) -> None:
    """Ctrl-C while the second run is being prepared: exit code 130, and nothing is lost."""
    original = job._begin_anew

    def stopped(folder: Path, *args: Any) -> None:
        if folder.name == "1":
            raise KeyboardInterrupt
        original(folder, *args)

    with monkeypatch.context() as patch:
        patch.setattr(job, "_begin_anew", stopped)
        done = cli(*SWEEP)
    assert (done.rc, statuses(tmp_path / "sweep")) == (130, ["finished"])
    assert done.stderr.splitlines()[-1].endswith("dlrun resume=sweep")
    assert cli("resume=sweep").rc == 0
    assert_same(tmp_path / "sweep", twin)


def test_failed_runs_are_tried_again_diverged_ones_are_not(cli, tmp_path: Path, monkeypatch) -> None:
    """A run that crashed is made up for; one that diverged would only do so again, and still counts as failed."""
    words = (
        *QUICK,
        "optimizer=sgd",
        "scheduler=constant",
        "optimizer.lr=0.01,0.02,1e30",
        "hydra.sweep.dir=sweep",
        "-m",
    )
    with monkeypatch.context() as patch:
        stop_in(patch, seed=0, step=1, act=fail)
        assert cli(*words).rc == 4
    sweep = tmp_path / "sweep"
    assert [results(sweep / name)["status"] for name in "012"] == ["failed"] * 3
    assert cli("resume=sweep").rc == 4
    assert [results(sweep / name)["status"] for name in "012"] == ["finished", "finished", "diverged"]
    before = files(sweep / "2")
    done = cli("resume=sweep")
    assert (done.rc, statuses(sweep)) == (4, ["diverged", "finished", "finished"])
    assert "sweep/2: diverged already" in done.stderr
    assert files(sweep / "2") == before


def test_nothing_but_the_same_sweep_goes_on(cli, tmp_path: Path) -> None:
    """Other runs in the folder, changes on top, another process at it, a damaged manifest: one line, and no file changes."""
    assert cli(*SWEEP).rc == 0
    before = files(tmp_path / "sweep")

    def refused(*words: str) -> str:
        done = cli(*words)
        assert (done.rc, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert files(tmp_path / "sweep") == before
        return done.stderr

    message = refused(*QUICK, "seed=3,4", "hydra.sweep.dir=sweep", "-m")
    assert "hydra.sweep.dir: 'sweep' already holds runs" in message
    assert "seed=0,1,2" in message
    assert "without optimizer.lr=3" in refused("resume=sweep", "optimizer.lr=3")
    assert "already holds runs" in refused(*SWEEP, "hydra.sweep.subdir=x")
    with rundir.lock(tmp_path / "sweep"):
        assert f"in use by process {os.getpid()}" in refused("resume=sweep")
    for text in ("", "[]", "words: [1]", "words: seed=1\nhydra: []\nflags: []", "\0"):
        (tmp_path / "sweep" / "sweep.yaml").write_text(text)
        assert "sweep.yaml is damaged" in refused("resume=sweep")


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("hydra", "hydra.callbacks.x._target_=marker.Marker"),
        ("words", "+hydra.callbacks.x._target_=marker.Marker"),
        ("hydra", "hydra.sweeper._target_=marker.Marker"),
        ("hydra", "hydra.sweeper.params={x: {_target_: marker.Marker}}"),
        ("hydra", "hydra.launcher.setup=[touch marked]"),
        ("hydra", "hydra.searchpath=[file://.]"),
        ("hydra", "hydra.sweep.subdir=../../x"),
        ("hydra", "hydra.sweep.subdir=/tmp/x"),
        ("words", "+hydra={callbacks: {x: {_target_: marker.Marker}}}"),
        ("words", "++hydra={job: {env_set: {PATH: evil}}}"),
        ("words", "~hydra"),
        ("hydra", "hydra.sweeper.params={hydra.job.env_set.PATH: evil}"),
        ("words", "optimizer.lr=${oc.env:HOME}"),
        ("words", "+model.import=marker"),
        ("words", "data.augmentation={flip: {import: marker}}"),
        ("words", "--config-dir=."),
        ("words", "run=x"),
        ("hydra", "hydra.sweep.dir=other"),
    ],
)
def test_a_stored_sweep_runs_no_code(cli, tmp_path: Path, monkeypatch, kind: str, word: str) -> None:
    """What a stored command could import or call is refused unless the user trusts it; nothing of it happens."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "marker.py").write_text("open('marked', 'w').close()\nclass Marker: pass\n")
    (tmp_path / "sweep").mkdir()
    words = {"words": [*QUICK, "seed=0,1"], "hydra": [], "flags": []}
    words[kind].append(word)
    (tmp_path / "sweep" / "sweep.yaml").write_text(yaml.safe_dump(words))
    done = cli("resume=sweep")
    assert done.rc in (1, 4)
    assert "trust_imports=true" in done.stderr or "is damaged" in done.stderr
    assert not (tmp_path / "marked").exists()
    assert not any(path.suffix == ".pt" for path in tmp_path.rglob("*"))
    assert "Traceback" not in done.stderr


def test_a_stored_run_imports_nothing_new(cli, tmp_path: Path, monkeypatch) -> None:
    """A run of a sweep whose saved configuration imports what the sweep does not is not gone on with; the others are."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "marker.py").write_text("open('marked', 'w').close()\n")
    with monkeypatch.context() as patch:
        stop_in(patch, seed=1, step=3, act=terminate)
        assert cli(*SWEEP).rc == 143
    saved = tmp_path / "sweep" / "1" / rundir.CONFIG
    config = yaml.safe_load(saved.read_text())
    config["model"]["import"] = "marker"
    saved.write_text(yaml.safe_dump(config))
    done = cli("resume=sweep")
    assert (done.rc, statuses(tmp_path / "sweep")) == (4, ["finished", "finished", "interrupted"])
    assert "imports 'marker' (model.import)" in done.stderr
    assert not (tmp_path / "marked").exists()


def test_a_full_disk_in_a_run_does_not_end_the_sweep(cli, tmp_path: Path, monkeypatch) -> None:
    """Where results.json cannot be written, the run is named in one line, and the next one goes on."""
    original = rundir.write_json

    def full(path: Path, value: Any) -> None:
        if path.parent.name == "0" and path.name == rundir.RESULTS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(rundir, "write_json", full)
        done = cli(*SWEEP)
    assert (done.rc, statuses(tmp_path / "sweep")) == (4, ["finished", "finished", "missing"])
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if "No space left on device: " in line and "results.json" in line]
    assert cli("resume=sweep").rc == 0
    assert statuses(tmp_path / "sweep") == ["finished"] * 3


def test_a_full_disk_costs_the_leaderboard_file_only(cli, tmp_path: Path, monkeypatch) -> None:
    """The leaderboard is printed although its file cannot be written, and the exit code stays."""
    from dlrun.sweeps.leaderboard import Leaderboard

    def full(self: Leaderboard) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Leaderboard, "write_csv", full)
    done = cli(*QUICK[2:], "model=mlp", "optimizer.lr=-1,0.1", "hydra.sweep.dir=sweep", "-m")
    assert (done.rc, "2 runs, 1 failed" in done.stdout, "no leaderboard.csv" in done.stderr) == (4, True, True)


def test_an_exit_in_a_component_fails_its_run_only(cli, tmp_path: Path, monkeypatch) -> None:
    """sys.exit in the middle of a run is a failure of that run."""
    with monkeypatch.context() as patch:
        stop_in(patch, seed=1, step=1, act=lambda: exit(2))
        done = cli(*SWEEP)
    assert (done.rc, "1: ended by sys.exit(2)" in done.stderr) == (4, True)
    assert len([line for line in statuses(tmp_path / "sweep") if line == "finished"]) == 2


def test_shuffled_runs_keep_their_numbers(cli, tmp_path: Path, monkeypatch) -> None:
    """`shuffle(...)` gives the same order when the sweep goes on."""
    words = (*QUICK, "trainer.fast_dev_run=true", "seed=shuffle(0,1,2,3)", "hydra.sweep.dir=sweep", "-m")
    with monkeypatch.context() as patch:
        stop_in(patch, seed=2, step=0, act=terminate)
        assert cli(*words).rc == 143
    random.seed(1234)
    assert cli("resume=sweep").rc == 0
    seeds = [rundir.read_config(tmp_path / "sweep" / str(n), "run")["seed"] for n in range(4)]
    assert sorted(seeds) == [0, 1, 2, 3]
    assert statuses(tmp_path / "sweep") == ["finished"] * 4


def test_options_of_the_users_own_must_be_given_again(cli, tmp_path: Path) -> None:
    """A sweep over options from --config-dir says so when it goes on without that folder."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "tiny.yaml").write_text("name: mlp\nhidden: [4]\n")
    words = (*QUICK[2:], "model=tiny", "seed=0,1", "hydra.sweep.dir=sweep", "-m", "--config-dir", "mine")
    assert cli(*words, "trainer.fast_dev_run=true").rc == 0
    done = cli("resume=sweep")
    assert (done.rc, "started with --config-dir mine; give that folder again" in done.stderr) == (1, True)
    shutil.rmtree(tmp_path / "sweep" / "1")
    done = cli("--config-dir", "mine", "resume=sweep")
    assert (done.rc, statuses(tmp_path / "sweep")) == (0, ["finished"] * 2), done.stderr


def test_the_same_words_in_another_order() -> None:
    """Of a setting that is given twice the last one counts, so their order must stay."""
    one = manifest.Manifest(["a=1", "b=2", "a=3"])
    assert one.is_of(manifest.Manifest(["b=2", "a=1", "a=3"]))
    assert not one.is_of(manifest.Manifest(["b=2", "a=3", "a=1"]))
    assert not one.is_of(manifest.Manifest(["a=1", "b=2", "a=3"], ["hydra.sweep.subdir=x"]))


def test_references_between_settings_are_resolved_in_each_run(cli, tmp_path: Path) -> None:
    """A stored word that refers to another setting, and a folder named by one, mean the same when the sweep goes on."""
    words = (
        "data.batch_size=16,32",
        "data.limit_train=${data.batch_size}",
        "hydra.sweep.subdir=lr_${optimizer.lr}_b${data.batch_size}",
    )
    one_epoch = (*QUICK, "trainer.epochs=1", *words)
    assert cli(*one_epoch, "hydra.sweep.dir=sweep", "-m").rc == 0
    jobs = {path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()}
    assert jobs == {"lr_0.001_b16", "lr_0.001_b32"}
    shutil.rmtree(tmp_path / "sweep" / "lr_0.001_b32")
    done = cli("resume=sweep")
    assert done.rc == 0, done.stderr
    assert statuses(tmp_path / "sweep") == ["finished", "finished"]
    config = rundir.read_config(tmp_path / "sweep" / "lr_0.001_b32", "run")
    assert (config["data"]["batch_size"], config["data"]["limit_train"]) == (32, 32)


def test_the_command_that_goes_on_works_with_a_users_module(cli, tmp_path: Path, monkeypatch) -> None:
    """It asks for the trust that the runs need; without it one line says so and no run is recorded as failed."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_layers.py").write_text("")
    with monkeypatch.context() as patch:
        stop_in(patch, seed=1, step=3, act=terminate)
        done = cli(*SWEEP, "+model.import=own_layers")
    assert done.rc == 143
    assert "resume=sweep trust_imports=true" in done.stderr.splitlines()[-1]
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("results.json")}
    refused = cli("resume=sweep")
    lines = [line for line in refused.stderr.splitlines() if line.startswith("dlrun: ")]
    assert (refused.rc, len(lines)) == (1, 1)
    assert "trust_imports=true" in lines[0]
    assert {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("results.json")} == before
    assert cli("resume=sweep", "trust_imports=true").rc == 0
    assert statuses(tmp_path / "sweep") == ["finished"] * 3
