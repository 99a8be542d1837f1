"""What a teacher types: whole commands of the courses, and what they must show."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMMON = ("device=cpu", "trainer.threads=1", "callbacks=none")


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def swept(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Configuration and results of every run of a sweep."""
    for run in sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)):
        yield yaml.safe_load((run / ".hydra" / "config.yaml").read_text()), results(run)


@pytest.mark.curriculum("M52", "X19")
@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        (("model=mlp", "model.hidden=[16],[64],[8,4]"), [65 * 16 + 17 * 10, 65 * 64 + 65 * 10, 65 * 8 + 9 * 4 + 5 * 10]),
        (
            ("model=cnn", "model.hidden=[]", "model.features=average", "model.batch_norm=false",
             "model.blocks=[{channels: 3}],[{channels: 5, kernel: 5}],[{channels: 3}, {channels: 4}]"),
            [3 * 10 + 4 * 10, 5 * 26 + 6 * 10, 3 * 10 + 4 * 28 + 5 * 10],
        ),
    ],
    ids=["dense", "convolutional"],
)  # fmt: skip
def test_architectures_are_swept(cli, tmp_path: Path, words: tuple[str, ...], parameters: list[int]) -> None:
    """Widths, depth, kernels and channels are values of a sweep like any other: each run has its own count of parameters."""
    short = ("data=digits", "data.limit_train=64", "trainer.epochs=1", "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    done = cli("-m", *words, *short, *COMMON)
    assert done.rc == 0, done.stderr
    assert [outcome["parameters"] for _, outcome in swept(tmp_path / "sweep")] == parameters


@pytest.mark.curriculum("P06")
def test_polynomials_under_and_overfit(cli, tmp_path: Path) -> None:
    """Training error falls with the degree, to nothing at 9 with ten points; validation error is least at the true 3."""
    words = ("experiment=polynomial_degree", "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    done = cli("-m", *words, *COMMON)
    assert done.rc == 0, done.stderr
    runs = list(swept(tmp_path / "sweep"))
    assert [config["data"]["transform"]["polynomial"]["degree"] for config, _ in runs] == [1, 2, 3, 5, 7, 9]
    train, val = ([outcome["metrics"][split]["rmse"] for _, outcome in runs] for split in ("train", "val"))
    assert train == sorted(train, reverse=True)
    assert train[-1] < 1e-3 < train[2]
    assert 2 * val[2] < min(val[:2] + val[3:])


TASKS = {  # of the table in docs/course.md: kind of target, loss
    "dogs": "ce",
    "poses.csv": "l2",
    "labels.csv": "bce",
    "waits.csv": "exponential_nll",
    "mail.csv": "bce",
}


@pytest.mark.curriculum("T29")
def test_an_example_of_each_kind_of_task(cli, tmp_path: Path) -> None:
    """Each command of the table in docs/course.md trains on data of that form with the loss that the page says."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "dogs" / ("beagle", "collie", "poodle")[i % 3] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (70, 64, 3), dtype=np.uint8)).save(path)
    columns = {
        "poses.csv": ("a", "b", "yaw", "pitch", "roll"),
        "labels.csv": ("a", "b", "cat", "dog", "indoors"),
        "waits.csv": ("a", "b", "minutes"),
        "mail.csv": ("a", "b", "spam"),
    }
    for name, header in columns.items():
        with open(tmp_path / name, "w", newline="") as file:
            rows = generator.normal(size=(40, len(header)))
            whole = name in ("labels.csv", "mail.csv")
            rows[:, 2:] = rows[:, 2:] > 0 if whole else rows[:, 2:] ** (2 if name == "waits.csv" else 1)
            csv.writer(file).writerows([header, *([*row[:2], *map(int, row[2:])] if whole else row for row in rows)])
    page = (ROOT / "docs" / "course.md").read_text()
    commands = re.findall(r"^\| [^|]+ \| `(dlrun [^|`]+)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(commands) == len(TASKS)
    for number, (command, loss) in enumerate(commands):
        words = shlex.split(command)[1:]
        done = cli(*words, "trainer.fast_dev_run=true", *COMMON, f"hydra.run.dir=run{number}")
        assert done.rc == 0, (command, done.stderr)
        saved = yaml.safe_load((tmp_path / f"run{number}" / ".hydra" / "config.yaml").read_text())
        (file,) = [word.partition("=")[2] for word in words if word.startswith("data.path=")]
        assert saved["loss"]["name"] == TASKS[file] == loss


@pytest.mark.curriculum("T01")
def test_the_objective_is_the_mean_loss_plus_the_penalty(cli, tmp_path: Path) -> None:
    """From the checkpoint after the first update: mean loss of all training samples + lambda times the squares of the weights
    is the objective that a run of two full-batch updates logs for the second."""
    import torch
    from torch.nn.functional import cross_entropy

    from dlrun import checkpoint, rundir
    from dlrun.build import build_parts

    words = ("data=digits", "data.batch_size=100000", "model=mlp", "model.hidden=[16]", "model.dropout=0", "optimizer=sgd",
             "scheduler=constant", "regularization=[l2]", "regularization.l2.strength=0.01", "device=cpu", "trainer.threads=1",
             "callbacks=metrics_file")  # fmt: skip
    assert cli(*words, "trainer.epochs=1", "hydra.run.dir=one").rc == 0
    assert cli(*words, "trainer.epochs=2", "hydra.run.dir=two").rc == 0
    state = checkpoint.load(tmp_path / "one" / rundir.LAST)
    parts = build_parts(rundir.read_config(tmp_path / "one", "one"), state["data"])
    checkpoint.load_weights(parts.model, state)
    with torch.no_grad():
        losses = [cross_entropy(parts.model(b.inputs), b.targets, reduction="none") for b in parts.data.split("train")]
        squares = sum(weight.square().sum().item() for weight in parts.model.parameters() if weight.ndim == 2)
        expected = torch.cat(losses).double().mean().item() + 0.01 * squares
    lines = map(json.loads, (tmp_path / "two" / "metrics.jsonl").read_text().splitlines())
    logged = [line["objective"] for line in lines if line["split"] == "train"]
    assert logged[1] == pytest.approx(expected, rel=1e-6)
    assert logged[0] != pytest.approx(expected, rel=1e-3)


@pytest.mark.curriculum("L17")
@pytest.mark.parametrize(
    ("words", "loss", "outputs"),
    [
        (("data=digits",), "ce", 10),
        (("data=two_moons",), "bce", 1),
        (("data=xor", "data.labels=sign"), "bce", 1),
        (("data=poly1d",), "l2", 1),
        (("data=affine", "data.outputs=3"), "l2", 3),
        (("data=heteroscedastic",), "gaussian_nll", 2),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_the_data_choose_loss_and_number_of_outputs(composed, words: tuple[str, ...], loss: str, outputs: int) -> None:
    """Softmax for classes, sigmoid for detection, a linear output for regression, whatever the hidden activation is."""
    import torch

    from dlrun.build import build_parts

    parts = build_parts(composed(*words, "model=mlp", "model.hidden=[4]", "model.activation=tanh", "device=cpu"))
    batch = next(iter(parts.data.split("val")))
    with torch.no_grad():
        raw = parts.model.eval()(batch.inputs)
        predicted = parts.loss.probabilities(raw)
    assert (parts.loss.name, tuple(raw.shape)) == (loss, (len(batch.inputs), outputs))
    assert raw.min() < 0  # not activated: a softmax or a sigmoid would be positive
    if loss == "ce":
        torch.testing.assert_close(predicted, torch.softmax(raw, 1))
    elif loss == "bce":
        torch.testing.assert_close(predicted, torch.sigmoid(raw))
    else:
        assert predicted is None


@pytest.mark.curriculum("L19", "R11")
@pytest.mark.parametrize(("monitor", "best"), [("val/loss", min), ("val/accuracy", max)])
def test_the_monitor_chooses_what_is_tested(cli, tmp_path: Path, monitor: str, best) -> None:
    """Loss and accuracy are logged side by side; the best epoch is that of the chosen one, training stops `patience` epochs
    after it, and the test set sees its weights."""
    words = ("data=digits", "data.limit_train=100", "model=mlp", "model.hidden=[32]", "optimizer.lr=0.05",
             "trainer.epochs=60", "regularization=[early_stopping]", "trainer.patience=3", "device=cpu",
             "trainer.threads=1", "callbacks=metrics_file")  # fmt: skip
    done = cli(*words, f"trainer.monitor={monitor}", "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [line[monitor.removeprefix("val/")] for line in lines if line["split"] == "val"]
    found = results(tmp_path / "run")
    assert found["best"]["monitor"] == monitor
    assert found["best"]["epoch"] == values.index(best(values)) + 1 == len(values) - 3 < 57
    tested = cli("action=test", "run=run")
    assert tested.rc == 0, tested.stderr
    assert f"{found['metrics']['test']['accuracy']:.6g}" in tested.stdout.split()


@pytest.mark.curriculum("M22")
def test_xor_network_with_given_weights(cli, composed, tmp_path: Path) -> None:
    """The network written down in the recipe is |x1 - x2| - 1/2 at the corners, and right before any training."""
    import torch

    from dlrun.models import MODELS

    node = composed("experiment=xor_given_weights")["model"]
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    given = MODELS.build(node, input_shape=(2,), num_outputs=1).eval()
    assert given(corners).flatten().tolist() == [-0.5, 0.5, 0.5, -0.5]
    plain = MODELS.build({**node, "biases": [[0.0, 0.0], [0.0]]}, input_shape=(2,), num_outputs=1).eval()
    assert plain(corners).flatten().tolist() == [0, 1, 1, 0]
    assert cli("experiment=xor_given_weights", *COMMON, "hydra.run.dir=run").rc == 0
    assert results(tmp_path / "run")["metrics"]["test"]["accuracy"] > 0.99
    done = cli("data=xor", "model=mlp", "model.hidden=[2]", "model.weights=[[[1,2]]]", *COMMON)
    assert (done.rc, done.stderr.count("\n")) == (1, 1)
    assert "model.weights: got shapes 1x2; this network has 2x2, 1x2" in done.stderr
