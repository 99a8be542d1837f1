"""What a search may choose: the words of the command line as fixed values, parameters and repeats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from dlrun.registry import ConfigError, did_you_mean
from dlrun.repeats import REPEATS

TAGS = ("log",)
EDGE = 0.01  # of a range, as far as a value counts as lying on its edge
DIGITS = 6  # of a value from an interval, which keeps words readable


@dataclass(frozen=True)
class Parameter:
    """A setting that is searched.

    Args:
        key: as on the command line, with the + of a new key.
        kind: "float", "int", or "choice".
        low, high: ends of the range, both included; 0 for a choice.
        step: between the values of a range; None: any value.
        log: sampled evenly on a logarithmic scale.
        choices: the values of a choice as they are written.
    """

    key: str
    kind: Literal["float", "int", "choice"]
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.key.lstrip("+")

    def suggest(self, trial: Any) -> Any:
        """The value that an Optuna trial has for this parameter; of a trial that goes on, the one it had."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.name, list(self.choices))
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def word(self, value: Any) -> str:
        """`key=value` for the command line."""
        if self.kind == "float":
            value = float(f"{value:.{12 if self.step else DIGITS}g}")
            value = min(max(value, self.low), self.high)
        return f"{self.key}={value}"

    def values(self) -> list[Any]:
        """All values. Raises ConfigError for an interval, which has no end of them."""
        if self.kind == "choice":
            return list(self.choices)
        if self.step is None:
            raise ConfigError(f"sweeper.sampler: grid cannot sample {self.name}, an interval; write a range or a list")
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        exact = [low + n * step for n in range(int((Decimal(str(self.high)) - low) / step) + 1)]
        return [int(value) if self.kind == "int" else float(value) for value in exact]

    def edge(self, value: Any) -> str:
        """`lower` or `upper` if a value lies on that end of the range, else nothing."""
        if self.kind == "choice" or self.low == self.high:
            return ""
        low, high, at = (math.log(x) if self.log else float(x) for x in (self.low, self.high, value))
        share = (at - low) / (high - low)
        return "lower" if share <= EDGE else "upper" if share >= 1 - EDGE else ""


@dataclass(frozen=True)
class Space:
    """The words of a search.

    Args:
        entries: by key, in the order of the command line: a fixed word, a parameter, or the words of a repeat.
    """

    entries: Mapping[str, str | Parameter | tuple[str, ...]]

    @property
    def parameters(self) -> list[Parameter]:
        return [entry for entry in self.entries.values() if isinstance(entry, Parameter)]

    @property
    def repeats(self) -> list[tuple[str, ...]]:
        """The words of each run of a trial: one empty tuple where nothing is repeated."""
        return list(itertools.product(*(entry for entry in self.entries.values() if isinstance(entry, tuple))))

    def words(self, values: Mapping[str, Any], repeat: int) -> list[str]:
        """The command line of run number `repeat` of a trial with these values by name."""
        repeated = iter(self.repeats[repeat])
        return [
            entry if isinstance(entry, str)
            else entry.word(values[entry.name]) if isinstance(entry, Parameter)
            else next(repeated)
            for entry in self.entries.values()
        ]  # fmt: skip

    def settings(self, values: Mapping[str, Any]) -> list[str]:
        """The fixed words and those of the parameters, without the repeats."""
        words = self.words(values, 0)
        return [word for word, entry in zip(words, self.entries.values(), strict=True) if not isinstance(entry, tuple)]

    def corners(self) -> list[list[str]]:
        """Command lines that hold each value of each choice at least once, to find out early which cannot be composed."""
        first = {p.name: p.choices[0] if p.choices else p.low for p in self.parameters}
        others = [{**first, p.name: choice} for p in self.parameters for choice in p.choices[1:]]
        return [self.words(values, 0) for values in (first, *others)]

    def describe(self) -> dict[str, Any]:
        """As JSON, to be compared with that of a study."""
        return {
            key.lstrip("+"): {k: list(v) if isinstance(v, tuple) else v for k, v in vars(entry).items() if k != "key"}
            if isinstance(entry, Parameter) else list(entry) if isinstance(entry, tuple) else entry
            for key, entry in self.entries.items()
        }  # fmt: skip


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
        raise ConfigError(f"{key}: {text}: on a logarithmic scale a range has whole numbers and step 1; use an interval")
    return Parameter(key, kind, number(low), number(high), number(abs(step)), log)


def _check_bounds(key: str, text: str, low: float, high: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"{key}: {text}: expected finite bounds")
    if low > high:
        raise ConfigError(f"{key}: {text}: the lower bound is above the upper one")
    if log and low <= 0:
        raise ConfigError(f"{key}: {text}: a logarithmic scale needs a lower bound above 0")
