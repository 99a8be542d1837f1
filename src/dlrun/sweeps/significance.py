"""Whether two groups of runs differ: intervals, tests, effect sizes, and how many seeds would be needed.

SciPy is imported when it is first needed; nothing here imports torch.

| what decides                | when                                                                                      |
| paired t test               | runs of common seeds; the interval is its own, so both say the same                       |
| sign flips, exact           | on request (`sign_flip`), and where all pairs differ by the same amount                   |
| corrected paired t test     | runs over folds: they share training data (Nadeau and Bengio, Machine Learning 52, 2003)  |
| Welch's t test              | too few common seeds, or other splits                                                     |
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POWER = 0.8
LARGE = 2.0  # standard deviations: a difference that five pairs show with that power
FURTHER = 30  # seeds: a difference that takes more of them is small beside its spread
EXACT = 20  # pairs whose sign flips are all tried; of more, a sample
RESAMPLES = 10_000

Cells = Mapping[tuple[Hashable, Hashable, Hashable], float]
"""Values of runs by seed, fold and the values of other settings that differ within a row."""


@dataclass(frozen=True)
class Sample:
    """Values to conclude from, one of each seed, or of each fold.

    Args:
        values: finite.
        folds: how many the cross-validation has; 0: the values are of seeds.
    """

    values: tuple[float, ...]
    folds: int = 0

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return math.fsum(self.values) / self.n if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None below two values. Exactly 0 where values differ by rounding only."""
        if self.n < 2:
            return None
        mean = math.fsum(self.values) / self.n
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (self.n - 1))
        return std if std > 1e-12 * max(map(abs, self.values)) else 0.0

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.std is None else self.std * math.sqrt(share_of_variance(self.n, self.folds))

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """The t interval of the mean; None below two values, or where all are equal."""
        if self.mean is None or not self.error:
            return None
        half = quantile((1 + confidence) / 2, self.n - 1) * self.error
        return self.mean - half, self.mean + half


def share_of_variance(n: int, folds: int = 0) -> float:
    """The variance of a mean of n values in units of theirs. Training sets of folds overlap: the ratio of validation to
    training samples, 1 / (folds - 1), is added."""
    return 1 / n + (1 / (folds - 1) if folds > 1 else 0.0)


def sample_of(cells: Cells, folds: int = 0) -> Sample:
    """One value of each seed, the mean over the other settings; of each fold, over seeds too, where there are several folds.

    `folds`: how many the cross-validation has, if known.
    """
    several = len({fold for _, fold, _ in cells}) > 1
    groups: dict[Hashable, list[float]] = {}
    for (seed, fold, _), value in cells.items():
        groups.setdefault(fold if several else seed, []).append(value)
    values = tuple(math.fsum(group) / len(group) for group in groups.values())
    return Sample(values, max(folds, len(values)) if several else 0)


@dataclass(frozen=True)
class Difference:
    """How the runs of one row differ from those of another, in units of the metric.

    Attributes:
        n: pairs; where there are none, runs of the smaller row.
        paired: whether runs of the same seed (and fold) were compared with each other.
        folds: as in `Sample`.
        mean: of the differences. low, high: its interval; None where there is none.
        effect: in standard deviations (paired: Cohen's d_z) with Hedges' correction; None below three values.
        p: of the test that decides. test: its name. signs: p of the sign flips, of pairs of seeds.
    """

    n: int
    paired: bool
    folds: int = 0
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    effect: float | None = None
    p: float | None = None
    test: str = ""
    signs: float | None = None


def difference(
    a: Cells, b: Cells, *, confidence: float, test: str = "t", folds: int = 0, brief: bool = False
) -> Difference:
    """How `a` differs from `b` (a - b): paired if at least two, and half of the smaller row, have a partner.

    `test`: `t` or `sign_flip`. `folds`: as for `sample_of`. `brief`: p is all that is wanted.
    """
    common = [key for key in a if key in b]
    pairs = sample_of({key: a[key] - b[key] for key in common}, folds)
    if pairs.n < 2 or 2 * len(common) < min(len(a), len(b)):
        return unpaired(sample_of(a, folds), sample_of(b, folds), confidence)
    signs = None if pairs.folds or (brief and test == "t") else sign_flips(pairs.values)
    p, name = _paired_p(pairs, test, signs)
    if brief:
        return Difference(pairs.n, True, pairs.folds, pairs.mean, p=p, test=name)
    low, high = pairs.interval(confidence) or (None, None)
    effect = (
        hedges(pairs.n - 1) * pairs.mean / pairs.std if pairs.n > 2 and pairs.mean is not None and pairs.std else None
    )
    return Difference(pairs.n, True, pairs.folds, pairs.mean, low, high, effect, p, name, signs)


def _paired_p(pairs: Sample, test: str, signs: float | None) -> tuple[float, str]:
    """p and the name of the test that decides."""
    if not any(pairs.values):
        return 1.0, "identical"
    if not pairs.error or pairs.mean is None:  # a t test of equal differences would be sure after two of them
        return sign_flips(pairs.values), "sign flips"
    if signs is not None and test == "sign_flip":
        return signs, "sign flips"
    return t_p(pairs.mean / pairs.error, pairs.n - 1), "corrected paired t" if pairs.folds else "paired t"


def unpaired(a: Sample, b: Sample, confidence: float) -> Difference:
    """Welch's test of two rows without common seeds; no p below two values in either, or where neither varies."""
    n = min(a.n, b.n)
    if a.mean is None or b.mean is None:
        return Difference(n, False)
    mean = a.mean - b.mean
    if a.error is None or b.error is None or a.std is None or b.std is None or not (a.error or b.error):
        return Difference(n, False, max(a.folds, b.folds), mean)
    error = math.hypot(a.error, b.error)
    freedom = error**4 / (a.error**4 / (a.n - 1) + b.error**4 / (b.n - 1))
    half = quantile((1 + confidence) / 2, freedom) * error
    pooled = math.sqrt(((a.n - 1) * a.std**2 + (b.n - 1) * b.std**2) / (a.n + b.n - 2))
    effect = hedges(a.n + b.n - 2) * mean / pooled if a.n + b.n > 4 else None
    folds = max(a.folds, b.folds)
    return Difference(n, False, folds, mean, mean - half, mean + half, effect, t_p(mean / error, freedom), "Welch's t")


def quantile(probability: float, freedom: float) -> float:
    """Of Student's t distribution."""
    from scipy import special

    return float(special.stdtrit(freedom, probability))


def t_p(t: float, freedom: float) -> float:
    """Two-sided p of Student's t."""
    from scipy import special

    return float(2 * special.stdtr(freedom, -abs(t)))


def sign_flips(values: Sequence[float]) -> float:
    """Two-sided p of the mean of paired differences: the share of all ways to flip their signs that give one at least as
    far from 0. Of more than 20 values, of 100,000 ways drawn by a fixed seed, the one at hand counted in."""
    import numpy as np

    given = np.asarray(values, dtype=np.float64)
    limit = abs(given.sum()) - 1e-9 * np.abs(given).sum()  # ways that are equal but for rounding count
    if len(given) <= EXACT:
        sums = given[:1]
        for value in given[1:]:  # the first keeps its sign: flipping all of them changes nothing
            sums = np.concatenate((sums + value, sums - value))
        return float((np.abs(sums) >= limit).mean())
    generator, drawn, extreme = np.random.default_rng(0), 100_000, 0
    for _ in range(10):
        signs = generator.integers(0, 2, (drawn // 10, len(given)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ given) >= limit).sum())
    return (1 + extreme) / (1 + drawn)


def bootstrap(a: Cells, b: Cells, confidence: float) -> tuple[float, float] | None:
    """Percentile interval of the mean paired difference, for the eye: of three pairs it leaves 0 out in a quarter of the
    cases without a difference. None below two pairs of seeds."""
    import numpy as np

    pairs = sample_of({key: a[key] - b[key] for key in a if key in b})
    if pairs.n < 2 or pairs.folds:
        return None
    means = np.asarray(pairs.values)[_resampled(pairs.n)].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@functools.lru_cache(maxsize=8)
def _resampled(n: int) -> Any:
    """Which of n values each resample consists of, (RESAMPLES, n)."""
    import numpy as np

    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))


def hedges(freedom: int) -> float:
    """The factor that takes the bias out of a standardised difference; 0 for one degree of freedom."""
    if freedom < 2:
        return 0.0
    return math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)


def holm(p: Sequence[float]) -> list[tuple[float, int]]:
    """Of each p value the one adjusted for their number (Holm's method), and the factor it was multiplied by."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted: list[tuple[float, int]] = [(1.0, 1)] * len(p)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = (largest, len(p) - rank)
    return adjusted
