"""What the generated sets share: drawn anew from `seed` alone, so that the data are the same in every run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dlrun import streams
from dlrun.data._base import Samples, Source
from dlrun.data._files import read_matrix
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

Labels = Literal["binary", "sign"]
SampleCount = Annotated[int, Ge(4), Le(10_000_000)]  # a generated set is made whole in memory before every run
MOST_VALUES = 200_000_000  # 0.8 GB of float32, and a few times that while they are made


class ToySource(Source):
    """A generated set of vectors; subclasses say in `draw` how.

    Args:
        seed: seed of the points (`data.split_seed`); given by dlrun.
    """

    seed: int
    feature_names: tuple[str, ...] = ("x1", "x2")

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        """Inputs (N, D), targets and what they are."""
        raise NotImplementedError

    def train(self) -> tuple[Samples, TargetSpec]:
        inputs, targets, spec = self.draw()
        inputs = inputs.float()
        if not (inputs.isfinite().all() and targets.isfinite().all()):  # NaN would pass for a missing value
            raise ConfigError(
                f"data: {type(self).__name__}'s settings give points that are not finite; choose smaller ones"
            )
        return Samples(inputs, targets), spec

    def read_inputs(self, path: Path) -> Tensor:
        """(N, D) from a text table of D numbers per line, with or without a header."""
        return read_matrix(path, len(self.feature_names))

    def generator(self) -> torch.Generator:
        return streams.generator(self.seed, f"data/{type(self).__name__}")

    def sklearn_seed(self) -> int:
        """A seed for scikit-learn's generators, which take 32 bits."""
        return streams.seed_of(self.seed, f"data/{type(self).__name__}") % 2**32


def check_classes(classes: int, samples: int) -> None:
    """Raises ConfigError unless every class gets a sample."""
    if classes > samples:
        raise ConfigError(f"data.classes: got {classes}; at most data.samples, which is {samples}")


def two_class(is_second: Tensor, labels: Labels) -> tuple[Tensor, TargetSpec]:
    """Targets (N, 1) of a two-class set from a boolean (N,): 0 and 1 (`binary`), or -1 and +1 (`sign`)."""
    targets = is_second.float().unsqueeze(1)
    return (targets if labels == "binary" else 2 * targets - 1), TargetSpec(labels, 1)


def check_values(values: int, settings: str) -> None:
    """Raises ConfigError where a set would hold more values than are made in memory; `settings`: what decides how many."""
    if values > MOST_VALUES:
        raise ConfigError(f"data: {settings} make {values:,} values; at most {MOST_VALUES:,}")
