"""The command of a sweep: the first file in its folder, so that a sweep can be continued wherever it was stopped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.registry import ConfigError

FILE = "sweep.yaml"
PASSING = ("debug", "trust_imports")  # about one command, not about the runs
_PLACING = (
    "hydra.sweep.subdir",
    "hydra/sweeper",
    "hydra.sweeper.",
)  # what of Hydra's settings numbers and places the runs


@dataclass(frozen=True)
class Manifest:
    """What a sweep was started with.

    Args:
        words: its overrides; their order numbers the runs.
        hydra: its overrides of Hydra's own settings, as far as they number and place the runs.
        flags: the flags before them, such as --config-dir and its folder.
    """

    words: list[str] = field(default_factory=list)
    hydra: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, words: Iterable[str], hydra: Iterable[str], flags: Iterable[str]) -> Manifest:
        """Without what another command may say differently for the same runs."""
        placing = [word for word in hydra if word.lstrip("+~").startswith(_PLACING)]
        return cls(without_passing(words), placing, list(flags))

    def is_of(self, other: Manifest) -> bool:
        """Whether both give the same runs, in whatever order their settings were typed."""
        return _by_key(self.words) == _by_key(other.words) and _by_key(self.hydra) == _by_key(other.hydra)

    def __str__(self) -> str:
        return " ".join([*self.words, *self.hydra])


def without_passing(words: Iterable[str]) -> list[str]:
    """Overrides without those about one command (`debug`, `trust_imports`)."""
    return [word for word in words if word.partition("=")[0].lstrip("+") not in PASSING]


def write(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into the folder of its sweep, unless there is one."""
    import yaml

    if not (folder / FILE).is_file():
        rundir.write_text(folder / FILE, yaml.safe_dump(asdict(manifest), allow_unicode=True, sort_keys=False))


def read(folder: Path) -> Manifest | None:
    """The manifest of the sweep in `folder`; None where there is no sweep. Raises ConfigError for a damaged one."""
    import yaml

    file = folder / FILE
    if not file.is_file():
        return None
    try:
        found: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        found = None
    names = {item.name for item in fields(Manifest)}
    if not isinstance(found, dict) or set(found) != names or not all(map(_is_words, found.values())):
        raise ConfigError(f"resume: {file} is damaged; restore it from a copy of the sweep")
    return Manifest(**found)


def refuse_other(folder: Path, started: Manifest) -> None:
    """Raises ConfigError if `folder` holds another sweep, or runs that are of no sweep."""
    found = read(folder)
    if found is None and any(folder.glob("*/.hydra")):
        raise ConfigError(f"hydra.sweep.dir: '{folder}' already holds runs; choose a new folder")
    if found is not None and not found.is_of(started):
        raise ConfigError(
            f"hydra.sweep.dir: '{folder}' already holds runs of another sweep ({found}); choose a new folder, or go on with "
            f"that one by resume={folder}"
        )


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _by_key(words: list[str]) -> list[str]:
    """Sorted by setting; of one that was given twice, the order stays, since the last one counts."""
    return sorted(words, key=lambda word: word.partition("=")[0])
