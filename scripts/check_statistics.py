"""Checks the verdicts of action=compare on simulated sweeps: python scripts/check_statistics.py

Without a difference no row may be called better or worse in more than 6.5 % of the sweeps (5 % is aimed at); with a known
one, the share of sweeps that show it must be what the power of the test predicts.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dlrun.sweeps.comparison import Comparison
from dlrun.sweeps.leaderboard import Leaderboard
from dlrun.sweeps.records import Record
from dlrun.sweeps.verdict import power

LIMIT = 0.065
SWEEPS = 1000
NOISES = ("normal", "skewed", "heavy")


def simulated(values: np.ndarray, repeated: str = "seed") -> Leaderboard:
    """A leaderboard of rows x seeds values of val/loss; or x folds, if `repeated` is data.fold."""
    jobs = []
    for row, own in enumerate(values):
        for seed, value in enumerate(own):
            settings = {"optimizer.lr": str(row), repeated: str(seed)}
            job = Record(Path("sweep"), settings, "finished", "val/loss", float(value), {})
            job.__dict__.update(config={}, split_hashes={})  # there is no folder to read them from
            jobs.append(job)
    return Leaderboard(Path("sweep"), jobs)


def draw(generator: np.random.Generator, noise: str, rows: int, seeds: int) -> np.ndarray:
    """Values without a difference between rows: what a seed does to all of them, and noise of each run."""
    draws = {
        "normal": generator.standard_normal,
        "skewed": lambda size: generator.exponential(size=size),
        "heavy": lambda size: generator.standard_t(3, size=size),
    }
    return generator.standard_normal(seeds) + draws[noise]((rows, seeds))


def share_of_false_verdicts(rows: int, seeds: int, noise: str, sweeps: int, baseline: bool, test: str = "t") -> float:
    """The share of sweeps in which any row is called better or worse though none is."""
    generator = np.random.default_rng([rows, seeds, NOISES.index(noise), baseline])
    false = 0
    for _ in range(sweeps):
        board = simulated(draw(generator, noise, rows, seeds))
        row = next(row for row in board.rows if row.settings["optimizer.lr"] == "0") if baseline else None
        comparison = Comparison(board, row, test)
        false += comparison.count("better") + comparison.count("worse") > 0
    return false / sweeps


def share_of_found_differences(effect: float, seeds: int, sweeps: int) -> float:
    """The share of sweeps in which a row that is worse by `effect` standard deviations of the pairwise differences is called
    worse than the baseline."""
    generator = np.random.default_rng([seeds, round(100 * effect)])
    found = 0
    for _ in range(sweeps):
        values = draw(generator, "normal", 2, seeds)
        values[1] += effect * math.sqrt(2)  # the difference of two runs has a variance of 2
        board = simulated(values)
        baseline = next(row for row in board.rows if row.settings["optimizer.lr"] == "0")
        found += Comparison(board, baseline).count("worse")
    return found / sweeps


def share_over_folds(folds: int, sweeps: int) -> float:
    """The share of cross-validations without a difference in which the other row is called better or worse. Differences of two
    folds are correlated by 1 / folds, since their training sets overlap (the assumption of Nadeau and Bengio)."""
    generator = np.random.default_rng(folds)
    false = 0
    for _ in range(sweeps):
        values = np.zeros((2, folds))
        shared = generator.standard_normal() * math.sqrt(1 / folds)
        values[1] = shared + generator.standard_normal(folds) * math.sqrt(1 - 1 / folds)
        comparison = Comparison(simulated(values, "data.fold"))
        false += comparison.count("better") + comparison.count("worse") > 0
    return false / sweeps


def checks(sweeps: int, noises: Sequence[str] = NOISES) -> Iterator[tuple[str, float, bool]]:
    """What was simulated, the share, and whether it is within its bound."""
    for noise in noises:
        for rows in (2, 3, 5, 10):
            for seeds in (3, 5, 10):
                for baseline in (False, True):
                    share = share_of_false_verdicts(rows, seeds, noise, sweeps, baseline)
                    against = "baseline" if baseline else "best"
                    what = f"no difference, {noise} noise, {rows} rows, {seeds} seeds, against the {against}"
                    yield f"{what} (<= {LIMIT})", share, share <= LIMIT
    for folds in (3, 5, 10):
        share = share_over_folds(folds, sweeps)
        yield f"no difference, {folds} folds (<= {LIMIT})", share, share <= LIMIT
    for effect in (0.5, 1.0, 1.5, 2.0):
        for seeds in (3, 5, 10, 20):
            share, expected = share_of_found_differences(effect, seeds, sweeps), power(effect, seeds, 0.05)
            spread = 3.3 * math.sqrt(expected * (1 - expected) / sweeps) + 1 / sweeps
            yield (
                f"difference of {effect} sd, {seeds} seeds, predicted {expected:.3f}",
                share,
                abs(share - expected) <= spread,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=SWEEPS, help="of each kind")
    parser.add_argument("--noise", nargs="+", choices=NOISES, default=NOISES, help="what runs scatter by")
    options = parser.parse_args()
    wrong = 0
    for what, share, right in checks(options.sweeps, options.noise):
        print(f"{share:.3f}  {what}{'' if right else '  OUT OF BOUNDS'}", flush=True)
        wrong += not right
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
