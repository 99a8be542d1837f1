"""The handwritten digits that come with scikit-learn: the default, for it needs no download."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._base import Samples, Source
from dlrun.data._files import read_matrix
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec


@DATASETS.register("digits")
class Digits(Source):
    """Handwritten digits: 1,797 grey images of 8x8, 10 classes, part of scikit-learn; no published test set.

    Pixels come as counts v from 0 to 16 and are stored as the byte round(255 v / 16).

    Source: Alpaydin and Kaynak (1998), "Optical Recognition of Handwritten Digits", UCI repository (its test part).

    Shapes: inputs uint8 (N, 1, 8, 8), targets int64 (N,).
    """

    def train(self) -> tuple[Samples, TargetSpec]:
        from sklearn.datasets import load_digits

        found = load_digits()
        targets = torch.from_numpy(found.target).long()
        return Samples(_pixels(torch.from_numpy(found.data)), targets), TargetSpec("class", 10, tuple("0123456789"))

    def read_inputs(self, path: Path) -> Tensor:
        """(N, 1, 8, 8) uint8 from a text table of 64 counts per line, row by row; further columns are ignored."""
        counts = read_matrix(path, 64, at_least=True)[:, :64]
        if counts.min() < 0 or counts.max() > 16:
            raise ConfigError(f"{path}: pixel counts go from {counts.min():g} to {counts.max():g}; allowed: 0 to 16")
        return _pixels(counts)


def _pixels(counts: Tensor) -> Tensor:
    return (counts * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
