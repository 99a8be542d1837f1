"""Normalisation: training statistics only, missing values, constant features, real targets."""

from __future__ import annotations

import fractions
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.data import _statistics
from dlrun.data._base import Samples, Source
from dlrun.data._module import DataModule
from dlrun.data._settings import DataSettings
from dlrun.data._statistics import image_statistics, vector_statistics
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

CPU = torch.device("cpu")


class Table(Source):
    """Given vectors with real targets."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor | None = None) -> None:
        self.inputs = inputs
        self.targets = torch.zeros(len(inputs), 1) if targets is None else targets

    def train(self):
        return Samples(self.inputs, self.targets), TargetSpec("real", self.targets.shape[1])


def vectors(n: int = 500) -> torch.Tensor:
    """Columns of very different scale, one constant, one with missing values, one large with a small spread."""
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.tensor([1.0, 1e-4, 1e5, 0.0, 1.0]) + torch.tensor([3.0, 0.0, -7.0, 0.1, 2000.0])
    x[::7, 0] = float("nan")
    return x.float()


def module(inputs, targets=None, **settings) -> DataModule:
    return DataModule(Table(inputs, targets), DataSettings(**settings), seed=0, device=CPU)


def whole(data: DataModule, name: str) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in data.split(name)])


def test_image_statistics_equal_numpy():
    """Mean and standard deviation per channel of value/255 equal NumPy's; a constant channel gets standard deviation 1."""
    x = torch.randint(0, 256, (50, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 7
    found = image_statistics(x.split(16))
    values = x.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(found.mean, values.mean((0, 2, 3)), rtol=1e-12)
    std = values.std((0, 2, 3))
    np.testing.assert_allclose(found.std, [std[0], 1.0, std[2]], rtol=1e-12)
    assert image_statistics(x.split(7)) == found


@pytest.mark.parametrize("shape", [(700, 1, 3, 3), (300, 3, 40, 40), (2, 1, 600, 600)])
def test_image_statistics_are_exact(shape):
    """The brightest images, whose sums are largest, of any size and number: 255 throughout but for one darker pixel."""
    x = torch.full(shape, 255, dtype=torch.uint8)
    x[-1, :, -1, -1] = 254
    found = image_statistics(x.split(256))
    n = x[:, 0].numel()
    mean, square = fractions.Fraction(255 * n - 1, n), fractions.Fraction(255**2 * n - 255**2 + 254**2, n)
    assert found.mean == pytest.approx([float(mean / 255)] * shape[1], rel=1e-15)
    spread = float(square) - float(mean) ** 2  # rounded as the code rounds it
    assert found.std == pytest.approx([max(0.0, spread) ** 0.5 / 255] * shape[1], rel=1e-15)


@pytest.mark.parametrize("count", [1, 200])
def test_long_tables_are_normalised_in_pieces(monkeypatch, count):
    """How many rows are converted at once changes no bit."""
    x = vectors()
    expected = module(x).transform(x)
    monkeypatch.setattr(_statistics, "ROWS", count)
    assert torch.equal(module(x).transform(x), expected)


@pytest.mark.skipif("DLRUN_DATA_DIR" not in os.environ, reason="needs MNIST in DLRUN_DATA_DIR")
def test_statistics_of_mnist():
    """The 60,000 training images of MNIST have mean 0.1307 and standard deviation 0.3081."""
    path = Path(os.environ["DLRUN_DATA_DIR"], "MNIST", "raw", "train-images-idx3-ubyte.gz")
    raw = bytearray(gzip.decompress(path.read_bytes())[16:])
    found = image_statistics(torch.frombuffer(raw, dtype=torch.uint8).view(60000, 1, 28, 28).split(1000))
    assert (round(found.mean[0], 4), round(found.std[0], 4)) == (0.1307, 0.3081)


@pytest.mark.curriculum("D03")
def test_vector_statistics_equal_scikit_learn():
    """Statistics with missing values left out equal StandardScaler's; constant and empty columns get deviation 1."""
    from sklearn.preprocessing import StandardScaler

    x = torch.cat([vectors(), torch.full((500, 1), float("nan"))], 1)
    scaler = StandardScaler().fit(x[:, :5].double().numpy())
    found = vector_statistics(x)
    np.testing.assert_allclose(found.mean, [*scaler.mean_, 0.0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.std, [*scaler.scale_, 1.0], rtol=1e-9)


@pytest.mark.curriculum("D03")
def test_a_constant_feature_is_seen_in_spite_of_rounding():
    """Whatever the constant and the count, the deviation found is exactly 0 and so replaced by 1."""
    for value in (0.1, 1 / 3, 2.3, 12345.678):
        for count in (7, 49, 100, 999, 1437):
            assert vector_statistics(torch.full((count, 1), value)).std == (1.0,)


@pytest.mark.curriculum("D03")
def test_standardised_vectors():
    """Training features have mean 0 and deviation 1; others use training statistics; missing values become 0."""
    x = vectors()
    data = module(x)
    train = whole(data, "train").double()
    assert train.mean(0).abs().max() < 1e-5
    known = train[:, 0] != 0
    np.testing.assert_allclose(train[known, 0].std(unbiased=False), 1, atol=1e-5)
    np.testing.assert_allclose(train[:, [1, 2, 4]].std(0, unbiased=False), 1, atol=1e-5)
    assert (train[:, 3] == 0).all()
    for name in ("val", "test"):
        part = whole(data, name)
        assert part.isfinite().all()
        assert (part.double().mean(0)[[1, 2, 4]].abs() > 1e-4).all()  # its own statistics would give 0
    spec = data.spec
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (spec.mean, spec.std))
    expected = (x.double() - mean) / std
    torch.testing.assert_close(data.transform(x), expected.nan_to_num(0.0).float(), atol=1e-6, rtol=1e-6)


@pytest.mark.curriculum("D03")
def test_statistics_come_from_the_training_split_only():
    """Changing every row outside the (limited) training split does not change the statistics."""
    x = vectors()
    limited = module(x, limit_train=100)
    used = torch.zeros(len(x), dtype=torch.bool)
    raw = limited.transform(x)
    for row in whole(limited, "train"):
        used |= (raw == row).all(1)
    assert used.sum() == 100
    changed = torch.where(used[:, None], x, x * 3 + 1)
    other = module(changed, limit_train=100)
    assert (other.spec.mean, other.spec.std) == (limited.spec.mean, limited.spec.std)
    assert limited.spec.mean != module(x).spec.mean


def test_unit_leaves_vectors_in_original_units():
    """With normalize=unit vectors stay as they are, but for missing values, which become the training mean."""
    x = vectors()
    data = module(x, normalize="unit")
    assert data.spec.mean == (0.0,) * 5
    assert data.spec.std == (1.0,) * 5
    y = data.transform(x)
    missing = x.isnan()
    assert torch.equal(y[~missing], x[~missing])
    np.testing.assert_allclose(y[missing], module(x).spec.mean[0], rtol=1e-6)


def test_real_targets_are_standardised():
    """Stored targets have training mean 0 and deviation 1, and target.mean and target.std take them back."""
    y = torch.stack([torch.linspace(-3, 50, 500), torch.linspace(1, 2, 500) ** 2], 1)
    data = module(vectors(), y)
    target = data.spec.target
    train = torch.cat([batch.targets for batch in data.split("train")])
    assert train.dtype == torch.float32
    assert train.mean(0).abs().max() < 1e-5
    np.testing.assert_allclose(train.std(0, unbiased=False), 1, atol=1e-5)
    everything = torch.cat([b.targets for name in ("train", "val", "test") for b in data.split(name)])
    restored = everything.double() * torch.tensor(target.std) + torch.tensor(target.mean)
    np.testing.assert_allclose(restored[:, 0].sort().values, y[:, 0], atol=1e-4)


def test_other_targets_stay_in_original_units():
    """Non-negative targets are not standardised."""

    class Waiting(Table):
        def train(self):
            return Samples(self.inputs, self.targets), TargetSpec("non_negative", 1)

    y = torch.rand(500, 1) * 9
    data = DataModule(Waiting(vectors(), y), DataSettings(), seed=0, device=CPU)
    assert data.spec.target.mean == ()
    assert set(torch.cat([b.targets for b in data.split("test")]).flatten().tolist()) <= set(y.flatten().tolist())


def test_infinite_values_are_refused():
    """An infinite feature or target is one line that names it."""
    x = vectors()
    x[:, 2] = float("inf")
    with pytest.raises(ConfigError, match="feature 2 has infinite values"):
        module(x)
    with pytest.raises(ConfigError, match="a target has infinite values"):
        module(vectors(), torch.full((500, 1), float("inf")))


def test_inputs_of_another_shape_are_refused():
    """New inputs that do not fit the model are one line with both shapes."""
    with pytest.raises(ConfigError, match=r"inputs of shape \(4,\) do not fit; expected \(5,\)"):
        module(vectors()).transform(torch.zeros(3, 4))
