"""Early stopping against the curriculum's literals and sequences worked out by hand."""

from __future__ import annotations

import math

import pytest

from dlrun.early_stopping import EarlyStopping


def feed(watch: EarlyStopping, values: list[float]) -> int | None:
    """Observes until it says stop; returns after which observation (from 1), None if it never does."""
    for number, value in enumerate(values, start=1):
        watch.observe(value)
        if watch.should_stop:
            return number
    return None


@pytest.mark.curriculum("R11")
def test_literals() -> None:
    """The sequence 3, 2, 1, 2, 3 with patience 1 stops after the fourth value, with the third the best."""
    watch = EarlyStopping("min", patience=1)
    assert feed(watch, [3, 2, 1, 2, 3]) == 4
    assert (watch.best, watch.best_at) == (1, 3)


@pytest.mark.parametrize(
    ("values", "direction", "patience", "min_delta", "stop", "best_at"),
    [
        ([3, 2, 1, 2, 3], "min", 2, 0.0, 5, 3),
        ([3, 2, 1, 2, 3], "min", 3, 0.0, None, 3),
        ([3, 2, 1, 2, 3], "min", None, 0.0, None, 3),
        ([1, 2, 3, 2, 1], "max", 1, 0.0, 4, 3),
        ([1, 1, 1], "min", 2, 0.0, 3, 1),  # an equal value is no improvement
        ([5, 6, 4, 6, 3], "min", 2, 0.0, None, 5),  # the count starts again
        ([1.0, 0.95, 0.92], "min", 2, 0.1, 3, 3),  # too small to go on for, and yet the best
        ([1.0, 0.95, 0.89], "min", 2, 0.1, None, 3),  # steps add up against the reference
        ([math.nan, 2, math.nan, math.nan], "min", 2, 0.0, 4, 2),
        ([math.nan, math.nan], "max", 2, 0.0, 2, 0),
        ([math.inf, 3], "min", 1, 0.0, None, 2),
    ],
)
def test_sequences(values, direction, patience, min_delta, stop, best_at) -> None:
    """Stop and best observation follow the inequalities of the docstring."""
    watch = EarlyStopping(direction, patience, min_delta)
    assert feed(watch, values) == stop
    assert watch.best_at == best_at


def test_observe_says_whether_it_is_the_best() -> None:
    """`observe` is true exactly for values better than all before."""
    watch = EarlyStopping("min", patience=5, min_delta=0.5)
    assert [watch.observe(v) for v in (3, 2, 2, 1.9, math.nan, 2.5, 1)] == [True, True, False, True, False, False, True]


def test_state_round_trip() -> None:
    """A saved watch goes on where it stood, with plain numbers in its state."""
    values = [3, 2.5, 2.6, 2.45, 2.7, 2.44, 2.8]
    whole, first, second = (EarlyStopping("min", 4, 0.1) for _ in range(3))
    feed(whole, values)
    for value in values[:3]:
        first.observe(value)
    state = first.state_dict()
    assert all(value is None or isinstance(value, (int, float)) for value in state.values())
    second.load_state_dict(state)
    feed(second, values[3:])
    assert second.state_dict() == whole.state_dict()
    assert second.should_stop
