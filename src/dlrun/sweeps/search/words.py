"""From the words of the command line, as Hydra understands them, to the space of a search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from dlrun.registry import ConfigError, did_you_mean
from dlrun.repeats import REPEATS
from dlrun.sweeps.search.space import Parameter, Space

TAGS = ("log",)


def read_space(overrides: Sequence[Override]) -> Space:
    """The space of the words as Hydra understands them; of a key given twice, the last one counts.

    Raises ConfigError for a range without values, bounds the wrong way round, a logarithm of zero, a tag that means nothing
    here, or words none of which is searched.
    """
    entries: dict[str, str | Parameter | tuple[str, ...]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            entries[key] = override.input_line or f"{key}={override.get_value_element_as_str()}"
        elif key.lstrip("+") in REPEATS:
            entries[key] = _repeat(override)
        else:
            entries[key] = _parameter(override)
    space = Space(entries)
    if not space.parameters:
        raise ConfigError(
            "hydra/sweeper=optuna: no setting is searched; give one an interval, a range or a list, such as "
            "optimizer.lr='tag(log,interval(1e-4,1e-1))'"
        )
    return space


def _repeat(override: Override) -> tuple[str, ...]:
    key, text = override.get_key_element(), override.get_value_string()
    if not override.is_discrete_sweep():
        raise ConfigError(f"{key}: got {text}; it is repeated, not searched: write a list or a range")
    words = tuple(dict.fromkeys(f"{key}={value}" for value in override.sweep_string_iterator()))
    if not words:
        raise ConfigError(f"{key}: {text} holds no value")
    return words


def _parameter(override: Override) -> Parameter:
    key, text, sweep = override.get_key_element(), override.get_value_string(), override.value()
    tags = set(getattr(sweep, "tags", ()))
    for tag in tags - set(TAGS):
        raise ConfigError(f"{key}: unknown tag '{tag}' in {text}; allowed: {', '.join(TAGS)}{did_you_mean(tag, TAGS)}")
    if isinstance(sweep, IntervalSweep):
        return _interval(key, text, sweep, "log" in tags)
    if isinstance(sweep, RangeSweep):
        return _range(key, text, sweep, "log" in tags)
    if tags:
        raise ConfigError(f"{key}: tag(log, ...) is for an interval or a range, not for a list ({text})")
    if isinstance(sweep, ChoiceSweep):
        sweep.shuffle = False  # the order means nothing to a search
    choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise ConfigError(f"{key}: {text} holds no value")
    return Parameter(key, "choice", choices=choices)


def _interval(key: str, text: str, sweep: IntervalSweep, log: bool) -> Parameter:
    assert sweep.start is not None
    assert sweep.end is not None
    _check_bounds(key, text, sweep.start, sweep.end, log)
    if sweep.start == sweep.end:
        raise ConfigError(f"{key}: {text} holds one value; write {key}={sweep.start}")
    if isinstance(sweep.start, int) and isinstance(sweep.end, int):
        return Parameter(key, "int", sweep.start, sweep.end, 1, log)
    return Parameter(key, "float", sweep.start, sweep.end, None, log)


def _range(key: str, text: str, sweep: RangeSweep, log: bool) -> Parameter:
    numbers = (sweep.start, sweep.stop, sweep.step)
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) or not sweep.step:
        raise ConfigError(f"{key}: {text}: expected finite numbers and a step other than 0")
    start, stop, step = (Decimal(str(number)) for number in numbers)
    count = math.ceil((stop - start) / step)
    if count < 1:
        raise ConfigError(f"{key}: {text} holds no value")
    kind: Literal["int", "float"] = "int" if all(isinstance(number, int) for number in numbers) else "float"
    number = int if kind == "int" else float
    low, high = sorted((start, start + (count - 1) * step))
    _check_bounds(key, text, float(low), float(high), log)
    if log and (kind, abs(step)) != ("int", 1):
        raise ConfigError(
            f"{key}: {text}: on a logarithmic scale a range has whole numbers and step 1; use an interval"
        )
    return Parameter(key, kind, number(low), number(high), number(abs(step)), log)


def _check_bounds(key: str, text: str, low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{key}: {text}: expected finite bounds")
    if low > high:
        raise ConfigError(f"{key}: {text}: the lower bound is above the upper one")
    if log and low <= 0:
        raise ConfigError(f"{key}: {text}: a logarithmic scale needs a lower bound above 0")
