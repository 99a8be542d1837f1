"""`hydra/sweeper=optuna` from the command line, with real runs; what a run does that reports to its sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("optuna")

QUICK = (
    "model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.epochs=2", "data.limit_train=64",
    "callbacks=none", "hydra/sweeper=optuna", "hydra.sweep.dir=sweep", "-m",
)  # fmt: skip
BASIC = "hydra/launcher=basic"
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_a_search_with_hydras_basic_launcher(cli, tmp_path: Path) -> None:
    """Four trials are runs like any others; the best one is written down and printed; the same command has nothing to do."""
    command = (*QUICK, BASIC, "hydra.sweeper.trials=4", LR, "optimizer=adam,sgd")
    done = cli(*command)
    assert done.rc == 0, done.stderr
    found = [results(tmp_path / "sweep" / str(number)) for number in range(4)]
    assert [result["status"] for result in found] == ["finished"] * 4
    best = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert best["val/loss"] == min(result["best"]["value"] for result in found)
    assert "4 trials: 4 finished" in done.stdout
    assert "again with other seeds" in done.stdout
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").glob("*/results.json")}
    again = cli(*command)
    assert again.rc == 0, again.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "sweep").glob("*/results.json")}


def test_pruning_is_off_where_nobody_listens(cli, tmp_path: Path) -> None:
    """One line says so; the runs finish."""
    done = cli(*QUICK, BASIC, "hydra.sweeper.trials=2", "hydra.sweeper.pruner=median", LR)
    assert (done.rc, "sweeper.pruner: off" in done.stderr) == (0, True)


@pytest.mark.xdist_group("launcher")
def test_dlruns_own_launcher_prunes(cli, tmp_path: Path) -> None:
    """After two finished trials a learning rate at which nothing is learnt is worse than their median and ends after its first
    epoch, its test set unread; that is no failure, and the same command repeats nothing."""
    command = (*QUICK[:4], "trainer.epochs=3", "callbacks=[metrics_file]", *QUICK[7:], "launcher.workers=1",
               "sweeper.sampler=grid", "sweeper.pruner=median", "sweeper.startup_trials=2",
               "optimizer.lr=0.01,0.003,1e-7,0.02")  # fmt: skip
    done = cli(*command)
    assert done.rc == 0, done.stderr
    found = [results(tmp_path / "sweep" / str(number)) for number in range(4)]
    assert [(result["status"], result["epochs"]) for result in found] == [
        ("finished", 3), ("finished", 3), ("pruned", 1), ("finished", 3)
    ]  # fmt: skip
    assert found[2]["test"] == "not read"
    assert "4 trials: 3 finished, 1 pruned" in done.stdout
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").glob("*/*.json*")}
    assert cli(*command).rc == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "sweep").glob("*/*.json*")}


def test_params_of_a_configuration_file(cli, tmp_path: Path) -> None:
    """hydra.sweeper.params is the space too; the command line beats it."""
    done = cli(*QUICK, BASIC, "hydra.sweeper.sampler=grid", "+hydra.sweeper.params.optimizer='choice(adam,sgd)'",
               "+hydra.sweeper.params.seed=3", "seed=range(2)")  # fmt: skip
    assert done.rc == 0, done.stderr
    words = [yaml.safe_load((tmp_path / f"sweep/{n}/.hydra/overrides.yaml").read_text()) for n in range(4)]
    assert [[w for w in found if w.startswith(("optimizer=", "seed="))] for found in words] == [
        [f"optimizer={name}", f"seed={seed}"] for name in ("adam", "sgd") for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("hydra.sweeper.sampler=tpee", LR), "sweeper.sampler: got 'tpee'"),
        (("hydra.sweeper.trials=0", LR), "sweeper.trials: got 0"),
        pytest.param(
            ("hydra.sweeper.objective=test/loss", LR), "the test set is sealed", marks=pytest.mark.curriculum("D02")
        ),
        (("optimizer.lr=interval(1,0.1)",), "the lower bound is above the upper one"),
        (("optimizer.lr=0.1",), "no setting is searched"),
        (("hydra.sweeper.sampler=grid", LR), "grid cannot sample optimizer.lr"),
        (("optimizer.lrr=interval(0,1)",), "optimizer.lrr"),
        (("optimizer=adam,sdg", LR), "sdg"),
        (("hydra.sweeper.trialz=3", LR), "trialz"),
        (("model=mlp,lenet", LR), "model.hidden: model=lenet has no such setting (model=mlp has)"),
        (("hydra.sweeper.trials=5001", LR), "5,001 jobs; if that is meant, add allow_large=true"),
        (("hydra.sweeper.sampler=grid", "data.batch_size=range(1,1000000000)"), "999,999,999 jobs"),
        (("trainer.monitor=val/loss,val/accuracy",), "sweeper.objective: say which metric"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(cli, tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    """One line, exit code 1, nothing left behind."""
    done = cli(*QUICK, BASIC, *words)
    assert (done.rc, part in done.stderr) == (1, True), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("results.json"))


def test_without_optuna_it_says_how_to_install_it(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; grids do not need it."""
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    done = cli(*QUICK, BASIC, LR)
    assert (done.rc, "pip install 'dlrun[search]'" in done.stderr) == (1, True), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_failed_trial_does_not_end_the_search(cli, tmp_path: Path) -> None:
    """A negative learning rate fails, the others finish; exit code 4."""
    done = cli(*QUICK, BASIC, "hydra.sweeper.sampler=grid", "optimizer.lr=choice(0.01,-1,0.1)")
    assert done.rc == 4, done.stderr
    assert [results(tmp_path / "sweep" / str(n))["status"] for n in range(3)] == ["finished", "failed", "finished"]
    assert "trial 1 failed" in done.stderr
    assert "2 finished, 1 failed" in done.stdout


# ---- the reporter -----------------------------------------------------------------------------------------------------


def test_a_run_reports_each_validation_and_may_be_pruned(composed, tmp_path: Path) -> None:
    """Told of epochs 1 and 2 with the metrics of both splits; answered that it is enough, the run ends as pruned with a
    checkpoint, its test set unread; gone on with, it ends like one that was never pruned."""
    from dlrun.actions.train import train
    from dlrun.callbacks._reporting import Reporter

    def run(folder: str, tell: Any, **changed: Any) -> float | None:
        config = composed("model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "data.limit_train=64",
                          "trainer.epochs=4", "callbacks=[metrics_file]")  # fmt: skip
        (tmp_path / folder).mkdir(exist_ok=True)
        return train({**config, **changed}, tmp_path / folder, [Reporter(tell)] if tell else [])

    told: list[tuple[int, dict[str, float]]] = []

    def tell(epoch: int, metrics: dict[str, float]) -> bool:
        told.append((epoch, metrics))
        return epoch == 2

    assert run("whole", None) is not None
    run("pruned", tell)
    assert [epoch for epoch, _ in told] == [1, 2]
    assert {"val/loss", "val/accuracy", "train/loss"} <= set(told[0][1])
    found = results(tmp_path / "pruned")
    assert (found["status"], found["epochs"], found["test"]) == ("pruned", 2, "not read")
    assert "test" not in found["metrics"]
    assert found["message"] == "pruned after epoch 2"
    run("pruned", None, resume=str(tmp_path / "pruned"))
    whole, gone_on = results(tmp_path / "whole"), results(tmp_path / "pruned")
    assert (gone_on["status"], gone_on["metrics"], gone_on["best"]) == ("finished", whole["metrics"], whole["best"])
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "pruned")]
    assert lines[0] == lines[1]


def test_epochs_without_validation_are_not_reported(composed, tmp_path: Path) -> None:
    """With trainer.validate_every_epochs=2 of three epochs the second and the last."""
    from dlrun.actions.train import train
    from dlrun.callbacks._reporting import Reporter

    config = composed("model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "data.limit_train=64",
                      "trainer.epochs=3", "trainer.validate_every_epochs=2", "callbacks=none")  # fmt: skip
    told: list[int] = []
    train(config, tmp_path, [Reporter(lambda epoch, metrics: told.append(epoch) or False)])
    assert told == [2, 3]
