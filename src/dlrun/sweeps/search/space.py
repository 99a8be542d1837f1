"""What a search may choose: the words of the command line as fixed values, parameters and repeats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from dlrun.registry import ConfigError

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

    @property
    def count(self) -> int:
        """How many values there are. Raises ConfigError for an interval, which has no end of them."""
        if self.kind == "choice":
            return len(self.choices)
        if self.step is None:
            raise ConfigError(f"sweeper.sampler: grid cannot sample {self.name}, an interval; write a range or a list")
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(self.step))) + 1

    def value(self, number: int) -> Any:
        """The value with a number from 0 to `count` - 1."""
        if self.kind == "choice":
            return self.choices[number]
        exact = Decimal(str(self.low)) + number * Decimal(str(self.step))
        return int(exact) if self.kind == "int" else float(exact)

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
