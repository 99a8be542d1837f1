"""The proximal L1 penalty against scikit-learn's Lasso and the formula of soft thresholding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import nn

from dlrun.build import build_trainer, check
from dlrun.optimizers import OPTIMIZERS
from dlrun.regularization._build import build_regularizers
from dlrun.trainer import Trainer


@pytest.fixture
def make(composed: Callable[..., dict], tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of a composed and checked configuration, in a folder of its own."""
    folders = iter(range(100))

    def build(*overrides: str) -> Trainer:
        config = composed("device=cpu", "callbacks=none", "scheduler=constant", *overrides)
        check(config)
        folder = tmp_path / f"run{next(folders)}"
        folder.mkdir()
        return build_trainer(config, folder)

    return build


@pytest.mark.curriculum("R03")
def test_soft_thresholding_literal() -> None:
    """W = [[1, -2], [3, 0]] with lr 0.5 and strength 3 becomes [[0, -0.5], [1.5, 0]]; the bias stays; the reported penalty, 6
    times the strength, has no gradient."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        layer.bias.fill_(0.25)
    regularizer = build_regularizers({"l": {"name": "proximal_l1", "strength": 3.0}})["l"]
    penalty = regularizer.penalty(layer, torch.zeros(1))
    assert (penalty.item(), penalty.requires_grad) == (18.0, False)
    regularizer.proximal(layer, {id(p): 0.5 for p in layer.parameters()})
    assert layer.weight.tolist() == [[0.0, -0.5], [1.5, 0.0]]
    assert layer.bias.tolist() == [0.25, 0.25]


LASSO = ("data=affine", "data.features=20", "data.outputs=1", "data.noise=1", "data.samples=200", "data.batch_size=1000",
         "model=linear", "optimizer=sgd", "optimizer.lr=0.3", "trainer.epochs=60")  # fmt: skip


@pytest.mark.curriculum("R03")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_full_batch_descent_is_the_lasso(make, reduction: str) -> None:
    """Weights end at those of scikit-learn's Lasso with alpha = strength / 2, the same ones exactly 0; it is reported."""
    samples = 144  # for training
    rate, strength = (0.3, 0.3) if reduction == "mean" else (0.3 / samples, 0.3 * samples)
    trainer = make(*LASSO, f"loss.reduction={reduction}", f"optimizer.lr={rate}", "regularization=proximal_l1",
                   f"regularization.proximal_l1.strength={strength}")  # fmt: skip
    trainer.fit()
    batch = next(iter(trainer.run.data.split("train")))
    x, y = batch.inputs.double().numpy(), batch.targets[:, 0].double().numpy()
    assert len(x) == samples
    reference = Lasso(alpha=0.15, tol=1e-10).fit(x, y)
    weights = trainer.run.model.head.weight.detach()[0].numpy()
    np.testing.assert_allclose(weights, reference.coef_, atol=1e-5)
    assert 2 < (weights == 0).sum() < 18
    assert ((weights == 0) == (reference.coef_ == 0)).all()
    train = trainer.run.history["train"]
    assert train["penalty"] == pytest.approx(0.3 * np.abs(weights).sum(), rel=1e-4)
    assert train["objective"] == pytest.approx(train["loss"] + train["penalty"], rel=1e-6)


@pytest.mark.curriculum("R03")
def test_exact_zeros_grow_with_the_strength_and_are_none_without(make) -> None:
    """The share of weights that are exactly 0 grows; the subgradient of the same penalty makes none."""
    shares = []
    for name, strength in (("proximal_l1", 0.0), ("proximal_l1", 0.1), ("proximal_l1", 1.0), ("l1", 1.0)):
        trainer = make(
            *LASSO, f"regularization={name}", f"regularization.{name}.strength={strength}", "trainer.epochs=30"
        )
        trainer.fit()
        shares.append((trainer.run.model.head.weight == 0).float().mean().item())
    assert shares[0] == 0 < shares[1] < shares[2]
    assert shares[3] == 0


@pytest.mark.curriculum("R01")
def test_strength_zero_changes_no_bit(make) -> None:
    """The run is that without the penalty."""
    words = (
        "data=digits",
        "data.limit_train=64",
        "model=mlp",
        "model.hidden=[8]",
        "optimizer=adam",
        "trainer.epochs=2",
    )
    plain, zero = make(*words), make(*words, "regularization=proximal_l1", "regularization.proximal_l1.strength=0.0")
    for trainer in (plain, zero):
        trainer.fit()
    for a, b in zip(plain.trainable, zero.trainable, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS.names()) - {"closed_form"}))
def test_it_goes_with_every_optimizer(make, name: str) -> None:
    """Each shrinks weights to exact zeros, and follows the schedule: with a learning rate of 0 nothing moves."""
    words = ("data=digits", "data.limit_train=64", "model=linear", f"optimizer={name}", "trainer.epochs=1")
    trainer = make(*words, "regularization=proximal_l1", "regularization.proximal_l1.strength=5", "optimizer.lr=0.01")
    trainer.fit()
    assert (trainer.run.model.head.weight == 0).float().mean() > 0.2
