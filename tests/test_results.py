"""What a person gets: small whole runs whose outcome is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

COMMON = ("device=cpu", "trainer.threads=1", "callbacks=none", "hydra.run.dir=run")


def outcome(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())["metrics"]["test"]


@pytest.mark.curriculum("T08", "L04")
def test_predicted_noise_follows_the_true_noise(cli, tmp_path: Path) -> None:
    """Gaussian NLL on data with known sigma(x): predicted and true standard deviation correlate above 0.9."""
    import torch

    from dlrun.data.heteroscedastic import sigma

    done = cli("experiment=heteroscedastic", "trainer.epochs=10", *COMMON)
    assert done.rc == 0, done.stderr
    x = np.linspace(-3, 3, 200)
    with open(tmp_path / "new.csv", "w", newline="") as file:
        csv.writer(file).writerows([["x"], *([value] for value in x)])
    done = cli("action=predict", "run=run", "action.input=new.csv", "action.output=p.csv")
    assert done.rc == 0, done.stderr
    with open(tmp_path / "p.csv", newline="") as file:
        predicted = [float(row["std_y"]) for row in csv.DictReader(file)]
    assert np.corrcoef(predicted, sigma(torch.tensor(x)).numpy())[0, 1] > 0.9


@pytest.mark.curriculum("U10")
def test_a_linear_autoencoder_is_pca(cli, tmp_path: Path) -> None:
    """Linear encoder and decoder with L2 reach the squared error of PCA with as many axes (within 3 %), never below it."""
    import torch
    from sklearn.decomposition import PCA

    from dlrun import checkpoint, rundir
    from dlrun.build import build_parts

    done = cli("model=autoencoder", "model.hidden=[]", "model.code_size=8", "model.activation=linear", "optimizer.lr=0.01",
               "trainer.epochs=60", *COMMON)  # fmt: skip
    assert done.rc == 0, done.stderr
    parts = build_parts(
        rundir.read_config(tmp_path / "run", "run"), checkpoint.load(tmp_path / "run" / rundir.BEST)["data"]
    )
    train = torch.cat([parts.task.targets_of(b.inputs) for b in parts.data.split("train")]).numpy()
    test = torch.cat([parts.task.targets_of(b.inputs) for b in parts.data.split("test")]).numpy()
    pca = PCA(8).fit(train)
    train_error = ((pca.inverse_transform(pca.transform(train)) - train) ** 2).sum(1).mean()
    test_error = ((pca.inverse_transform(pca.transform(test)) - test) ** 2).sum(1).mean()
    ours = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert ours["test"]["squared_error"] == pytest.approx(test_error, rel=0.03)
    assert ours["train"]["squared_error"] > 0.99 * train_error  # PCA is the optimum


def test_the_default_run_learns_digits(cli, tmp_path: Path) -> None:
    """What `make demo` runs reaches 95 % on digits it has never seen."""
    assert cli(*COMMON).rc == 0
    assert outcome(tmp_path / "run")["accuracy"] > 0.95


@pytest.mark.curriculum("T27")
def test_mnist_as_published(cli, tmp_path: Path, data_dir: Path) -> None:
    """60,000 + 10,000 real images; one epoch of LeNet on a tenth of them passes 90 %."""
    done = cli(
        "data=mnist",
        f"data.root={data_dir}",
        "data.limit_train=6000",
        "data.batch_size=32",
        "trainer.epochs=2",
        *COMMON,
    )
    assert done.rc == 0, done.stderr
    assert outcome(tmp_path / "run")["accuracy"] > 0.9
