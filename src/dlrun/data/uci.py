"""Regression sets with prescribed splits."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._base import Samples, Source
from dlrun.data._download import reason
from dlrun.data._files import read_matrix, read_text
from dlrun.registry import ConfigError, did_you_mean
from dlrun.spec import TargetSpec


@DATASETS.register("uci")
class UCI(Source):
    """A regression set of the UCI repository with its 20 standard splits (90 % training, 10 % test).

    Reads `<root>/uci/<dataset>/`: `data.txt` (numbers, white space between columns), `index_features.txt` and
    `index_target.txt` (column numbers), `index_train_<k>.txt` and `index_test_<k>.txt` (row numbers).

    Source: Hernandez-Lobato and Adams (2015), "Probabilistic Backpropagation"; Gal and Ghahramani (2016), "Dropout as a
    Bayesian Approximation" (splits).

    Args:
        root: folder that holds the data sets; given by dlrun.
        dataset: name of the folder: bostonHousing, concrete, energy, wine-quality-red, yacht, or one of your own.
        split: which of the prescribed splits; the validation set is drawn from its training rows.

    Shapes: inputs float32 (N, D), targets float32 (N, columns of index_target.txt), both in original units.

    Raises:
        ConfigError: no such folder or split, or files that contradict each other.
    """

    def __init__(self, root: Path, *, dataset: str = "yacht", split: Annotated[int, Ge(0)] = 0) -> None:
        self.root, self.dataset, self.split = root, dataset, split

    def train(self) -> tuple[Samples, TargetSpec]:
        folder = self._folder()
        table = _numbers(folder / "data.txt")
        features, targets = self._columns(folder, table.shape[1])
        self.feature_names = tuple(f"column {c}" for c in features)
        return Samples(table[:, features], table[:, targets]), TargetSpec("real", len(targets))

    def fixed_split(self) -> tuple[Tensor, Tensor]:
        folder = self._folder()
        rows = len(_numbers(folder / "data.txt"))
        train, test = (_indices(folder / f"index_{part}_{self.split}.txt", rows) for part in ("train", "test"))
        if torch.cat([train, test]).sort().values.tolist() != list(range(rows)):
            raise ConfigError(
                f"data.split: the rows of split {self.split} in {folder} are not each row of data.txt once"
            )
        return train, test

    def read_inputs(self, path: Path) -> Tensor:
        """(N, D) from a text table of the features in order, or of all columns as in data.txt."""
        folder = self._folder()
        width = _numbers(folder / "data.txt").shape[1]
        features, _ = self._columns(folder, width)
        table = read_matrix(path, len(features), at_least=True)
        if table.shape[1] == len(features):
            return table
        if table.shape[1] != width:
            raise ConfigError(
                f"{path}: has {table.shape[1]} columns; expected {len(features)} (features) or {width} (all)"
            )
        return table[:, features]

    def _folder(self) -> Path:
        top = self.root / "uci"
        folder = top / self.dataset
        if not os.path.isfile(folder / "data.txt"):  # Path.is_file raises for a name that is too long
            known = sorted(p.parent.name for p in top.glob("*/data.txt"))
            found = (
                f"found there: {', '.join(known)}" if known else "put there the folder with data.txt and index_*.txt"
            )
            raise ConfigError(f"data.dataset: no {folder / 'data.txt'}; {found}{did_you_mean(self.dataset, known)}")
        if not (folder / f"index_train_{self.split}.txt").is_file():
            count = len(list(folder.glob("index_train_*.txt")))
            found = f"has splits 0 to {count - 1}" if count else "has no index_train_<split>.txt"
            raise ConfigError(f"data.split: got {self.split}; {self.dataset} {found}")
        return folder

    def _columns(self, folder: Path, width: int) -> tuple[list[int], list[int]]:
        features, targets = (_indices(folder / f"index_{part}.txt", width).tolist() for part in ("features", "target"))
        if both := sorted(set(features) & set(targets)):
            raise ConfigError(f"{folder}: column {both[0]} is both in index_features.txt and in index_target.txt")
        return features, targets


def _numbers(path: Path) -> Tensor:
    """(rows, columns) float32."""
    text = read_text(path)
    try:
        values = np.loadtxt(io.StringIO(text), ndmin=2) if text.strip() else np.empty((0, 0))
    except ValueError as error:
        raise ConfigError(f"{path}: not a table of numbers ({reason(error)})") from None
    if not values.size:
        raise ConfigError(f"{path}: holds no numbers")
    table = torch.from_numpy(values).float()
    if not table.isfinite().all():
        raise ConfigError(f"{path}: holds values that are not finite or beyond float32")
    return table


def _indices(path: Path, limit: int) -> Tensor:
    """Whole numbers below `limit`, which some of the published files write as reals."""
    values = _numbers(path).flatten()
    if (values != values.round()).any() or values.min() < 0 or values.max() >= limit:
        raise ConfigError(f"{path}: holds something else than whole numbers from 0 to {limit - 1}")
    return values.long()
