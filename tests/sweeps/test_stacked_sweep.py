"""`launcher.stack=true`: what can be stacked is, in one worker; what cannot runs alone, and one line says why."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dlrun import rundir
from dlrun.sweeps import submitted

pytestmark = pytest.mark.xdist_group("launcher")

QUICK = (
    "model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.epochs=2", "data.limit_train=64",
    "callbacks=[metrics_file]", "launcher.stack=true", "launcher.threads=1",
)  # fmt: skip


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def is_stacked(folder: Path) -> bool:
    return "in a stacked model" in (folder / "dlrun.log").read_text()


def test_values_are_stacked_and_shapes_apart(cli, tmp_path: Path) -> None:
    """Seeds and learning rates of each width are one model; a line says that the widths differ. Each has a folder of its own,
    can be tested alone, and its first epoch is that of a lone run but for rounding."""
    words = (*QUICK, "model.hidden=[8],[4]", "optimizer.lr=0.001,0.01", "seed=0,1")
    done = cli(*words, "hydra.sweep.dir=sweep", "-m")
    assert done.rc == 0, done.stderr
    sweep = tmp_path / "sweep"
    assert all(is_stacked(sweep / str(n)) and results(sweep / str(n))["status"] == "finished" for n in range(8))
    assert submitted.states(sweep) == dict.fromkeys(range(8), "finished")
    assert "model.hidden" in done.stderr
    alone = [word for word in QUICK if not word.startswith(("launcher", "model.hidden"))]
    lone = (*alone, "model.hidden=[4]", "optimizer.lr=0.01", "seed=1", "trainer.threads=1", "hydra.run.dir=alone")
    assert cli(*lone).rc == 0
    mine, other = (
        results(sweep / "7")["metrics"]["train"]["loss"],
        results(tmp_path / "alone")["metrics"]["train"]["loss"],
    )
    assert mine == pytest.approx(other, rel=1e-4)
    assert cli("action=test", "run=sweep/7").rc == 0


def test_a_run_that_cannot_be_stacked_runs_alone(cli, tmp_path: Path) -> None:
    """A wrong value fails its own run; compiled models are not stacked; both are told."""
    done = cli(*QUICK, "optimizer.lr=0.01,-1,0.001", "hydra.sweep.dir=sweep", "-m")
    assert done.rc == 4, done.stderr
    found = [results(tmp_path / "sweep" / n)["status"] for n in "012"]
    assert found == ["finished", "failed", "finished"]
    assert "optimizer.lr: got -1" in results(tmp_path / "sweep" / "1")["message"]


def test_a_diverging_member_leaves_the_others(cli, tmp_path: Path) -> None:
    """Its status is `diverged`, exit code 4; the others finish."""
    words = (
        *QUICK,
        "optimizer=sgd",
        "scheduler=constant",
        "optimizer.lr=0.01,1e30,0.02",
        "hydra.sweep.dir=sweep",
        "-m",
    )
    assert cli(*words).rc == 4
    found = [results(tmp_path / "sweep" / n)["status"] for n in "012"]
    assert found == ["finished", "diverged", "finished"]


def test_an_interrupted_stack_goes_on(cli, tmp_path: Path) -> None:
    """SIGTERM: every member writes a checkpoint; the same command goes on with each alone."""
    words = (*QUICK, "trainer.epochs=100", "seed=0,1,2", "hydra.sweep.dir=sweep", "-m")
    process = subprocess.Popen(
        [sys.executable, "-m", "dlrun", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not all((tmp_path / "sweep" / n / rundir.LAST).exists() for n in "012") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 143, said
    assert [results(tmp_path / "sweep" / n)["status"] for n in "012"] == ["interrupted"] * 3
    done = cli(*words)
    assert done.rc == 0, done.stderr
    assert [results(tmp_path / "sweep" / n)["epochs"] for n in "012"] == [100] * 3
    assert all("resumed" in (tmp_path / "sweep" / n / "dlrun.log").read_text() for n in "012")
