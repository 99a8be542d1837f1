"""metrics.jsonl: one line per evaluation, none twice."""

from __future__ import annotations

import json
import math

import pytest

from dlrun.callbacks.metrics_file import MetricsFile


def lines(run):
    return [
        json.loads(line, parse_constant=pytest.fail) for line in (run.folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_every_evaluation_is_a_line(new_run, fit):
    """Training and validation of each epoch, then the test at the best checkpoint, with the very values of the loop."""
    run = new_run()
    fit(run, [MetricsFile()])
    found = lines(run)
    assert [(x["epoch"], x["step"], x["split"]) for x in found] == [
        (1, 3, "train"), (1, 3, "val"), (2, 6, "train"), (2, 6, "val"), (2, 6, "test"),
    ]  # fmt: skip
    assert list(found[0])[:4] == ["epoch", "step", "split", "loss"]
    assert found[3] == {"epoch": 2, "step": 6, "split": "val", **run.history["val"]}


def test_the_test_line_is_that_of_the_best_checkpoint(new_run):
    """The test is measured on the best weights, so its line bears their epoch."""
    run = new_run()
    callback = MetricsFile()
    callback.on_fit_start(run)
    run.epoch, run.step, run.best = 2, 6, {"epoch": 1, "step": 3}
    callback.on_evaluation(run, "test", {"loss": 1.0})
    assert lines(run) == [{"epoch": 1, "step": 3, "split": "test", "loss": 1.0}]


def test_values_that_are_not_finite_are_null(new_run):
    """NaN is not JSON."""
    run = new_run()
    callback = MetricsFile()
    callback.on_fit_start(run)
    callback.on_evaluation(run, "train", {"loss": math.nan, "rmse": math.inf, "r2": 0.5})
    assert lines(run) == [{"epoch": 0, "step": 0, "split": "train", "loss": None, "rmse": None, "r2": 0.5}]


@pytest.mark.parametrize("save_at", [3, 4])
def test_a_resumed_run_has_no_line_twice_and_none_missing(save_at, new_run, fit, resumed, tmp_path):
    """A run killed after its checkpoint and resumed leaves the file of a run that was never killed."""
    whole = new_run(epochs=3)
    fit(whole, [MetricsFile()])
    expected = lines(whole)

    killed = new_run(epochs=3)
    (state,) = fit(killed, [MetricsFile()], until=8, save_at=save_at)
    assert len(lines(killed)) == 4
    again = resumed(killed, save_at)
    callback = MetricsFile()
    callback.load_state_dict(state)
    fit(again, [callback])
    assert [(x["epoch"], x["split"]) for x in lines(again)] == [(x["epoch"], x["split"]) for x in expected]
    assert again.step == whole.step


def test_a_run_that_starts_again_without_checkpoint_starts_the_file_again(new_run, fit):
    """Killed before the first checkpoint: nothing of the first start stays."""
    run = new_run()
    fit(run, [MetricsFile()], until=4)
    assert len(lines(run)) == 2
    fit(new_run(), [MetricsFile()])
    assert len(lines(run)) == 5
