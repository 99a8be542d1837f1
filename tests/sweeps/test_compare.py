"""action=compare on folders made by hand: rows, pairs, effects, files, and bad input in one line."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dlrun.actions.compare import Compare
from dlrun.registry import ConfigError
from dlrun.sweeps import report_plots
from dlrun.sweeps.comparison import Comparison
from dlrun.sweeps.curves import curve_of
from dlrun.sweeps.effects import effects_of
from dlrun.sweeps.finding import runs_of
from dlrun.sweeps.leaderboard import Leaderboard
from dlrun.sweeps.report_events import run_name

GOOD, MIDDLE, BAD = [0.10, 0.12, 0.11, 0.13, 0.10], [0.11, 0.12, 0.13, 0.12, 0.11], [0.30, 0.33, 0.31, 0.34, 0.30]
SPLIT = {"train": "t", "val": "v", "test": "e"}


def make_run(
    folder: Path, words: dict, value: float, *, sweep: bool = True, split: dict = SPLIT, data: str = "digits"
) -> Path:
    """A finished run of two epochs whose validation loss ends at `value`."""
    (folder / ".hydra").mkdir(parents=True)
    if sweep:
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"{k}={v}" for k, v in words.items()]))
    config: dict = {
        "trainer": {"name": "default", "monitor": "val/loss"},
        "data": {"name": data},
        "model": {"name": "mlp"},
    }
    config |= {"seed": words.get("seed", 0), "optimizer": {"name": "adam", "lr": words.get("optimizer.lr", 0.1)}}
    if "model" in words:
        config["model"] = {"name": words["model"], "hidden": [len(words["model"])]}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"split_hashes": split}))
    lines = [{"epoch": e, "step": 7 * e, "split": s, "loss": value + 2 - e, "accuracy": 1 - value}
             for e in (1, 2) for s in ("val", "train")]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"val": {"loss": value, "accuracy": 1 - value}, "test": {"loss": value + 0.5, "accuracy": value}}
    best = {"epoch": 2, "step": 14, "monitor": "val/loss", "value": value}
    (folder / "results.json").write_text(
        json.dumps({"status": "finished", "metrics": metrics, "best": best, "epochs": 2})
    )
    return folder


def make_sweep(folder: Path, rows: dict[str, list[float]], key: str = "optimizer.lr") -> Path:
    """One run for each value of a row; their places are the seeds."""
    runs = [(name, seed, value) for name, values in rows.items() for seed, value in enumerate(values)]
    for number, (name, seed, value) in enumerate(runs):
        make_run(folder / str(number), {key: name, "seed": seed}, value)
    return folder


@pytest.fixture(autouse=True)
def _quick_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn in the tests that are about them."""
    if not request.node.name.startswith(("test_the_page", "test_pictures")):
        monkeypatch.setattr(report_plots, "picture", lambda draw, **size: b"picture")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three learning rates x five seeds."""
    monkeypatch.chdir(tmp_path)
    return make_sweep(Path("sweep"), {"0.001": MIDDLE, "0.01": GOOD, "1.0": BAD})


def compare(sweep: Path | None, **settings) -> list[dict]:
    """The lines of compare.csv."""
    Compare(**settings)({"sweep": str(sweep) if sweep else None}, Path())
    found = Path(settings.get("output") or f"{sweep}/compare") / "compare.csv"
    with open(found, newline="") as file:
        return list(csv.DictReader(file))


def refused(sweep: Path | str | None, **settings) -> str:
    with pytest.raises(ConfigError) as caught:
        Compare(**settings)({"sweep": str(sweep) if sweep else None}, Path())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_are_compared_with_the_best_on_common_seeds(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences and p are SciPy's; the worst row is worse, the close one gets no verdict for better."""
    best, middle, worst = compare(sweep)
    assert [row["optimizer.lr"] for row in (best, middle, worst)] == ["0.01", "0.001", "1.0"]
    assert (best["verdict"], worst["verdict"], worst["test"], worst["pairs"]) == ("reference", "worse", "paired t", "5")
    expected = stats.ttest_rel(BAD, GOOD)
    assert float(worst["p"]) == pytest.approx(expected.pvalue, rel=1e-9)
    assert float(worst["difference"]) == pytest.approx(0.204)
    assert float(worst["difference_low"]) == pytest.approx(expected.confidence_interval(0.95).low, rel=1e-9)
    assert float(worst["p_holm"]) == pytest.approx(3 * expected.pvalue, rel=1e-9)  # three pairs of rows
    assert not middle["verdict"].startswith(("better", "worse"))
    assert (float(best["mean"]), best["n"], best["statuses"]) == (pytest.approx(0.112), "5", "5 finished")
    out = capsys.readouterr().out
    assert "best: optimizer.lr=0.01; of the other rows 1 worse, 1 without a difference shown" in out
    assert "compare.html" in out


def test_a_baseline_is_counted_for_itself(sweep: Path) -> None:
    """Two comparisons instead of three pairs; its words may be typed in another way, or be the number of a run."""
    rows = {row["optimizer.lr"]: row for row in compare(sweep, baseline="optimizer.lr=1")}
    assert (rows["1.0"]["verdict"], rows["0.01"]["verdict"]) == ("reference", "better")
    smallest = min(float(row["p"]) for row in rows.values() if row["p"])
    assert min(float(row["p_holm"]) for row in rows.values() if row["p"]) == pytest.approx(2 * smallest)
    by_number = compare(sweep, baseline=0)
    assert [row["optimizer.lr"] for row in by_number if row["verdict"] == "reference"] == ["0.001"]


def test_another_metric_is_that_of_the_best_epoch(sweep: Path) -> None:
    """Larger is better for an accuracy; the value is the one in metrics.jsonl at the step of the best checkpoint."""
    path = sweep / "0" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    best = {"epoch": 1, "step": 7, "monitor": "val/loss", "value": 0.05}
    results = json.loads((sweep / "0" / "results.json").read_text())
    (sweep / "0" / "results.json").write_text(json.dumps({**results, "best": best}))
    path.write_text("".join(json.dumps({**line, "accuracy": 0.5 + line["epoch"] / 100}) + "\n" for line in lines))
    rows = {row["optimizer.lr"]: row for row in compare(sweep, metric="val/accuracy")}
    assert float(rows["0.001"]["mean"]) == pytest.approx((0.51 + 0.88 + 0.87 + 0.88 + 0.89) / 5)
    assert (rows["1.0"]["verdict"], rows["1.0"]["metric"]) == ("worse", "val/accuracy")


def test_test_metrics_come_with_a_warning_and_choose_nothing(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Test accuracy is highest for the worst learning rate here: the reference is still the best on validation."""
    rows = compare(sweep, metric="test/accuracy")
    assert [row["optimizer.lr"] for row in rows] == ["0.01", "0.001", "1.0"]
    assert (rows[0]["verdict"], rows[2]["verdict"]) == ("reference", "better")
    assert "choosing by it spoils it" in capsys.readouterr().out
    compare(sweep)
    assert "spoils" not in capsys.readouterr().out


def test_the_page_stands_alone(sweep: Path) -> None:
    """Pictures are inside, nothing is fetched, and every caption says n."""
    compare(sweep)
    page = (sweep / "compare" / "compare.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # rows, curves, effect
    assert not re.search(r"(src|href)=(?!\"data:)|https?://|<script|@import", page)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert len(captions) == 3
    assert all(re.search(r"\bn\b", caption) for caption in captions)
    assert "log axis" in captions[-1]


def test_pictures_of_anything_are_drawn(tmp_path: Path) -> None:
    """Words, zeros, one seed, many rows, values far apart, and names that matplotlib could take for formulas."""
    grids = [{"$x_$": GOOD, "<i>": BAD}, {"0": [1.0], "1e-4": [1e-9], "1.0": [1e9]}, {str(n): [1.0] for n in range(30)}]
    for number, rows in enumerate(grids):
        board = Leaderboard.read(make_sweep(tmp_path / str(number), rows))
        (effect,) = effects_of(board)
        curves = [curve_of(row, "val/loss") for row in board.rows]
        drawn = [
            report_plots.draw_rows(board.rows, board.monitor, 0.95),
            report_plots.draw_effect(effect, board.monitor, 0.95),
            report_plots.draw_curves(curves[: report_plots.LINES], board.monitor),
        ]
        assert all(picture.startswith(b"\x89PNG") for picture in drawn)


def test_settings_are_text_not_markup(tmp_path: Path) -> None:
    """Whatever a run is called does nothing in a browser."""
    strange = make_sweep(tmp_path / "strange", {"<b>$x_$</b>": GOOD[:2], "<i>": BAD[:2]}, key="model")
    compare(strange)
    page = (strange / "compare" / "compare.html").read_text()
    assert "&lt;b&gt;$x_$&lt;/b&gt;" in page
    assert "<b>$" not in page


def test_mean_curves_are_runs_in_tensorboard(sweep: Path) -> None:
    """Mean and one standard deviation of five seeds at the steps of the runs, and no rest of an earlier comparison."""
    compare(sweep)
    compare(sweep, by="model")
    compare(sweep)
    folder = sweep / "compare" / "tensorboard"
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("*/*") if any(path.iterdir())) == sorted(
        f"optimizer.lr={lr}/{part}" for lr in ("0.001", "0.01", "1.0") for part in ("mean", "lower", "upper")
    )
    found = EventAccumulator(str(folder / "optimizer.lr=0.01" / "lower")).Reload()
    values = [(event.step, event.value) for event in found.Scalars("epoch/val/loss")]
    assert values == [(7, pytest.approx(1.112 - 0.0130384, abs=1e-5)), (14, pytest.approx(0.112 - 0.0130384, abs=1e-5))]


def test_the_effect_of_a_setting_is_its_mean_over_the_others(tmp_path: Path) -> None:
    """2 models x 2 learning rates x 2 seeds: each seed gives one value of a model, the mean over learning rates."""
    values = {
        ("mlp", 0.1): (1.0, 3.0),
        ("mlp", 0.2): (3.0, 5.0),
        ("lenet", 0.1): (0.0, 0.0),
        ("lenet", 0.2): (4.0, 2.0),
    }
    number = 0
    for (model, lr), row in values.items():
        for seed, value in enumerate(row):
            make_run(tmp_path / str(number), {"model": model, "optimizer.lr": lr, "seed": seed}, value)
            number += 1
    board = Leaderboard.read(tmp_path)
    model, lr = effects_of(board)
    assert (model.setting, lr.setting, model.balanced, model.numeric, lr.numeric) == (
        "model",
        "optimizer.lr",
        True,
        False,
        True,
    )
    assert {level.value: level.sample.values for level in model.levels} == {"lenet": (2.0, 1.0), "mlp": (2.0, 4.0)}
    assert [(level.value, level.sample.mean, level.runs) for level in lr.levels] == [("0.1", 1.0, 4), ("0.2", 3.5, 4)]
    assert sorted(lr.lines) == ["model=lenet", "model=mlp"]
    by_model = Leaderboard(tmp_path, board.jobs, ["model"])
    assert {row.settings["model"]: row.sample.values for row in by_model.rows} == {
        "lenet": (2.0, 1.0),
        "mlp": (2.0, 4.0),
    }
    found = Comparison(by_model).rows[1].found
    assert (found.n, found.mean) == (2, 1.5)


def test_an_unbalanced_grid_is_averaged_over_what_is_common(tmp_path: Path) -> None:
    """A combination that failed is left out for every value of the other setting."""
    for number, (model, lr, value) in enumerate([("mlp", 0.1, 1.0), ("mlp", 0.2, 9.0), ("lenet", 0.1, 2.0)]):
        make_run(tmp_path / str(number), {"model": model, "optimizer.lr": lr}, value)
    model = effects_of(Leaderboard.read(tmp_path))[0]
    assert not model.balanced
    assert {level.value: level.sample.mean for level in model.levels} == {"lenet": 2.0, "mlp": 1.0}


@pytest.mark.parametrize(("values", "scale"), [(["0.001", "0.01", "0.1"], "log"), (["0", "1e-4", "1e-2"], "symlog"),
                                               (["1", "2", "3"], "linear"), (["-1", "100"], "linear")])  # fmt: skip
def test_the_scale_of_an_axis(tmp_path: Path, values: list[str], scale: str) -> None:
    """Logarithmic where values span a factor of ten."""
    make_sweep(tmp_path / "sweep", {value: [float(n), n + 1.0] for n, value in enumerate(values)})
    (effect,) = effects_of(Leaderboard.read(tmp_path / "sweep"))
    assert effect.scale == scale
    assert [level.value for level in effect.levels] == values


def test_lists_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    """[2] stands left of [16], and the network without hidden layers first."""
    make_sweep(tmp_path / "sweep", {value: [1.0, 2.0] for value in ("[16]", "[16,2]", "[2]", "[]", "deep")})
    (effect,) = effects_of(Leaderboard.read(tmp_path / "sweep"))
    assert [level.value for level in effect.levels] == ["[]", "[2]", "[16]", "[16,2]", "deep"]


def test_a_random_search_is_shown_as_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many values of one run each: no means, no verdicts, a line that says why."""
    monkeypatch.chdir(tmp_path)
    search = make_sweep(Path("search"), {str(0.0001 * 1.7**n): [abs(n - 7) / 10] for n in range(15)})
    rows = compare(search)
    assert {row["verdict"] for row in rows} == {"reference", "no verdict (n = 1)"}
    (effect,) = effects_of(Leaderboard.read(search))
    assert (effect.levels, len(effect.points), effect.scale) == ([], 15, "log")
    assert "Each dot is a row; n = 15 rows" in (search / "compare" / "compare.html").read_text()


def test_a_curve_ends_with_the_shortest_run(tmp_path: Path) -> None:
    """A run that stopped early ends the mean, which would be one of other runs after it."""
    make_sweep(tmp_path / "sweep", {"0.1": [1.0, 2.0]})
    path = tmp_path / "sweep" / "1" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    curve = curve_of(Leaderboard.read(tmp_path / "sweep").rows[0], "val/loss")
    assert (curve.epochs, curve.steps, curve.mean, curve.n) == ([1], [7], [2.5], 2)
    assert curve.low == [pytest.approx(2.5 - 0.5**0.5)]


def test_lone_runs_differ_in_what_their_configurations_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a group the option and not what comes with it; two models x two seeds are two rows."""
    monkeypatch.chdir(tmp_path)
    for model, values in {"mlp": GOOD[:3], "lenet": BAD[:3]}.items():
        for seed, value in enumerate(values):
            make_run(Path(f"runs/{model}_{seed}"), {"model": model, "seed": seed}, value, sweep=False)
    rows = compare(None, runs=["runs/mlp_*", "runs/lenet_?", "runs/mlp_0"], output="out")
    assert list(rows[0])[:2] == ["model", "metric"]
    assert [(row["model"], row["n"]) for row in rows] == [("mlp", "3"), ("lenet", "3")]
    assert rows[1]["verdict"] == "worse"
    Compare(runs="runs/*")({}, Path())
    assert len(list(Path("outputs/compare").glob("*/*/compare.html"))) == 1


def test_two_sweeps_are_compared_by_their_configurations(tmp_path: Path) -> None:
    """The settings are numbers then: 0.1 of one sweep and 1e-1 of the other are one row."""
    make_run(tmp_path / "a" / "0", {"optimizer.lr": 0.1, "seed": 0}, 1.0)
    make_run(tmp_path / "b" / "0", {"optimizer.lr": 1e-1, "seed": 1}, 2.0)
    make_run(tmp_path / "b" / "1", {"optimizer.lr": 0.2, "seed": 1}, 3.0)
    board = Leaderboard(tmp_path, runs_of([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert [(row.label, row.values) for row in board.rows] == [
        ("optimizer.lr=0.1", [1.0, 2.0]),
        ("optimizer.lr=0.2", [3.0]),
    ]


def test_other_data_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A loss on other data says nothing about a setting."""
    for number, (data, value) in enumerate([("digits", 0.1), ("mnist", 0.5)] * 3):
        make_run(tmp_path / "s" / str(number), {"data": data, "seed": number // 2}, value + number / 100, data=data)
    rows = compare(tmp_path / "s")
    assert (rows[1]["verdict"], rows[1]["p"]) == ("not comparable (other data)", "")
    assert "other data" in capsys.readouterr().out


def test_other_splits_are_not_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of a seed that were validated on other samples are no pair."""
    for number, value in enumerate([0.1, 0.5, 0.13, 0.55, 0.11, 0.48]):
        split = {**SPLIT, "val": "other"} if number % 2 else SPLIT
        make_run(tmp_path / "s" / str(number), {"data.split_seed": number % 2, "seed": number // 2}, value, split=split)
    rows = compare(tmp_path / "s")
    expected = stats.ttest_ind([0.5, 0.55, 0.48], [0.1, 0.13, 0.11], equal_var=False)
    assert (rows[1]["paired"], rows[1]["test"]) == ("False", "Welch's t")
    assert float(rows[1]["p"]) == pytest.approx(expected.pvalue, rel=1e-9)
    assert "unpaired" in capsys.readouterr().out


def test_one_row_is_summarised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds alone: mean and interval, nothing to compare."""
    (row,) = compare(make_sweep(tmp_path / "s", {"0.1": GOOD}))
    assert (float(row["mean"]), row["n"]) == (pytest.approx(0.112), "5")
    assert "one row, nothing to compare it with" in capsys.readouterr().out


def test_failures_are_told(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left out is said: a diverged run flatters its row, a damaged file is no result."""
    results = json.loads((sweep / "0" / "results.json").read_text())
    (sweep / "0" / "results.json").write_text(json.dumps({**results, "status": "diverged"}))
    (sweep / "1" / "results.json").write_text('{"status": "finis')
    (sweep / "6" / "results.json").unlink()
    rows = {row["optimizer.lr"]: row for row in compare(sweep)}
    assert (rows["0.001"]["n"], rows["0.001"]["pairs"], rows["0.01"]["n"]) == ("3", "3", "4")
    out = capsys.readouterr().out.replace("\n", " ")
    assert "3 of 15 runs are left out: 1 diverged, 1 missing, 1 unreadable" in out
    assert "optimizer.lr=0.001: 1 of 5 runs failed or diverged" in out


def test_bad_input_is_one_line(sweep: Path) -> None:
    """Each says the setting, what is wrong and what there is."""
    assert refused(None) == "sweep: no folder given; expected sweep=<folder>, or action.runs=[folder,folder,...]"
    assert refused("swep").endswith("no such folder: swep; did you mean 'sweep'?")
    assert refused("sweep/0").startswith("sweep: 'sweep/0' is a single run")
    assert "not the folder of a sweep" in refused("sweep/0/.hydra")
    assert "not together" in refused(sweep, runs=["sweep/0"])
    assert refused(None, runs=["sweep/x*"]).startswith("action.runs: no such folder: sweep/x*")
    assert "neither the folder of a run nor of a sweep" in refused(None, runs=["sweep/0/.hydra"])
    assert refused(sweep, metric="val/acuracy").endswith("did you mean 'val/accuracy'?")
    assert refused(sweep, metric="accuracy").endswith("did you mean 'val/accuracy'?")
    assert "no run reports 'val/f1'; allowed: val/accuracy, val/loss" in refused(sweep, metric="val/f1")
    assert refused(sweep, by=["optimiser.lr"]).endswith("did you mean 'optimizer.lr'?")
    assert refused(sweep, by="seed") == "action.by: runs are repeated over seed; it cannot form rows"
    assert "no row has 'optimizer.lr=7'; rows: optimizer.lr=0.01" in refused(sweep, baseline="optimizer.lr=7")
    Path("taken").write_text("")
    assert refused(sweep, output="taken").startswith("action.output: cannot create 'taken'")


def test_a_sweep_without_a_finished_run(sweep: Path) -> None:
    """One line with how its runs ended."""
    for path in sweep.glob("*/results.json"):
        path.write_text(json.dumps({"status": "failed", "metrics": {}, "best": {}}))
    assert refused(sweep) == "sweep=sweep: none of 15 runs finished (15 failed)"


def test_runs_of_other_monitors_need_a_metric(sweep: Path) -> None:
    """Their best values are of different kinds."""
    path = sweep / "0" / "results.json"
    path.write_text(path.read_text().replace('"val/loss"', '"val/accuracy"'))
    assert refused(sweep) == "action.metric: runs were monitored by val/accuracy, val/loss; choose one"


def test_names_of_curves_are_folders() -> None:
    """Whatever a row is called, its folder is one short name, and no two rows share one."""
    assert run_name("optimizer.lr=0.1, model=mlp") == "optimizer.lr=0.1_model=mlp"
    assert run_name("a/../b") != run_name("a:..:b")
    for label in ("..", "/", "", "ü" * 300, "x" * 300, "a\0b"):
        assert re.fullmatch(r"[^/\0]{1,100}", run_name(label))
        assert run_name(label) not in (".", "..")


def test_comparing_needs_no_torch(sweep: Path) -> None:
    """From the configuration to the page."""
    code = (
        "import sys; from pathlib import Path; from dlrun.actions import ACTIONS\n"
        "ACTIONS.build({'name': 'compare'})({'sweep': 'sweep'}, Path())\n"
        "assert 'torch' not in sys.modules, 'torch'; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_real_sweep_is_compared(cli: Callable, tmp_path: Path) -> None:
    """Two learning rates x two seeds, trained; then the command line compares them; every run has its HParams."""
    words = ("model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.epochs=2", "data.limit_train=128",
             "callbacks=[metrics_file,tensorboard]", "callbacks.tensorboard.graph=false", "trainer.threads=1")  # fmt: skip
    done = cli(*words, "optimizer.lr=0.02,0.0001", "seed=0,1", "hydra.sweep.dir=sweep", "hydra/launcher=basic", "-m")
    assert done.rc == 0, done.stderr
    done = cli("action=compare", "action.runs=[sweep]", "action.output=out")
    assert done.rc == 0, done.stderr
    with open("out/compare.csv", newline="") as file:
        best, worst = csv.DictReader(file)
    assert (best["optimizer.lr"], best["n"], worst["pairs"]) == ("0.02", "2", "2")
    assert float(worst["difference"]) > 0
    experiment, sessions = dashboard(Path("sweep"))
    assert {"optimizer.lr", "seed", "model.name"} <= {info.name for info in experiment.hparam_infos}
    shown = {
        (group.hparams["optimizer.lr"].number_value, group.hparams["seed"].number_value): group for group in sessions
    }
    assert sorted(shown) == [(0.0001, 0), (0.0001, 1), (0.02, 0), (0.02, 1)]
    values = {value.name.tag: value.value for value in shown[0.02, 0].metric_values}
    results = json.loads(Path("sweep/0/results.json").read_text())["metrics"]
    for name in ("val/loss", "test/accuracy"):
        split, metric = name.split("/")
        assert values[f"final/{name}"] == pytest.approx(results[split][metric], rel=1e-6)


def dashboard(folder: Path) -> tuple:
    """What TensorBoard's HParams plugin shows of a folder: the columns, and a row for each run."""
    from tensorboard import context
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    found = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    backend = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(found, str(folder))))
    request = context.RequestContext()
    experiment = backend.experiment_from_metadata(request, "", True, backend.hparams_metadata(request, ""), [])
    columns = [api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos]
    columns += [api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos]
    asked = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=range(4), col_params=columns)
    return experiment, list_session_groups.Handler(request, backend, "", asked).run().session_groups


def test_a_failed_run_takes_no_column_of_the_others(tmp_path: Path) -> None:
    """TensorBoard takes the columns of HParams from the first run that names any; one that failed early has no metrics."""
    from dlrun.callbacks._events import EventWriter
    from dlrun.callbacks._summaries import hyperparameters

    for name, finals in (("0", {}), ("1", {"final/val/loss": 0.5})):
        writer = EventWriter(tmp_path / name)
        writer.scalars(finals, 1)
        writer.values(hyperparameters({"optimizer": {"lr": 0.1}}, finals, finished=bool(finals)), 1)
        writer.close()
    experiment, sessions = dashboard(tmp_path)
    assert [info.name.tag for info in experiment.metric_infos] == ["final/val/loss"]
    assert sorted(group.sessions[0].status for group in sessions) == [1, 2]  # success, failure
