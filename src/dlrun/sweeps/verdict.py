"""What a comparison of two rows says in words, and how many seeds it would take to say more."""

from __future__ import annotations

import math

from dlrun.sweeps.significance import FURTHER, LARGE, POWER, Difference, quantile, share_of_variance

BETTER, WORSE, NONE_SHOWN = "better", "worse", "no difference shown"


def verdict(found: Difference, adjusted: float | None, factor: int, alpha: float, higher_is_better: bool) -> str:
    """`better`, `worse`, `no difference shown`, `not enough seeds (about n more)` or `no verdict (n = 1)`.

    Args:
        found: of the row minus that of the one it is compared with.
        adjusted: p after Holm; factor: what Holm multiplied it by.
        alpha: level of the family of comparisons.
    """
    if found.p is None or adjusted is None or found.mean is None:
        return f"no verdict (n = {found.n})" if found.n < 2 else "no verdict (no variation)"
    if adjusted < alpha:
        return BETTER if (found.mean > 0) == higher_is_better else WORSE
    if found.test == "identical":
        return f"{NONE_SHOWN} (identical)"
    needed = needed_for(found, alpha / factor)
    if needed is None:
        return NONE_SHOWN
    what = "folds" if found.folds else "seeds"
    return f"not enough {what} (about {max(1, needed - found.n)} more)"


def needed_for(found: Difference, alpha: float) -> int | None:
    """How many pairs (unpaired: runs of each row) would show the observed difference with a power of 80 %; of two pairs, which
    tell no effect size, how many would show a difference of two standard deviations. None for more than 30 beyond those at
    hand, or if the number of pairs is not what is lacking."""
    exact = found.test == "sign flips"
    first = math.ceil(1 - math.log2(alpha)) if exact else 2  # 2 ** (1 - n) is the least p of n sign flips
    if exact and found.effect is None and found.n > 2:  # all differences are equal
        return first if first > found.n else None
    effect = LARGE if found.effect is None else abs(found.effect)
    for n in range(max(first, found.n + 1), max(first, found.n) + FURTHER + 1):
        if power(effect, n, alpha, paired=found.paired, folds=n if found.folds else 0) >= POWER:
            return n
    return None


def power(effect: float, n: int, alpha: float, *, paired: bool = True, folds: int = 0) -> float:
    """The chance that a two-sided t test at level `alpha` shows a true difference.

    Args:
        effect: in standard deviations, of the differences where they are paired.
        n: pairs, or runs of each row.
        folds: of the cross-validation, where the values are of folds.
    """
    from scipy import special

    freedom = n - 1 if paired else 2 * (n - 1)
    shift = abs(effect) / math.sqrt(share_of_variance(n, folds) * (1 if paired else 2))
    critical = quantile(1 - alpha / 2, freedom)
    missed = special.nctdtr(freedom, shift, critical) - special.nctdtr(freedom, shift, -critical)
    if math.isnan(missed):  # far out in a tail
        return 1.0 if shift > critical else 0.0
    return float(1 - missed)
