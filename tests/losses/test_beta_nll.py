"""`loss.beta` of gaussian_nll against values and gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dlrun.losses.gaussian_nll import GaussianNLL
from dlrun.metrics._collection import MetricCollection
from dlrun.spec import TargetSpec

TARGET = TargetSpec("real", 1)


def outputs(mean: float, variance: float) -> torch.Tensor:
    """Raw outputs that stand for this mean and variance."""
    raw = math.log(math.expm1(variance - 1e-6))
    return torch.tensor([[mean, raw]], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("beta", "factor"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_value(beta: float, factor: float) -> None:
    """Mean 1, variance 4, target 3: (log 2 pi + log 4 + 4 / 4) / 2, times 4 ** beta."""
    likelihood = 0.5 * (math.log(2 * math.pi) + math.log(4) + 1)
    loss = GaussianNLL(TARGET, beta=beta)
    assert loss(outputs(1, 4), torch.tensor([[3.0]])).item() == pytest.approx(factor * likelihood)


@pytest.mark.parametrize(("beta", "of_mean"), [(0.0, -0.5), (0.5, -1.0), (1.0, -2.0)])
def test_gradient_of_the_mean(beta: float, of_mean: float) -> None:
    """-(y - mean) / variance ** (1 - beta): with beta 1 that of half the squared error, whatever the variance."""
    given = outputs(1, 4)
    GaussianNLL(TARGET, beta=beta)(given, torch.tensor([[3.0]])).backward()
    assert given.grad is not None
    assert given.grad[0, 0].item() == pytest.approx(of_mean)


def test_the_factor_is_a_constant() -> None:
    """The variance has the gradient of the likelihood times the factor, not of the product: zero where (y - mean)^2 is the
    variance."""
    given = outputs(1, 4)
    GaussianNLL(TARGET, beta=0.5)(given, torch.tensor([[3.0]])).backward()
    assert given.grad is not None
    assert given.grad[0, 1].item() == pytest.approx(0, abs=1e-12)


def test_the_metric_stays_the_likelihood() -> None:
    """`nll` does not depend on beta."""
    found = []
    for beta in (0.0, 1.0):
        metrics = MetricCollection(GaussianNLL(TARGET, beta=beta), TARGET)
        metrics.update(outputs(1, 4).detach(), torch.tensor([[3.0]]))
        found.append(metrics.compute()["nll"])
    assert found[0] == found[1] == pytest.approx(0.5 * (math.log(2 * math.pi) + math.log(4) + 1))
