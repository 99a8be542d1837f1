"""A search with a launcher that calls a function instead of training: trials, pruning, repeats, going on, failures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from dlrun.registry import ConfigError
from dlrun.sweeps.jobs import Job, Outcome

optuna = pytest.importorskip("optuna")

from dlrun.sweeps.search.batches import run_in_batches  # noqa: E402
from dlrun.sweeps.search.objective import Objective, read_objective, values_of  # noqa: E402
from dlrun.sweeps.search.settings import Settings, check  # noqa: E402
from dlrun.sweeps.search.source import Search  # noqa: E402
from dlrun.sweeps.search.study import open_study  # noqa: E402
from dlrun.sweeps.search.summary import edges, finish  # noqa: E402
from dlrun.sweeps.search.words import read_space  # noqa: E402

EPOCHS = 4
NUMBERS = ("x=interval(-1,1)", "y=interval(-1,1)")
Value = Callable[[Mapping[str, str], int], float]


def searched(folder: Path, *words: str, objective: Any = None, clock: Any = None, **given: Any) -> Search:
    """A search in `folder`, which goes on with what is there."""
    settings = check({**vars(Settings()), **given})
    space = read_space(OverridesParser.create().parse_overrides(list(words)))
    target = read_objective(objective, settings.direction, "val/loss")
    folder.mkdir(exist_ok=True)

    def make_job(number: int, overrides: list[str]) -> Job:
        (folder / str(number)).mkdir(exist_ok=True)
        return Job(number, overrides, {"trainer": {"epochs": EPOCHS}}, folder / str(number), str(number))

    study = open_study(settings, space, target, folder)
    said: list[str] = []
    search = Search(settings, space, target, study, make_job, epochs=EPOCHS, say=said.append,
                    **({"clock": clock} if clock else {}))  # fmt: skip
    search.said = said  # type: ignore[attr-defined]
    return search


def bowl(settings: Mapping[str, str], epoch: int) -> float:
    """A loss with its minimum at x = 0.3, y = -0.2, which falls with the epochs."""
    return (float(settings["x"]) - 0.3) ** 2 + (float(settings["y"]) + 0.2) ** 2 + 1 / epoch


def drive(search: Search, value: Value, workers: int = 1, stop_after: int | None = None) -> list[Job]:
    """Runs the jobs, `workers` at a time, one epoch of each in turn. `stop_after`: epochs in all, after which everything is
    dropped as by a kill. Returns the jobs in the order in which they were begun."""
    begun: list[Job] = []
    running: list[list[Any]] = []
    epochs = 0
    while True:
        while len(running) < workers and (job := search.next()):
            begun.append(job)
            running.append([job, 0])
        if not running:
            return begun
        for run in list(running):
            job, run[1] = run[0], run[1] + 1
            loss = value(dict(word.split("=", 1) for word in job.overrides), run[1])
            epochs += 1
            with open(job.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"epoch": run[1], "step": run[1], "split": "val", "loss": loss}) + "\n")
            prune = search.reports and search.reported(job, run[1], {"val/loss": loss, "train/loss": 2 * loss})
            if epochs == stop_after:
                return begun
            if math.isnan(loss):
                search.ended(job, Outcome("diverged", None, "the loss is not finite", run[1]))
            elif prune:
                search.ended(job, Outcome("pruned", None, f"pruned after epoch {run[1]}", run[1]))
            elif run[1] == EPOCHS:
                search.ended(job, Outcome("finished", loss, "", run[1]))
            else:
                continue
            running.remove(run)


def states(search: Search) -> list[str]:
    return [trial.state.name for trial in search.study.trials]


def epochs_of(search: Search) -> int:
    return sum(trial.last_step or 0 for trial in search.study.trials)


# ---- samplers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsgaii", "cmaes"])
@pytest.mark.curriculum("P09")
def test_each_sampler_searches(tmp_path: Path, sampler: str) -> None:
    """30 trials with three workers stay in the range, and the best is near the minimum of 1/4 at (0.3, -0.2)."""
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    search = searched(tmp_path, *NUMBERS, sampler=sampler, trials=30)
    jobs = drive(search, bowl, workers=3)
    assert [job.number for job in jobs] == list(range(30))
    assert states(search) == ["COMPLETE"] * 30
    assert all(-1 <= float(word.split("=")[1]) <= 1 for job in jobs for word in job.overrides)
    assert search.study.best_value < 0.25 + 0.1


def test_tpe_comes_closer_than_chance(tmp_path: Path) -> None:
    """Mean distance of the last ten of 40 trials from the minimum, over two seeds: less than half of that of random ones."""

    def distance(sampler: str, seed: int) -> float:
        search = searched(tmp_path / f"{sampler}{seed}", *NUMBERS, sampler=sampler, trials=40, seed=seed)
        drive(search, bowl)
        return sum(trial.value - 0.25 for trial in search.study.trials[-10:]) / 10

    tpe, random = (sum(distance(sampler, seed) for seed in range(2)) for sampler in ("tpe", "random"))
    assert tpe < random / 2


def test_a_grid_is_every_combination_once(tmp_path: Path) -> None:
    """2 x 3 combinations in the order of the words, the last one fastest; then it is done."""
    search = searched(tmp_path, "model=mlp", "x=0.1,0.2", "y=range(0,3)", sampler="grid")
    jobs = drive(search, bowl, workers=2)
    assert [job.overrides for job in jobs] == [
        ["model=mlp", f"x={x}", f"y={y}"] for x in ("0.1", "0.2") for y in range(3)
    ]  # fmt: skip
    assert search.total == 6
    assert drive(searched(tmp_path, "model=mlp", "x=0.1,0.2", "y=range(0,3)", sampler="grid"), bowl) == []


def test_several_objectives_give_the_best_of_each(tmp_path: Path) -> None:
    """NSGA-II with two objectives of which one falls as the other rises: each value of x is best for some weighing."""
    search = searched(tmp_path, "x=0.1,0.2,0.3", sampler="nsgaii", trials=12, objective=["val/loss", "val/accuracy"])
    assert search.reports  # else a launcher that stacks would ask for all jobs at once
    while job := search.next():
        x = float(job.overrides[0].split("=")[1])
        search.reported(job, 1, {"val/loss": x, "val/accuracy": x})
        (job.folder / "results.json").write_text(json.dumps({"best": {"epoch": 1}, "epochs": 1}))
        search.ended(job, Outcome("finished", x))
    assert search.study.directions == [optuna.study.StudyDirection.MINIMIZE, optuna.study.StudyDirection.MAXIMIZE]
    assert {trial.values[0] for trial in search.study.best_trials} == {0.1, 0.2, 0.3}
    finish(search.study, search.space, search.objective, tmp_path)
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert {(found["val/loss"], found["val/accuracy"]) for found in best} == {(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)}


# ---- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsgaii", "cmaes", "grid"])
@pytest.mark.parametrize("pruner", ["none", "median", "hyperband"])
def test_a_search_that_was_killed_goes_on_as_if_it_were_not(tmp_path: Path, sampler: str, pruner: str) -> None:
    """Killed in the middle of a trial, and again: the run in hand comes back under its number, no other is repeated, and with
    one worker all trials are those of a search that was never stopped."""
    if sampler == "nsgaii" and pruner != "none":
        pytest.skip("not together")
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    words = ("x=range(-1,1,0.25)", "y=range(-1,1,0.25)")
    given = {"sampler": sampler, "pruner": pruner, "trials": 16, "startup_trials": 4}
    whole = searched(tmp_path / "whole", *words, **given)
    drive(whole, bowl)
    first = drive(searched(tmp_path / "parts", *words, **given), bowl, stop_after=11)
    second = searched(tmp_path / "parts", *words, **given)
    assert second.total == 16 - len(first) + 1
    jobs = drive(second, bowl, stop_after=15)
    assert (jobs[0].number, jobs[0].overrides) == (first[-1].number, first[-1].overrides)
    last = searched(tmp_path / "parts", *words, **given)
    drive(last, bowl)
    assert [trial.params for trial in last.study.trials] == [trial.params for trial in whole.study.trials]
    assert [trial.value for trial in last.study.trials] == [trial.value for trial in whole.study.trials]
    assert states(last) == states(whole)
    assert searched(tmp_path / "parts", *words, **given).next() is None


def test_more_trials_add_to_those_that_exist(tmp_path: Path) -> None:
    """trials is the number in all."""
    drive(searched(tmp_path, *NUMBERS, trials=5), bowl)
    more = searched(tmp_path, *NUMBERS, trials=8)
    assert more.total == 3
    assert [job.number for job in drive(more, bowl)] == [5, 6, 7]


def test_a_search_in_sqlite_goes_on(tmp_path: Path) -> None:
    """Under the name of its folder; the search of another folder is refused."""
    pytest.importorskip("sqlalchemy")
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").mkdir()
    drive(searched(tmp_path / "a", *NUMBERS, trials=3, storage=storage), bowl)
    assert len(drive(searched(tmp_path / "a", *NUMBERS, trials=5, storage=storage), bowl)) == 2
    assert not (tmp_path / "a" / "study.log").exists()
    with pytest.raises(ConfigError, match="belongs to the sweep in"):
        searched(tmp_path / "a" / "b", *NUMBERS, trials=3, storage=storage, study="a")


def test_a_line_that_was_cut_short_costs_nothing(tmp_path: Path) -> None:
    """A kill in the middle of a write, with the lock in hand: the half line goes, the search goes on at once."""
    drive(searched(tmp_path, *NUMBERS, trials=3), bowl)
    with open(tmp_path / "study.log", "a") as file:
        file.write('{"op_code": 4, "work')
    (tmp_path / "study.log.lock").symlink_to(tmp_path / "study.log")
    search = searched(tmp_path, *NUMBERS, trials=5)
    assert len(drive(search, bowl)) == 2
    assert states(search) == ["COMPLETE"] * 5


@pytest.mark.parametrize("content", ["nothing\n", "{}\n", "[1]\n", "\xff\n", '{"op_code": 99, "worker_id": "a"}\n'])
def test_a_damaged_study_is_named(tmp_path: Path, content: str) -> None:
    """One line with the file, whatever stands in it."""
    drive(searched(tmp_path, *NUMBERS, trials=2), bowl)
    file = tmp_path / "study.log"
    file.write_bytes(file.read_bytes() + content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"study\.log is damaged") as error:
        searched(tmp_path, *NUMBERS, trials=5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "given", "part"),
    [
        (("x=interval(-1,2)", "y=interval(-1,1)"), {}, r"another space \(x: -1 to 1 instead of -1 to 2\)"),
        (("x=interval(-1,1)",), {}, r"another space \(y: -1 to 1 instead of not given\)"),
        ((*NUMBERS, "z=3"), {}, r"another space \(z: not given instead of z=3\)"),
        ((*NUMBERS, "seed=0,1"), {}, "another space"),
        (NUMBERS, {"objective": "val/accuracy"}, r"holds a search for \['val/loss'\]"),
        (NUMBERS, {"direction": "max"}, "holds a search for"),
    ],
)
def test_the_study_of_another_search_is_refused(tmp_path: Path, words: Any, given: Any, part: str) -> None:
    """The line names the first difference."""
    drive(searched(tmp_path, *NUMBERS, trials=2), bowl)
    with pytest.raises(ConfigError, match=part):
        searched(tmp_path, *words, trials=5, **given)


# ---- pruning ----------------------------------------------------------------------------------------------------------


def test_the_median_prunes_by_hand(tmp_path: Path) -> None:
    """After two finished trials with losses 1 and 3 at every epoch, a third with 2.5 is above the median of 2 and ends
    after its first epoch, one with 1.5 goes on."""
    losses = {"a": 1.0, "b": 3.0, "c": 2.5, "d": 1.5}
    search = searched(tmp_path, "k=a,b,c,d", sampler="grid", pruner="median", startup_trials=2)
    drive(search, lambda settings, epoch: losses[settings["k"]])
    assert states(search) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert [trial.last_step for trial in search.study.trials] == [4, 4, 1, 4]
    assert search.study.trials[2].value == 2.5


@pytest.mark.parametrize("pruner", ["median", "halving", "hyperband"])
def test_pruning_saves_epochs(tmp_path: Path, pruner: str) -> None:
    """Of 30 trials with four workers the best survives; fewer epochs than 120 are trained."""
    search = searched(tmp_path, *NUMBERS, trials=30, pruner=pruner, sampler="random")
    drive(search, bowl, workers=4)
    assert {"COMPLETE", "PRUNED"} == set(states(search))
    assert epochs_of(search) < 0.8 * 30 * EPOCHS


def test_nothing_is_pruned_after_the_last_epoch(tmp_path: Path) -> None:
    """A run that has come to its end is worth its value: the worse second one is better until the last epoch."""
    search = searched(tmp_path, "k=1,2", sampler="grid", pruner="median", startup_trials=1)
    drive(search, lambda settings, epoch: 1.0 if settings["k"] == "1" else (0.5 if epoch < EPOCHS else 9.0))
    assert states(search) == ["COMPLETE", "COMPLETE"]


def test_a_larger_metric_is_better_where_it_is(tmp_path: Path) -> None:
    """With direction=max the trial of the lower value is pruned."""
    search = searched(tmp_path, "k=1,2,3", sampler="grid", pruner="median", startup_trials=1, direction="max")
    drive(search, lambda settings, epoch: {"1": 2.0, "2": 1.0, "3": 3.0}[settings["k"]])
    assert states(search) == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert search.study.best_value == 3.0


# ---- repeats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_objective_is_the_mean_over_repeats(tmp_path: Path, workers: int) -> None:
    """Three seeds with losses 1, 2 and 6 (plus 10 for the second trial) have mean 3 (13); trial 1 has the jobs 3, 4, 5."""
    search = searched(tmp_path, "k=0,10", "seed=range(3)", sampler="grid")
    assert search.total == 6
    jobs = drive(search, lambda s, epoch: float(s["k"]) + {"0": 1, "1": 2, "2": 6}[s["seed"]], workers=workers)
    assert sorted(job.number for job in jobs) == list(range(6))
    assert jobs[4].overrides == ["k=10", "seed=1"]
    assert [trial.value for trial in search.study.trials] == [3.0, 13.0]
    assert [trial.user_attrs["runs"] for trial in search.study.trials] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("workers", [1, 2])
def test_pruning_is_by_the_mean_of_the_repeats(tmp_path: Path, workers: int) -> None:
    """The first trial has mean 2. Seed 0 of the second one is worse alone (3), but together with seed 1 (0) it is better:
    with two workers, which both come to the epoch before it is judged, it goes on; with one it is pruned by what is known."""
    losses = {("a", "0"): 2.0, ("a", "1"): 2.0, ("b", "0"): 3.0, ("b", "1"): 0.0, ("c", "0"): 1.0, ("c", "1"): 7.0}
    search = searched(tmp_path, "k=a,b,c", "seed=0,1", sampler="grid", pruner="median", startup_trials=1)
    jobs = drive(search, lambda s, epoch: losses[s["k"], s["seed"]], workers=workers)
    expected = {1: ["COMPLETE", "PRUNED", "PRUNED"], 2: ["COMPLETE", "COMPLETE", "PRUNED"]}[workers]
    assert states(search) == expected
    assert [job.overrides for job in jobs][2:4] == [
        ["k=b", "seed=0"],
        ["k=c", "seed=0"] if workers == 1 else ["k=b", "seed=1"],
    ]
    assert search.study.trials[2].intermediate_values[1] == 4.0


def test_a_killed_trial_of_several_runs_goes_on(tmp_path: Path) -> None:
    """Of three seeds one had finished, one was under way: all three come back under their numbers, and the mean is theirs."""
    words = ("k=0,10", "seed=range(3)")
    drive(searched(tmp_path, *words, sampler="grid"), lambda s, e: float(s["seed"]), stop_after=6)
    search = searched(tmp_path, *words, sampler="grid")
    jobs = drive(search, lambda s, e: float(s["seed"]))
    assert [job.number for job in jobs] == [0, 1, 2, 3, 4, 5]
    assert [trial.value for trial in search.study.trials] == [1.0, 1.0]


# ---- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_failed_run_fails_its_trial_and_no_other(tmp_path: Path) -> None:
    """The message is told and kept; runs of the trial that have not begun never do; the rest goes on."""
    search = searched(tmp_path, "k=0,1,2", "seed=0,1", sampler="grid")
    numbers = []
    while job := search.next():
        numbers.append(job.number)
        failed = job.overrides == ["k=1", "seed=0"]
        search.ended(job, Outcome("failed", None, "no such file") if failed else Outcome("finished", 1.0))
    assert numbers == [0, 1, 2, 4, 5]
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert search.said == ["dlrun: trial 1 failed: no such file"]
    assert search.study.trials[1].user_attrs["failure"] == {"status": "failed", "message": "no such file"}


def test_a_search_in_which_everything_fails_stops(tmp_path: Path) -> None:
    """After ten failures in a row; nine, a success and nine do not stop it."""
    search = searched(tmp_path, *NUMBERS, trials=50)
    count = 0
    while job := search.next():
        count += 1
        search.ended(job, Outcome("finished", 1.0) if count == 10 else Outcome("killed", None, "out of memory"))
    assert count == 20
    assert "the search stops: 10 trials in a row failed" in search.said[-1]
    assert "the first of them: out of memory" in search.said[-1]


def test_what_diverges_is_avoided(tmp_path: Path) -> None:
    """Runs with x > 0 diverge. TPE, told that they are bad rather than nothing, soon proposes few of them."""
    search = searched(tmp_path, "x=interval(-1,1)", trials=40)
    jobs = drive(search, lambda s, epoch: math.nan if float(s["x"]) > 0 else 1 + float(s["x"]))
    late = [float(job.overrides[0].split("=")[1]) for job in jobs[20:]]
    assert sum(x > 0 for x in late) <= 5
    assert search.study.trials[0].state.name in ("COMPLETE", "PRUNED")


def test_an_interrupted_run_is_left_to_the_next_command(tmp_path: Path) -> None:
    """Its trial stays under way, and the same command begins with it."""
    search = searched(tmp_path, *NUMBERS, trials=3)
    job = search.next()
    search.ended(job, Outcome("interrupted"))
    assert states(search) == ["RUNNING"]
    again = searched(tmp_path, *NUMBERS, trials=3).next()
    assert (again.number, again.overrides) == (job.number, job.overrides)


def test_no_trial_is_begun_after_the_timeout(tmp_path: Path) -> None:
    """The one that is running then may finish."""
    now = [0.0]
    search = searched(tmp_path, *NUMBERS, trials=9, timeout=10, clock=lambda: now[0])
    first = search.next()
    now[0] = 10.0
    assert search.next() is None
    search.ended(first, Outcome("finished", 1.0))
    assert search.next() is None
    assert states(search) == ["COMPLETE"]


def test_an_objective_that_no_run_reports_ends_the_search(tmp_path: Path) -> None:
    """At the first report, with the metrics that there are and the nearest; also at the first run that ends unheard."""
    search = searched(tmp_path / "a", *NUMBERS, objective="val/rmse")
    with pytest.raises(ConfigError, match=r"'val/rmse' is not reported; reported: train/loss, val/loss, val/mse"):
        search.reported(search.next(), 1, {"val/loss": 1.0, "train/loss": 1.0, "val/mse": 1.0})
    search = searched(tmp_path / "b", *NUMBERS, objective="val/accuracy")
    job = search.next()
    (job.folder / "results.json").write_text(
        json.dumps({"best": {"epoch": 2}, "epochs": 2, "metrics": {"val": {"loss": 1.0}, "test": {"accuracy": 1.0}}})
    )
    with pytest.raises(ConfigError, match=r"'val/accuracy' is not reported; reported: val/loss"):
        search.ended(job, Outcome("finished", 1.0))


def test_another_metric_is_that_of_the_best_checkpoint(tmp_path: Path) -> None:
    """The monitor was best in epoch 2: the accuracy there counts, from metrics.jsonl or from what was reported."""
    (tmp_path / "results.json").write_text(json.dumps({"best": {"epoch": 2, "value": 0.5}, "epochs": 3}))
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"epoch": e, "step": e, "split": "val", "loss": 1.0, "accuracy": a}) + "\n"
                for e, a in ((1, 0.1), (2, 0.8), (3, 0.9))) + '{"epoch": 3, "st'
    )  # fmt: skip
    accuracy = Objective(("val/accuracy",), ("max",), "val/loss")
    assert values_of(accuracy, tmp_path, 0.5, {}) == [0.8]
    assert values_of(accuracy, tmp_path, 0.5, {2: {"val/accuracy": 0.7}}) == [0.7]
    assert values_of(Objective(("val/loss",), ("min",), "val/loss"), tmp_path, 0.5, {}) == [0.5]
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(LookupError, match="metrics_file"):
        values_of(accuracy, tmp_path, 0.5, {})


# ---- other launchers --------------------------------------------------------------------------------------------------


class Returned:
    def __init__(self, value: Any) -> None:
        self._value, self.working_dir = value, None

    @property
    def return_value(self) -> Any:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


def test_batches_have_consecutive_numbers(tmp_path: Path) -> None:
    """A launcher counts on from the first number it is given, so a trial to be run again makes a batch of its own."""
    search = searched(tmp_path, *NUMBERS, trials=6)
    jobs = [search.next() for _ in range(3)]
    search.ended(jobs[1], Outcome("finished", 1.0))  # 0 and 2 are left under way
    calls: list[tuple[int, int]] = []

    def launch(words: list[list[str]], first: int) -> list[Returned]:
        calls.append((first, len(words)))
        return [Returned(float(first + n)) for n in range(len(words))]

    again = searched(tmp_path, *NUMBERS, trials=6)
    run_in_batches(again, launch, 4)
    assert calls == [(0, 1), (2, 3), (5, 1)]
    assert [trial.value for trial in again.study.trials] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_batch_tells_what_its_runs_wrote(tmp_path: Path) -> None:
    """No value: the status and message of results.json; an error: its text."""
    search = searched(tmp_path, "k=0,1,2", sampler="grid")

    def launch(words: list[list[str]], first: int) -> list[Returned]:
        (tmp_path / "1" / "results.json").write_text(json.dumps({"status": "diverged", "message": "at step 3"}))
        return [Returned(0.5), Returned(None), Returned(RuntimeError("no\ndisk"))]

    run_in_batches(search, launch, 8)
    assert states(search) == ["COMPLETE", "PRUNED", "FAIL"]
    assert search.said == ["dlrun: trial 1 diverged: at step 3", "dlrun: trial 2 failed: no disk"]


# ---- summary ----------------------------------------------------------------------------------------------------------


def test_the_summary_names_the_best_and_its_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Best value, words, counts, a warning for x at the upper end, the command for other seeds, best.yaml and trials.csv."""
    search = searched(tmp_path, "model=mlp", "x=range(1,5)", "o=adam,sgd", "seed=0,1", sampler="grid", pruner="median",
                      startup_trials=2)  # fmt: skip
    drive(search, lambda s, e: 1 / float(s["x"]) + (s["o"] == "sgd"), workers=2)
    finish(search.study, search.space, search.objective, tmp_path)
    out = capsys.readouterr().out
    assert "8 trials: 5 finished, 3 pruned" in out
    assert "best val/loss 0.25 (trial 6, run 12 13): x=4 o=adam" in out
    assert "WARNING: x=4 is at the upper end of its range (1 to 4)" in out
    assert "-m model=mlp x=4 o=adam seed=2 seeds=5" in out
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert (best["trial"], best["val/loss"], best["overrides"]) == (6, 0.25, ["model=mlp", "x=4", "o=adam"])
    with open(tmp_path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["x"] for row in rows] == ["1", "1", "2", "2", "3", "3", "4", "4"]
    assert rows[6]["val/loss"] == "0.25"
    assert (rows[6]["epochs"], rows[3]["epochs"]) == ("8", "3")  # of both seeds; the second to report ends both
    assert [row["state"] for row in rows].count("pruned") == 3


def test_a_search_without_a_finished_trial_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the first failure; there is no best.yaml."""
    search = searched(tmp_path, *NUMBERS, trials=2)
    while job := search.next():
        search.ended(job, Outcome("failed", None, f"broken {job.number}"))
    finish(search.study, search.space, search.objective, tmp_path)
    assert "0 finished, 2 failed" in (out := capsys.readouterr().out)
    assert "no trial finished; the first failure: broken 0" in out
    assert not (tmp_path / "best.yaml").exists()


def test_the_middle_of_a_range_is_no_edge(tmp_path: Path) -> None:
    """A best value inside every range gives no warning."""
    search = searched(tmp_path, *NUMBERS, trials=15)
    drive(search, bowl)
    assert edges(search.study.best_trial, search.space) == []
