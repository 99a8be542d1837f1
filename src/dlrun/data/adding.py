"""The adding problem: what has to be remembered lies far apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._files import read_matrix
from dlrun.data._toy import SampleCount, ToySource, check_values
from dlrun.spec import TargetSpec


@DATASETS.register("adding")
class Adding(ToySource):
    """Sequences of random values, two of which are marked; the target is the sum of these two.

    The first channel holds values uniform in [0, 1), the second marks: 1 at one place of the first half and at one of the
    second, 0 elsewhere. Whoever always says 1 has a root mean squared error of sqrt(1/6), about 0.41.

    Source: Hochreiter & Schmidhuber (1997), "Long short-term memory", section 5.4. Differs: values in [0, 1) instead of
    [-1, 1], marks 0 and 1, all sequences of one length, and the plain sum as target.

    Args:
        seed: seed of the sequences; given by dlrun.
        samples: number of sequences.
        length: steps L of a sequence.

    Shapes: inputs float32 (N, 2, L), targets float32 (N, 1).
    """

    feature_names = ()

    def __init__(
        self, seed: int, *, samples: SampleCount = 5000, length: Annotated[int, Ge(2), Le(100_000)] = 50
    ) -> None:
        check_values(2 * samples * length, "data.samples and data.length")
        self.seed, self.samples, self.length = seed, samples, length

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        generator = self.generator()
        values = torch.rand(self.samples, self.length, generator=generator)
        half = self.length // 2
        places = torch.stack(
            [
                torch.randint(half, (self.samples,), generator=generator),
                torch.randint(half, self.length, (self.samples,), generator=generator),
            ],
            1,
        )
        marks = torch.zeros(self.samples, self.length).scatter_(1, places, 1.0)
        target = values.gather(1, places).sum(1, keepdim=True)
        return torch.stack([values, marks], 1), target, TargetSpec("real", 1, ("sum",))

    def read_inputs(self, path: Path) -> Tensor:
        """(N, 2, L) from a text table of 2 * L numbers per line: the values, then the marks."""
        return read_matrix(path, 2 * self.length).view(-1, 2, self.length)
