"""sweep.yaml: the command of a sweep, the first file in its folder, so that it can be continued wherever it was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.registry import ConfigError

FILE = "sweep.yaml"
FORMAT = 1
"""Of sweep.yaml and jobs.jsonl; a folder with another one is not read."""
PASSING = ("debug", "trust_imports", "fail_fast", "dry_run", "allow_large", "rerun")
"""Settings about one command, not about the runs."""
_PLACING = (
    "hydra.sweep.subdir",
    "hydra/sweeper",
    "hydra.sweeper.",
)  # what of Hydra's settings numbers and places the runs
EXTENDING = ("hydra.sweeper.trials", "hydra.sweeper.timeout", "hydra.sweeper.n_jobs")
"""Settings of a search that may change when it goes on."""
_LISTS = ("words", "hydra", "flags")


@dataclass(frozen=True)
class Manifest:
    """What a sweep was started with.

    Args:
        words: its overrides; their order numbers the runs.
        hydra: its overrides of Hydra's own settings, as far as they number and place the runs.
        flags: the flags before them, such as --config-dir and its folder.
        format: see `FORMAT`.
        code: what the code was then; see `dlrun.code_version`.
    """

    words: list[str] = field(default_factory=list)
    hydra: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    format: int = FORMAT
    code: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, words: Iterable[str], hydra: Iterable[str], flags: Iterable[str], code: dict[str, Any] | None = None
    ) -> Manifest:
        """Without what another command may say differently for the same runs."""
        placing = [word for word in hydra if word.lstrip("+~").startswith(_PLACING)]
        return cls(without_passing(words), placing, list(flags), FORMAT, code or {})

    def is_of(self, other: Manifest) -> bool:
        """Whether both give the same runs, in whatever order their settings were typed; of a search perhaps more of them."""
        return _by_key(self.words) == _by_key(other.words) and _lasting(self.hydra) == _lasting(other.hydra)

    @property
    def id(self) -> str:
        """8 hexadecimal digits that are the same for the same runs, in whatever order their settings were typed."""
        text = repr((_by_key(self.words), _lasting(self.hydra), self.flags))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def __str__(self) -> str:
        return " ".join([*self.words, *self.hydra])


def without_passing(words: Iterable[str]) -> list[str]:
    """Overrides without those about one command (see `PASSING`)."""
    return [word for word in words if word.partition("=")[0].lstrip("+") not in PASSING]


def write(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into the folder of its sweep, unless there is one."""
    import yaml

    if not (folder / FILE).is_file():
        rundir.write_text(folder / FILE, yaml.safe_dump(asdict(manifest), allow_unicode=True, sort_keys=False))


def read(folder: Path) -> Manifest | None:
    """The manifest of the sweep in `folder`; None where there is no sweep. Raises ConfigError for a damaged one, or one of
    another version of dlrun."""
    import yaml

    file = folder / FILE
    if not file.is_file():
        return None
    try:
        found: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict) or not all(_is_words(found.get(name)) for name in _LISTS):
        raise ConfigError(f"resume: {file} is damaged; restore it from a copy of the sweep")
    code = found.get("code")
    code = code if isinstance(code, dict) else {}
    if (version := found.get("format", FORMAT)) != FORMAT:
        written = f"dlrun {code['dlrun']}" if "dlrun" in code else "another version of dlrun"
        raise ConfigError(
            f"resume: {file} was written by {written} (format {version!r}; this one reads {FORMAT}); go on with that "
            "version, or start the sweep in a new folder"
        )
    return Manifest(found["words"], found["hydra"], found["flags"], FORMAT, code)


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


def _lasting(hydra: list[str]) -> list[str]:
    """Hydra's settings without how long a search goes on, which may be said anew."""
    return [word for word in _by_key(hydra) if word.partition("=")[0].lstrip("+") not in EXTENDING]


def _by_key(words: list[str]) -> list[str]:
    """Sorted by setting; of one that was given twice, the order stays, since the last one counts."""
    return sorted(words, key=lambda word: word.partition("=")[0])
