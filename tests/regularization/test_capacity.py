"""What regularizes without a regularizer: more data, a function that fits the data, and more parameters than samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dlrun.build import build_trainer, check


class Fit(NamedTuple):
    """A trained network: its parameters, and loss and accuracy of both splits."""

    parameters: int
    train: dict[str, float]
    val: dict[str, float]

    @property
    def gap(self) -> float:
        return self.val["loss"] - self.train["loss"]


COMMON = ("device=cpu", "callbacks=none", "model.dropout=0", "data.batch_size=50", "trainer.validate_every_epochs=1000")
DIGITS = ("data=digits", "trainer.steps=100", "optimizer.lr=0.01", "model=mlp")


@pytest.fixture
def fit(composed: Callable[..., dict], tmp_path: Path) -> Callable[..., Fit]:
    """A network trained by Adam on so many samples, 50 at a time, without dropout."""
    folders = iter(range(100))

    def train(samples: int, *overrides: str) -> Fit:
        config = composed(*COMMON, f"data.limit_train={samples}", *overrides)
        check(config)
        folder = tmp_path / f"run{next(folders)}"
        folder.mkdir()
        trainer = build_trainer(config, folder)
        trainer.fit()
        return Fit(sum(p.numel() for p in trainer.trainable), trainer.evaluate("train"), trainer.run.history["val"])

    return train


@pytest.mark.curriculum("R12")
def test_more_data_close_the_gap(fit) -> None:
    """From 50 to 200 to 1,000 samples the validation loss comes down to the training loss: 0.61, 0.14, 0.01 were measured."""
    gaps = [fit(samples, *DIGITS, "model.hidden=[64]").gap for samples in (50, 200, 1000)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


@pytest.mark.curriculum("R12")
def test_a_convolution_is_smaller_and_overfits_less(fit, data_dir: Path) -> None:
    """On 200 images of MNIST, all of which both fit, a convolutional network of a fourth of the parameters has a smaller gap
    than a dense one (0.37 and 0.74 were measured)."""
    mnist = ("data=mnist", f"data.root={data_dir}", "data.limit_val=500", "trainer.steps=60", "optimizer.lr=0.005")
    blocks = "model.blocks=[{channels: 8, kernel: 5, pool_size: 2}, {channels: 16, kernel: 5, pool_size: 2}]"
    dense, conv = (
        fit(200, *mnist, "model=mlp", "model.hidden=[64]"),
        fit(200, *mnist, "model=cnn", blocks, "model.hidden=[]"),
    )
    assert conv.parameters < dense.parameters / 4
    assert min(dense.train["accuracy"], conv.train["accuracy"]) > 0.99
    assert conv.gap < 0.8 * dense.gap
    assert conv.val["accuracy"] > dense.val["accuracy"]


@pytest.mark.curriculum("R17")
def test_more_parameters_than_samples_may_be_better(fit) -> None:
    """19,210 parameters for 200 samples fit all of them and do better on validation than 310, without any regularizer."""
    narrow, wide = (fit(200, *DIGITS, f"model.hidden=[{width}]") for width in (4, 256))
    assert wide.parameters > 90 * 200 > narrow.parameters
    assert wide.train["accuracy"] == 1
    assert wide.val["accuracy"] > narrow.val["accuracy"] + 0.05
    assert wide.val["loss"] < narrow.val["loss"]
