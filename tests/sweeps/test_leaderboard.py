"""The leaderboard: rows over seeds and folds, statuses, directions, damaged folders; no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dlrun.sweeps.leaderboard import SHOWN, Leaderboard, varied
from dlrun.sweeps.records import Record, higher_is_better, number, read_record, reported


def record(settings: dict, value: float | None, status: str = "finished", monitor: str = "val/loss") -> Record:
    return Record(Path("sweep"), settings, status, monitor, value, {})


def make_run(folder: Path, words: list[str], value: float | None, status: str = "finished", **results) -> Path:
    """A run folder as a job of a sweep leaves it."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words))
    best = {"epoch": 1, "step": 10, "monitor": "val/loss", "value": value} if value is not None else {}
    found = {"status": status, "metrics": {"val": {"loss": value}}, "best": best, **results}
    (folder / "results.json").write_text(json.dumps(found))
    return folder


def test_seeds_and_folds_are_one_row() -> None:
    """2 learning rates x 2 folds x 2 seeds are two rows; the mean is over folds, whose seeds are averaged first."""
    values = {("0.1", 0, 0): 1.0, ("0.1", 0, 1): 3.0, ("0.1", 1, 0): 4.0, ("0.1", 1, 1): 6.0}
    values |= {("0.2", fold, seed): 9.0 for fold in (0, 1) for seed in (0, 1)}
    jobs = [record({"optimizer.lr": lr, "data.fold": str(fold), "seed": str(seed), "data.folds": "2"}, value)
            for (lr, fold, seed), value in values.items()]  # fmt: skip
    board = Leaderboard(Path("sweep"), jobs)
    assert board.names == ["optimizer.lr"]
    best, worst = board.rows
    assert (best.settings, best.mean, best.size) == ({"optimizer.lr": "0.1"}, 3.5, "2 folds x 2")
    assert best.std == pytest.approx(3 / 2**0.5)
    assert (worst.mean, worst.std, worst.sample.interval(0.95)) == (9.0, 0.0, None)


def test_the_interval_is_that_of_the_seeds() -> None:
    """1, 2, 3 over three seeds: mean 2, std 1, 2 -+ 2.48414."""
    board = Leaderboard(Path("sweep"), [record({"seed": str(seed)}, seed + 1.0) for seed in range(3)])
    (row,) = board.rows
    assert (row.label, row.size, row.mean, row.std) == ("all runs", "3", 2.0, 1.0)
    assert row.sample.interval(0.95) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)


def test_only_finished_runs_count(capsys) -> None:
    """Pruned, killed, timed out, failed and diverged runs are counted and change no mean; pruned and stopped ones have not
    failed."""
    statuses = ["finished", "pruned", "killed", "timeout", "failed", "diverged", "interrupted", "finished"]
    jobs = [record({"lr": "1", "seed": str(n)}, 100.0, status) for n, status in enumerate(statuses)]
    jobs[0].value, jobs[-1].value = 1.0, None
    board = Leaderboard(Path("sweep"), jobs)
    (row,) = board.rows
    assert (row.mean, row.size) == (1.0, "1")
    assert row.statuses == "1 diverged, 1 failed, 2 finished, 1 interrupted, 1 killed, 1 pruned, 1 timeout"
    assert board.failed == 4
    board.print()
    assert "sweep: 8 runs, 4 failed, 1 stopped" in capsys.readouterr().out


def test_a_repeated_seed_counts_once() -> None:
    """Two runs of the same settings and seed are one value."""
    board = Leaderboard(
        Path("sweep"), [record({"seed": "1"}, 1.0), record({"seed": 1}, 3.0), record({"seed": "2"}, 2.0)]
    )
    assert board.rows[0].values == [1.0, 2.0]


def test_runs_of_several_monitors_are_ranked_by_one(tmp_path: Path) -> None:
    """An accuracy of 0.9 is no loss of 0.9: of the run that watched it the loss in its best epoch counts."""
    make_run(tmp_path / "0", ["trainer.monitor=val/loss"], 0.4)
    best = {"epoch": 1, "step": 10, "monitor": "val/accuracy", "value": 0.9}
    make_run(tmp_path / "1", ["trainer.monitor=val/accuracy"], 0.9, best=best)
    lines = [
        {"epoch": n, "step": 10 * n, "split": "val", "loss": loss, "accuracy": 0.9} for n, loss in ((1, 0.3), (2, 0.2))
    ]
    (tmp_path / "1" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    board = Leaderboard.read(tmp_path)
    assert [(row.settings["trainer.monitor"], row.mean) for row in board.rows] == [
        ("val/accuracy", 0.3),
        ("val/loss", 0.4),
    ]


def test_rows_without_a_finished_run_are_last() -> None:
    """Whichever direction is better."""
    for monitor, best in (("val/loss", "1"), ("val/accuracy", "2")):
        jobs = [record({"lr": "0"}, None, "failed"), record({"lr": "1"}, 1.0), record({"lr": "2"}, 2.0)]
        for job in jobs:
            job.monitor = monitor
        labels = [row.settings["lr"] for row in Leaderboard(Path("sweep"), jobs).rows]
        assert (labels[0], labels[-1]) == (best, "0")


def test_the_table_of_directions_is_that_of_the_metrics() -> None:
    """Every metric that dlrun ships, without its import."""
    from dlrun.metrics import METRICS
    from dlrun.metrics._collection import direction
    from dlrun.sweeps.records import HIGHER_IS_BETTER

    assert sorted(HIGHER_IS_BETTER) == sorted([*METRICS.names(), "loss"])
    assert all(higher_is_better(f"val/{name}", []) == (direction(name) == "max") for name in HIGHER_IS_BETTER)


def test_runs_tell_the_direction_of_a_users_metric(tmp_path: Path) -> None:
    """The best value of a run is the largest of its history, so larger is better; and the other way round."""
    lines = [{"epoch": n, "step": n, "split": "val", "dice": value} for n, value in enumerate([0.1, 0.7, 0.4])]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Record(tmp_path, {}, "finished", "val/dice", 0.7, {})
    assert higher_is_better("val/dice", [run]) is True
    run.value = 0.1
    assert higher_is_better("val/dice", [run]) is False
    assert higher_is_better("val/unheard_of", [run]) is None


def test_damaged_folders_are_told(tmp_path: Path) -> None:
    """A half-written results.json is unreadable, none is missing, strange values are no numbers; nothing raises."""
    for name, text in {
        "0": '{"status": "fini',
        "1": "[1, 2]",
        "2": '{"best": 3, "metrics": [], "status": "finished"}',
    }.items():
        make_run(tmp_path / name, ["seed=0"], 1.0)
        (tmp_path / name / "results.json").write_text(text)
    make_run(tmp_path / "3", ["seed=0"], 1.0)
    (tmp_path / "3" / "results.json").unlink()
    make_run(tmp_path / "4", ["seed=0"], 1.0, best={"monitor": "val/loss", "value": "0.5"})
    make_run(tmp_path / "10", ["seed=0"], 1.0)
    (tmp_path / "4" / "metrics.jsonl").write_bytes(b'{"epoch": 1, "spl\n\xff\n[]\n{"epoch": 2}\n')
    board = Leaderboard.read(tmp_path)
    assert [job.folder.name for job in board.jobs] == ["0", "1", "2", "3", "4", "10"]
    assert [job.status for job in board.jobs[:4]] == ["unreadable", "unreadable", "finished", "missing"]
    assert board.rows[0].values == [1.0]
    assert board.jobs[4].history == [{"epoch": 2}]
    assert (board.jobs[4].config, board.jobs[4].split_hashes) == ({}, {})


def test_numbers_are_finite() -> None:
    """Neither null, text, truth nor anything whose square overflows."""
    assert [number(value) for value in (1, 0.5, None, "1", True, float("nan"), float("inf"), 1e200, 10**400)] == [
        1.0, 0.5, None, None, None, None, None, None, None]  # fmt: skip


def test_what_varies_stands_in_the_order_of_the_command_line() -> None:
    """Settings that all runs share are no columns."""
    assert varied([{"b": "1", "a": "1", "c": "1"}, {"b": "2", "a": "1", "c": "3"}]) == ["b", "c"]


def test_metrics_that_runs_report(tmp_path: Path) -> None:
    """Those of validation first."""
    make_run(
        tmp_path / "0", [], 1.0, metrics={"train": {"loss": 1}, "val": {"loss": 2, "f1": None}, "test": {"loss": 3}}
    )
    assert reported([read_record(tmp_path / "0")]) == ["val/f1", "val/loss", "test/loss", "train/loss"]


def test_hundreds_of_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The terminal shows the first ones and says where the others are; the file has one line for each run."""
    jobs = [record({"optimizer.lr": str(n), "seed": str(seed)}, n + seed / 10) for n in range(200) for seed in range(3)]
    board = Leaderboard(tmp_path, jobs)
    board.print()
    board.write_csv()
    out = capsys.readouterr().out
    assert f"{200 - SHOWN} more rows in" in out
    assert len(out.splitlines()) < SHOWN + 12
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 601


def test_the_leaderboard_needs_no_torch(tmp_path: Path) -> None:
    """Neither reading, nor ranking by an accuracy, nor printing imports it; SciPy comes with the first interval only."""
    for seed in range(2):
        make_run(
            tmp_path / str(seed), [f"seed={seed}", "lr=1"], 1.0, best={"monitor": "val/accuracy", "value": 0.5 + seed}
        )
    code = (
        "import sys; from pathlib import Path; from dlrun.sweeps.leaderboard import Leaderboard\n"
        "assert 'scipy' not in sys.modules and 'numpy' not in sys.modules\n"
        f"board = Leaderboard.read(Path({str(tmp_path)!r})); board.print(); board.write_csv()\n"
        "assert 'torch' not in sys.modules, 'torch'; assert board.rows[0].mean == 1.0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
