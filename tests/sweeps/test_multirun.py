"""Sweeps: one folder per run, failures isolated, a leaderboard over seeds, exit code 4."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlrun.sweeps.leaderboard import Job, Leaderboard

QUICK = (
    "model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.epochs=1", "data.limit_train=64",
    "callbacks=none", "hydra/launcher=basic",
)  # fmt: skip


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_a_sweep_gives_a_folder_per_run_and_a_leaderboard(cli, tmp_path: Path) -> None:
    """Two learning rates times two seeds: four finished runs, two rows of two seeds each, exit code 0 (flag last)."""
    done = cli(*QUICK, "optimizer.lr=0.001,0.1", "seed=0,1", "hydra.sweep.dir=sweep", "-m")
    assert done.rc == 0, done.stderr
    folders = [tmp_path / "sweep" / str(i) for i in range(4)]
    assert all(results(folder)["status"] == "finished" for folder in folders)
    board = Leaderboard.read(tmp_path / "sweep")
    assert [len(row.jobs) for row in board.rows] == [2, 2]
    assert board.rows[0].mean < board.rows[1].mean
    assert set(board.varied) == {"optimizer.lr", "seed"}
    with open(tmp_path / "sweep" / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["optimizer.lr"] for row in rows} == {"0.001", "0.1"}
    assert "val/loss" in done.stdout


def test_a_failing_run_does_not_end_the_sweep(cli, tmp_path: Path) -> None:
    """A run with a wrong value and a diverging one are recorded; the others finish; exit code 4."""
    done = cli(
        *QUICK, "optimizer=sgd", "optimizer.lr=-1,0.01,1e30", "scheduler=constant", "hydra.sweep.dir=sweep", "-m"
    )
    assert done.rc == 4, done.stderr
    assert [results(tmp_path / "sweep" / str(i))["status"] for i in range(3)] == ["failed", "finished", "diverged"]
    assert "optimizer.lr" in results(tmp_path / "sweep" / "0")["message"]


def test_a_crash_is_logged_in_its_own_folder(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of an unexpected error stands in the run's own log."""
    from dlrun.trainer import Trainer

    original = Trainer.fit

    def broken(self: Trainer) -> None:
        if self.seed == 1:
            raise RuntimeError("the disk is on fire")
        original(self)

    monkeypatch.setattr(Trainer, "fit", broken)
    assert cli(*QUICK, "seed=0,1,2", "hydra.sweep.dir=sweep", "-m").rc == 4
    assert [results(tmp_path / "sweep" / str(i))["status"] for i in range(3)] == ["finished", "failed", "finished"]
    log = (tmp_path / "sweep" / "1" / "dlrun.log").read_text()
    assert "Traceback" in log
    assert "the disk is on fire" in log


def test_misspelt_sweeps_start_nothing(cli, tmp_path: Path) -> None:
    """A misspelt option in a sweep is found before the first run."""
    done = cli(*QUICK[2:], "model=mlp,lenett", "hydra.sweep.dir=sweep", "-m")
    assert done.rc == 1
    assert "did you mean 'lenet'?" in done.stderr
    assert not list(tmp_path.rglob("results.json"))


def test_a_grid_is_the_product_of_its_lists(cli, tmp_path: Path) -> None:
    """2 learning rates x 2 models = 4 runs."""
    done = cli("optimizer.lr=0.1,0.01", "model=mlp,linear", "trainer.fast_dev_run=true", "device=cpu", "callbacks=none",
               "hydra.sweep.dir=sweep", "-m")  # fmt: skip
    assert done.rc == 0, done.stderr
    assert len(list((tmp_path / "sweep").glob("*/results.json"))) == 4


def test_lists_and_failures_have_rows_of_their_own(cli, tmp_path: Path) -> None:
    """Columns are the overrides that vary, as they were written; a run that failed early stands beside its seeds."""
    done = cli(*QUICK, "regularization=[l1],[l1,l2],[]", "seed=0,-1", "hydra.sweep.dir=sweep", "-m")
    assert done.rc == 4
    board = Leaderboard.read(tmp_path / "sweep")
    assert set(board.varied) == {"regularization", "seed"}
    assert sorted(row.settings["regularization"] for row in board.rows) == ["[]", "[l1,l2]", "[l1]"]
    assert [[job.status for job in row.jobs] for row in board.rows] == [["finished", "failed"]] * 3
    assert "[l1,l2]" in done.stdout


def test_a_missing_interpolation_fails_its_own_run(cli, tmp_path: Path) -> None:
    """A value that cannot be resolved is recorded; the other run finishes."""
    assert cli(*QUICK, "optimizer.lr=${nothing},0.1", "hydra.sweep.dir=sweep", "-m").rc == 4
    assert [results(tmp_path / "sweep" / str(i))["status"] for i in range(2)] == ["failed", "finished"]


def test_a_sweep_never_enters_the_folder_of_another(cli, tmp_path: Path) -> None:
    """A second sweep into the same folder is refused, and so is a second run into the same folder of a sweep."""
    assert cli(*QUICK, "seed=0,1", "hydra.sweep.dir=sweep", "-m").rc == 0
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    done = cli(*QUICK, "seed=2,3", "hydra.sweep.dir=sweep", "-m")
    assert (done.rc, "hydra.sweep.dir: 'sweep' already holds runs" in done.stderr) == (1, True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    done = cli(*QUICK, "seed=2,3", "hydra.sweep.dir=other", "hydra.sweep.subdir=same", "-m")
    assert (done.rc, "already holds a run" in done.stderr) == (4, True)
    assert results(tmp_path / "other" / "same")["status"] == "finished"


def test_a_refused_sweep_leaves_no_folder(cli, tmp_path: Path) -> None:
    """One line and nothing else, although Hydra makes the folder before it reads the options."""
    done = cli(*QUICK, "model=mlp,lenett", "-m")
    assert (done.rc, len(done.stderr.strip().splitlines())) == (1, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_the_whole_sweep(tmp_path: Path) -> None:
    """SIGTERM in the first run: a checkpoint is written, the second never starts, exit code 143."""
    words = [*QUICK, "trainer.epochs=100000", "seed=0,1", "hydra.sweep.dir=sweep", "-m"]
    process = subprocess.Popen([sys.executable, "-m", "dlrun", *words], cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "sweep/0/checkpoints/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert results(tmp_path / "sweep" / "0")["status"] == "interrupted"
    assert not (tmp_path / "sweep" / "1").exists()


def job(folder: str, lr: float, seed: int, value: float | None, status: str = "finished") -> Job:
    settings = {"optimizer.lr": lr, "seed": seed}
    return Job(Path(folder), settings, status, "val/accuracy", value, {"accuracy": value or 0.0})


def test_rows_are_grouped_over_seeds_and_ranked_on_validation() -> None:
    """Mean, sample standard deviation and n by hand; failed seeds do not count; higher accuracy ranks first."""
    jobs = [job("0", 0.1, 0, 0.8), job("1", 0.1, 1, 0.9), job("2", 0.2, 0, 0.95), job("3", 0.2, 1, None, "failed")]
    board = Leaderboard(Path("sweep"), jobs)
    assert [row.settings["optimizer.lr"] for row in board.rows] == [0.2, 0.1]
    assert board.rows[1].mean == pytest.approx(0.85)
    assert board.rows[1].std == pytest.approx(0.0707107, abs=1e-6)
    assert (len(board.rows[0].values), board.rows[0].std) == (1, None)
    assert board.failed == 1


@pytest.mark.curriculum("P11")
def test_only_the_winner_shows_its_test_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows are ranked on validation; the test metric of any other row is neither printed nor written."""
    board = Leaderboard(tmp_path, [job("0", 0.1, 0, 0.8123), job("1", 0.2, 0, 0.9456)])
    board.print()
    board.write_csv()
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["test/accuracy"] for row in rows] == ["0.9456", ""]
    assert capsys.readouterr().out.count("0.8123") == 1  # its validation value
