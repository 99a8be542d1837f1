"""Intervals, tests, effect sizes, corrections and verdicts: against SciPy, tables and values by hand."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from dlrun.sweeps.significance import (
    Difference,
    Sample,
    bootstrap,
    difference,
    hedges,
    holm,
    sample_of,
    share_of_variance,
    sign_flips,
    unpaired,
)
from dlrun.sweeps.verdict import needed_for, power, verdict

A = [0.31, 0.29, 0.35, 0.30, 0.33, 0.36]
B = [0.28, 0.27, 0.30, 0.31, 0.29, 0.30]


def by_seed(values: list[float], first: int = 0) -> dict:
    return {(seed, None, None): value for seed, value in enumerate(values, start=first)}


def by_fold(values: list[float]) -> dict:
    return {(0, fold, None): value for fold, value in enumerate(values)}


def compare(a: list[float], b: list[float], **options) -> Difference:
    return difference(by_seed(a), by_seed(b), confidence=0.95, **options)


def said(found: Difference, alpha: float = 0.05, factor: int = 1, higher: bool = False) -> str:
    adjusted = None if found.p is None else min(1.0, factor * found.p)
    return verdict(found, adjusted, factor, alpha, higher)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/check_statistics.py as a module."""
    path = Path(__file__).parents[2] / "scripts" / "check_statistics.py"
    spec = importlib.util.spec_from_file_location("check_statistics", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n", [2, 3, 6])
def test_a_paired_t_test_is_scipys(n: int) -> None:
    """p and interval of pairs of seeds are those of scipy.stats.ttest_rel."""
    found = compare(A[:n], B[:n])
    expected = stats.ttest_rel(A[:n], B[:n])
    interval = expected.confidence_interval(0.95)
    assert (found.n, found.paired, found.test) == (n, True, "paired t")
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.mean == pytest.approx(np.mean(np.subtract(A[:n], B[:n])))


def test_only_common_seeds_are_paired() -> None:
    """Seeds 2 to 5 of one row and 0 to 5 of the other: four pairs; without a partner a seed counts for nothing."""
    found = difference(by_seed(A[2:], first=2), by_seed(B), confidence=0.95)
    assert found.n == 4
    assert found.p == pytest.approx(stats.ttest_rel(A[2:], B[2:]).pvalue, rel=1e-9)


def test_rows_without_common_seeds_are_compared_unpaired() -> None:
    """p and interval are those of scipy.stats.ttest_ind with unequal variances, and the result says that it is unpaired."""
    found = difference(by_seed(A), by_seed(B[:4], first=100), confidence=0.9)
    expected = stats.ttest_ind(A, B[:4], equal_var=False)
    interval = expected.confidence_interval(0.9)
    assert (found.n, found.paired, found.test) == (4, False, "Welch's t")
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_sign_flips_are_scipys_exact_permutation_test() -> None:
    """p of all 64 flips, and 2 of 8 by hand for three differences of one sign."""
    values = np.subtract(A, B)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flips(values) == pytest.approx(expected.pvalue, rel=1e-12)
    assert compare(A, B, test="sign_flip").p == pytest.approx(expected.pvalue, rel=1e-12)
    assert sign_flips([1.0, 2.0, 4.0]) == 0.25
    assert sign_flips([1.0, 2.0, -4.0]) == 1.0


def test_many_sign_flips_are_sampled() -> None:
    """Of 30 differences 100,000 flips are drawn, the same ones each time, and p is that of the t test within 0.01."""
    values = np.random.default_rng(3).normal(0.3, 1, 30)
    assert sign_flips(values) == sign_flips(values)
    assert sign_flips(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)


def test_folds_are_corrected_for_shared_training_data() -> None:
    """Differences 1 to 5 of five folds: variance 2.5, standard error sqrt(2.5 (1/5 + 1/4)) = 1.06066, t = 2.82843 by hand."""
    found = difference(by_fold([1.0, 2.0, 3.0, 4.0, 5.0]), by_fold([0.0] * 5), confidence=0.95)
    assert (found.test, found.folds, found.signs) == ("corrected paired t", 5, None)
    assert found.p == pytest.approx(2 * stats.t.sf(2.8284271, 4), rel=1e-6)
    half = stats.t.ppf(0.975, 4) * math.sqrt(1.125)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert found.p > stats.ttest_1samp([1.0, 2.0, 3.0, 4.0, 5.0], 0).pvalue


def test_folds_that_are_missing_do_not_change_the_correction() -> None:
    """Three folds of ten: the training sets overlap as those of ten do, 1/3 + 1/9."""
    sample = sample_of(by_fold([1.0, 2.0, 3.0]), folds=10)
    assert (sample.n, sample.folds) == (3, 10)
    assert sample.error == pytest.approx(math.sqrt(1 / 3 + 1 / 9))


def test_seeds_of_a_fold_are_averaged() -> None:
    """Two seeds of two folds are two values, not four; of one fold they are two values as well."""
    cells = {(0, 0, None): 1.0, (1, 0, None): 3.0, (0, 1, None): 5.0, (1, 1, None): 5.0}
    assert sample_of(cells) == Sample((2.0, 5.0), 2)
    assert sample_of({(0, 0, None): 1.0, (1, 0, None): 3.0}) == Sample((1.0, 3.0), 0)


def test_an_interval_is_students() -> None:
    """1, 2, 3: mean 2, std 1, half width 4.30265 / sqrt(3) = 2.48414; none for one value or equal ones."""
    low, high = Sample((1.0, 2.0, 3.0)).interval(0.95)
    assert (low, high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-5)
    assert Sample((1.0,)).interval(0.95) is None
    assert Sample((1.0, 1.0)).interval(0.95) is None
    assert (Sample(()).mean, Sample(()).interval(0.95)) == (None, None)


def test_the_effect_size_is_cohens_with_hedges_correction() -> None:
    """d_z of the pairs times 0.8408 for 5 degrees of freedom; the factors are those of the exact formula."""
    values = np.subtract(A, B)
    found = compare(A, B)
    assert found.effect == pytest.approx(values.mean() / values.std(ddof=1) * 0.840763, rel=1e-4)
    assert [hedges(n) for n in (1, 2, 10)] == pytest.approx([0.0, 0.564190, 0.922746], abs=1e-5)
    assert compare(A[:2], B[:2]).effect is None
    pooled = math.sqrt((np.var(A, ddof=1) + np.var(B, ddof=1)) / 2)
    other = unpaired(Sample(tuple(A)), Sample(tuple(B)), 0.95)
    assert other.effect == pytest.approx((np.mean(A) - np.mean(B)) / pooled * hedges(10), rel=1e-9)


def test_holm_by_hand() -> None:
    """0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never smaller than the one before."""
    found = holm([0.01, 0.04, 0.03, 0.005])
    assert [p for p, _ in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [factor for _, factor in found] == [3, 1, 2, 4]
    assert holm([]) == []
    assert holm([0.9, 0.8])[0] == (1.0, 1)


@pytest.mark.parametrize(("effect", "paired", "n"), [(0.5, True, 34), (0.8, True, 15), (1.0, True, 10),
                                                     (0.5, False, 64), (0.8, False, 26), (1.0, False, 17)])  # fmt: skip
def test_the_number_of_seeds_is_that_of_the_tables(effect: float, paired: bool, n: int) -> None:
    """Seeds for 80 % power at 5 %, two-sided, as in tables of power: n suffice, n - 1 do not."""
    assert power(effect, n, 0.05, paired=paired) >= 0.8 > power(effect, n - 1, 0.05, paired=paired)


def test_power_without_an_effect_is_the_level() -> None:
    """And with a huge one it is 1, also where SciPy's tail gives no number."""
    assert power(0.0, 7, 0.03) == pytest.approx(0.03, rel=1e-6)
    assert power(1e6, 5, 0.05) == pytest.approx(1.0)
    assert power(1.0, 10, 0.05, folds=10) < power(1.0, 10, 0.05)
    assert share_of_variance(10, 10) == pytest.approx(1 / 10 + 1 / 9)


def test_verdicts_follow_the_direction_of_the_metric() -> None:
    """A row whose loss is lower is better, one whose accuracy is lower is worse."""
    low, high = [0.1, 0.11, 0.12, 0.1], [0.3, 0.32, 0.31, 0.33]
    assert said(compare(low, high)) == "better"
    assert said(compare(high, low)) == "worse"
    assert said(compare(high, low), higher=True) == "better"
    assert said(compare(low, high), higher=True) == "worse"


def test_one_seed_gives_no_verdict() -> None:
    """However large the difference; and neither does a row without a run."""
    assert said(compare([0.1], [0.9])) == "no verdict (n = 1)"
    assert said(compare([], [0.9])) == "no verdict (n = 0)"
    assert said(compare([0.1, 0.1], [0.9])) == "no verdict (n = 1)"


def test_few_seeds_are_not_enough() -> None:
    """A clear trend of three seeds asks for more; as many more as the observed effect needs, Holm counted in."""
    found = compare([0.30, 0.34, 0.31], [0.29, 0.31, 0.30])
    needed = needed_for(found, 0.05)
    assert power(found.effect, needed, 0.05) >= 0.8 > power(found.effect, needed - 1, 0.05)
    assert said(found) == f"not enough seeds (about {needed - 3} more)"
    assert needed_for(found, 0.05 / 10) > needed
    assert said(found, factor=10) == f"not enough seeds (about {needed_for(found, 0.005) - 3} more)"
    two = compare([0.30, 0.31], [0.31, 0.33])
    assert said(two) == "not enough seeds (about 3 more)"  # five would show a difference of two standard deviations


def test_many_seeds_without_a_difference() -> None:
    """Seeds that scatter around no difference: none shown, rather than a call for hundreds of seeds."""
    values = np.random.default_rng(1).normal(0, 1, 12)
    values -= values.mean() - 0.01
    found = compare(list(values + 5), [5.0] * 12)
    assert said(found) == "no difference shown"
    assert said(compare([0.30, 0.31, 0.305], [0.305, 0.30, 0.31])) == "no difference shown"


def test_identical_runs_differ_in_nothing() -> None:
    """p is 1 and nothing is divided by zero."""
    found = compare(A, A)
    assert (found.p, found.mean, found.low, found.effect) == (1.0, 0.0, None, None)
    assert said(found) == "no difference shown (identical)"


def test_equal_differences_are_not_certain() -> None:
    """Three pairs that differ by the same amount, as accuracies of few samples do: a t test would be sure, sign flips give
    0.25; six pairs suffice."""
    found = compare([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    assert (found.test, found.p, found.low) == ("sign flips", 0.25, None)
    assert said(found) == "not enough seeds (about 3 more)"
    six = compare([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], [0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert six.p == 2 / 64
    assert said(six) == "worse"


def test_sign_flips_of_five_seeds_cannot_decide() -> None:
    """2 of 32 is above 5 %: at least one more seed is asked for."""
    found = compare([3.0, 4.0, 5.0, 4.5, 3.5], [1.0, 1.1, 1.2, 1.3, 1.0], test="sign_flip")
    assert found.p == 2 / 32
    assert said(found) == "not enough seeds (about 1 more)"


def test_rows_that_do_not_vary_and_share_no_seed() -> None:
    """Two constants: no test can tell anything, and nothing is divided by zero."""
    found = difference(by_seed([1.0, 1.0]), by_seed([2.0, 2.0], first=9), confidence=0.95)
    assert (found.p, found.mean) == (None, -1.0)
    assert said(found) == "no verdict (no variation)"


def test_too_few_folds_are_called_folds() -> None:
    """The verdict of a cross-validation asks for folds."""
    found = difference(by_fold([1.0, 2.5, 1.2]), by_fold([0.2, 0.9, 0.3]), confidence=0.95)
    assert said(found).startswith("not enough folds (about ")


def test_the_bootstrap_is_that_of_the_pairs() -> None:
    """A percentile interval near the normal one for many pairs, the same each time; none for one pair."""
    values = np.random.default_rng(2).normal(1, 1, 400)
    low, high = bootstrap(by_seed(list(values)), by_seed([0.0] * 400), 0.95)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * 0.05, values.mean() + 1.96 * 0.05), abs=0.01)
    assert bootstrap(by_seed([1.0]), by_seed([0.0]), 0.95) is None


@pytest.mark.parametrize(("rows", "seeds", "baseline"), [(2, 3, False), (5, 5, False), (5, 3, True)])
def test_no_difference_is_rarely_called_one(script: ModuleType, rows: int, seeds: int, baseline: bool) -> None:
    """Of 400 simulated sweeps without a difference at most 6.5 % and two standard errors call any row better or worse."""
    share = script.share_of_false_verdicts(rows, seeds, "normal", 400, baseline)
    assert share <= 0.065 + 2 * math.sqrt(0.065 * 0.935 / 400)


def test_the_best_of_ten_is_not_better_by_choice(script: ModuleType) -> None:
    """Holm over the nine comparisons with the best alone would find a difference in a tenth of the sweeps; all pairs count."""
    assert script.share_of_false_verdicts(10, 5, "normal", 200, False) <= 0.065


def test_folds_are_not_taken_for_independent(script: ModuleType) -> None:
    """Of 600 cross-validations whose folds are correlated at most 6.5 % and two standard errors find a difference that is
    not there; the plain t test would in more than a tenth."""
    assert script.share_over_folds(5, 600) <= 0.065 + 2 * math.sqrt(0.065 * 0.935 / 600)


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 5), (1.0, 10), (2.0, 5)])
def test_a_known_difference_is_found_as_often_as_predicted(script: ModuleType, effect: float, seeds: int) -> None:
    """Of 400 simulated sweeps the share that shows it is the power of the test within three standard errors."""
    expected = power(effect, seeds, 0.05)
    share = script.share_of_found_differences(effect, seeds, 400)
    assert abs(share - expected) <= 3 * math.sqrt(expected * (1 - expected) / 400)
