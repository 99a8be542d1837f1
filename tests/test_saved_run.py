"""A run folder is all there is to a run: copied to another place, it goes on, is tested and predicts as before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

WORDS = (
    "model=mlp", "model.hidden=[8]", "model.dropout=0.2", "data=digits", "device=cpu", "trainer.epochs=3",
    "trainer.checkpoint_every_steps=4", "callbacks=[metrics_file,tensorboard]",
)  # fmt: skip


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_a_copied_run_goes_on(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped, copied elsewhere and taken away goes on from another working directory, and ends, is tested and
    predicts exactly as one that never stopped."""
    from dlrun.tasks.supervised import Supervised

    first = tmp_path / "first place" / "run"
    step, calls = Supervised.__call__, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Supervised, "__call__", interrupted)
        assert cli(*WORDS, f"hydra.run.dir='{first}'").rc == 130
    assert results(first)["status"] == "interrupted"
    for path in first.rglob("*"):
        if path.is_file() and path.name not in ("run.json", "dlrun.log"):  # the command, and what was said
            assert b"first place" not in path.read_bytes(), path
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(first, elsewhere / "copy")
    shutil.rmtree(tmp_path / "first place")
    monkeypatch.chdir(elsewhere)
    assert cli("resume=copy").rc == 0
    assert not first.exists()
    assert cli(*WORDS, "hydra.run.dir=whole").rc == 0
    assert results(elsewhere / "copy")["metrics"] == results(elsewhere / "whole")["metrics"]
    lines = [(elsewhere / name / "metrics.jsonl").read_text() for name in ("copy", "whole")]
    assert lines[0] == lines[1]
    shutil.move(elsewhere / "copy", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    done = cli("action=test", "run=moved")
    assert (done.rc, f"{results(tmp_path / 'moved')['metrics']['test']['loss']:.6g}" in done.stdout) == (0, True)
    for folder in ("moved", elsewhere / "whole"):
        assert cli("action=predict", f"run={folder}").rc == 0
    assert (tmp_path / "moved/predictions.csv").read_bytes() == (elsewhere / "whole/predictions.csv").read_bytes()


def test_a_run_without_a_checkpoint(cli, tmp_path: Path) -> None:
    """A run whose checkpoints were lost, or that was killed before its first, can be neither tested nor used: one line says
    what to do."""
    assert cli(*WORDS, "trainer.fast_dev_run=true", "hydra.run.dir=run").rc == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    done = cli("action=test", "run=run")
    assert (
        done.stderr == "dlrun: run: the checkpoints in run/checkpoints are gone; restore them from a copy of the run\n"
    )
    (tmp_path / "run" / "results.json").unlink()
    done = cli("action=test", "run=run")
    assert (done.rc, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "no checkpoint in run/checkpoints: nothing was trained; go on with it by resume=run" in done.stderr


def test_names_that_look_like_more(cli, tmp_path: Path) -> None:
    """The folder of a run may be named with percent signs and dollars."""
    assert cli(*WORDS, "trainer.fast_dev_run=true", "hydra.run.dir=run").rc == 0
    (tmp_path / "run").rename(tmp_path / "100%s $x")
    assert cli("action=test", "run=100%s $x").rc == 0
    (tmp_path / "100%s $x" / ".hydra" / "config.yaml").write_text("seed: 1")
    done = cli("resume=100%s $x")
    assert (done.rc, "100%s $x/.hydra/config.yaml is damaged (no 'task')" in done.stderr) == (1, True), done.stderr
