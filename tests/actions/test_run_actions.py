"""What can be done with a run: train it, go on with it, test it, predict with it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

QUICK = (
    "model=mlp", "model.hidden=[8]", "device=cpu", "trainer.epochs=2", "callbacks=metrics_file", "hydra.run.dir=run",
)  # fmt: skip


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_what_the_contract_says(cli, tmp_path: Path) -> None:
    """Config, provenance, log, checkpoints, metric lines and results are there and say the same."""
    assert cli(*QUICK, "data=digits").rc == 0
    run = tmp_path / "run"
    for name in (".hydra/config.yaml", "run.json", "dlrun.log", "checkpoints/last.pt", "checkpoints/best.pt"):
        assert (run / name).is_file(), name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines] == ["train", "val", "train", "val", "test"]
    assert lines[-1]["accuracy"] == results(run)["metrics"]["test"]["accuracy"]
    about = json.loads((run / "run.json").read_text())
    assert {"git", "packages", "device", "threads", "seed", "split_hashes", "command"} <= set(about)
    assert "loss: \n" not in (run / ".hydra/config.yaml").read_text()


def test_the_same_command_twice_gives_the_same_numbers(cli, tmp_path: Path) -> None:
    """Metrics of results.json are identical and the weights are bit-identical."""
    import torch

    for folder in ("a", "b"):
        assert cli(*QUICK[:-1], "data=digits", f"hydra.run.dir={folder}", "model.dropout=0.2").rc == 0
    a, b = results(tmp_path / "a"), results(tmp_path / "b")
    assert a["metrics"] == b["metrics"]
    weights = [torch.load(tmp_path / f / "checkpoints" / "last.pt", weights_only=True)["model"] for f in ("a", "b")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_finished_run_has_nothing_left_to_do(cli, tmp_path: Path) -> None:
    """`resume=` of a finished run says so, exits 0 and changes nothing."""
    assert cli(*QUICK, "data=digits").rc == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    done = cli("resume=run")
    assert (done.rc, "nothing to do" in done.stdout) == (0, True)
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_an_interrupted_run_goes_on_where_it_stopped(dlrun, cli, tmp_path: Path) -> None:
    """SIGTERM exits 143 after a checkpoint; the resumed run ends with the numbers of one never stopped."""
    import os
    import signal
    import subprocess
    import sys
    import time

    command = [
        "model=mlp",
        "data=digits",
        "device=cpu",
        "trainer.epochs=60",
        "callbacks=metrics_file",
        "trainer.threads=1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlrun", *command, "hydra.run.dir=stopped"], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "stopped" / "checkpoints" / "last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert results(tmp_path / "stopped")["status"] == "interrupted"
    assert cli("resume=stopped").rc == 0
    assert cli(*command, "hydra.run.dir=whole").rc == 0
    assert results(tmp_path / "stopped")["metrics"] == results(tmp_path / "whole")["metrics"]
    lines = [(tmp_path / f / "metrics.jsonl").read_text() for f in ("stopped", "whole")]
    assert lines[0] == lines[1]


def test_testing_again_repeats_the_test_metrics(cli, tmp_path: Path) -> None:
    """`action=test` prints what results.json holds."""
    assert cli(*QUICK, "data=digits").rc == 0
    done = cli("action=test", "run=run")
    assert done.rc == 0, done.stderr
    assert f"{results(tmp_path / 'run')['metrics']['test']['accuracy']:.6g}" in done.stdout


def test_predictions_of_classes(cli, tmp_path: Path) -> None:
    """The CSV has class, probabilities that sum to 1 and the target; its accuracy is the test accuracy."""
    assert cli(*QUICK, "data=digits").rc == 0
    assert cli("action=predict", "run=run", "action.output=p.csv").rc == 0
    found = rows(tmp_path / "p.csv")
    assert sum(float(found[0][f"p_{i}"]) for i in range(10)) == pytest.approx(1, abs=1e-5)
    accuracy = sum(row["class"] == row["target"] for row in found) / len(found)
    assert accuracy == pytest.approx(results(tmp_path / "run")["metrics"]["test"]["accuracy"])


def write_table(path: Path, shuffled: bool = False) -> None:
    names = ["b", "a", "colour"] if shuffled else ["a", "b", "colour", "y"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        for i in range(200):
            a, b = math.sin(i), math.cos(3 * i)
            writer.writerow({"a": a, "b": b, "colour": ("red", "blue")[i % 2], "y": 100 + 20 * a - 5 * b})


def test_predictions_of_numbers_for_a_new_file(cli, tmp_path: Path) -> None:
    """Mean and standard deviation come in original units, and new columns may stand in another order."""
    write_table(tmp_path / "train.csv")
    write_table(tmp_path / "new.csv", shuffled=True)
    done = cli("model=mlp", "data=csv", "data.path=train.csv", "data.target=y", "loss=gaussian_nll", "device=cpu",
               "trainer.epochs=60", "callbacks=none", "hydra.run.dir=run")  # fmt: skip
    assert done.rc == 0, done.stderr
    assert cli("action=predict", "run=run", "action.input=new.csv", "action.output=p.csv").rc == 0
    found = rows(tmp_path / "p.csv")
    assert set(found[0]) == {"index", "mean_y", "std_y"}
    truth = [100 + 20 * math.sin(i) - 5 * math.cos(3 * i) for i in range(200)]
    error = sum((float(row["mean_y"]) - y) ** 2 for row, y in zip(found, truth, strict=True)) / 200
    assert math.sqrt(error) < 5  # the targets' own standard deviation is about 15
    assert all(float(row["std_y"]) > 0 for row in found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["action.input=none.csv"], "no such file"),
        (["action.output=no/such/folder.csv"], "does not exist"),
        (["action.split=tset"], "did you mean 'test'?"),
    ],
)
def test_bad_predictions_get_one_line(cli, tmp_path: Path, words: list[str], expected: str) -> None:
    """A missing file, a missing folder, a misspelt split."""
    assert cli(*QUICK, "data=digits").rc == 0
    done = cli("action=predict", "run=run", *words)
    assert done.rc == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_is_named_after_the_options(cli, tmp_path: Path) -> None:
    """outputs/<date>/<time>_<model>_<data>, with the option that was chosen (`perceptron` is a variant of `linear`)."""
    assert cli("model=perceptron", "device=cpu", "trainer.fast_dev_run=true", "callbacks=none").rc == 0
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert folder.name.endswith("_perceptron_digits")
