"""The handwritten digits that come with scikit-learn: the default, for it needs no download."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
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
        table = _table()
        return Samples(_pixels(table[:, :64]), table[:, 64].long()), TargetSpec("class", 10, tuple("0123456789"))

    def read_inputs(self, path: Path) -> Tensor:
        """(N, 1, 8, 8) uint8 from a text table of 64 counts per line, row by row; further columns are ignored."""
        counts = read_matrix(path, 64, at_least=True)[:, :64]
        if counts.min() < 0 or counts.max() > 16:
            raise ConfigError(f"{path}: pixel counts go from {counts.min():g} to {counts.max():g}; allowed: 0 to 16")
        return _pixels(counts)


def _table() -> Tensor:
    """64 counts and the label of each image, float64 (1797, 65), from the file in scikit-learn's package, which takes a second
    to import; from scikit-learn itself where it keeps the file elsewhere."""
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        with contextlib.suppress(OSError, EOFError, zlib.error, ValueError):
            text = gzip.decompress(Path(folder, "datasets", "data", "digits.csv.gz").read_bytes())
            table = np.fromstring(text.replace(b"\n", b","), sep=",")
            if len(table) == 1797 * 65:
                return torch.from_numpy(table).view(1797, 65)
    from sklearn.datasets import load_digits

    numbers = load_digits()
    return torch.from_numpy(np.column_stack([numbers.data, numbers.target]))


def _pixels(counts: Tensor) -> Tensor:
    return (counts * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
