"""One line for every error, with the nearest match: Hydra's and OmegaConf's messages span several lines and name no match."""

from __future__ import annotations

import difflib
import io
import re
import traceback
from collections.abc import Mapping
from typing import Any

from dlrun.registry import ConfigError, did_you_mean
from dlrun.settings import GROUPS, MAPPING_GROUPS, options

SETTINGS = (
    "seed", "device", "resume", "run", "sweep", "debug", "trust_imports",
    "seeds", "folds", "fail_fast", "dry_run", "allow_large", "rerun",
)  # fmt: skip
"""At the top of config.yaml, beside the groups."""


def explain(error: Exception, argv: list[str]) -> str:
    """The one line that the user sees for `error`."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if own := _own(error):
        return str(own)
    if isinstance(error, MissingConfigException) and getattr(error, "missing_cfg_file", None):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    if out_of_memory(error):
        reason = " ".join(str(error).split())[:200] or "of this machine"
        if "CUDA" in reason or "CUDNN" in reason:
            remedy = "a smaller data.batch_size, trainer.accumulate=auto, trainer.precision=bf16 or a smaller model"
            return f"out of memory on the device ({reason}); try {remedy}"
        return f"not enough memory ({reason}); use a smaller model, data.batch_size or data set"
    if _worker_died(error):
        reason = " ".join(str(error).split())
        return f"data.workers: {reason} Use fewer workers, or data.workers=0, if memory is short; then resume the run"
    text = str(error).strip() or type(error).__name__
    if match := re.search(r"Could not override '([^']+)'", text):
        if any(word.startswith(match[1] + "={") for word in argv) and match[1] in dotted_keys():
            return f"{match[1]}: holds other entries already; new ones need a plus: +{match[1]}={{...}}"
        return _unknown_key(match[1])
    if match := re.search(r"Could not delete from config. '([^']+)' does not exist|Could not delete '([^']+)'", text):
        return _unknown_key(match[1] or match[2])
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values need -m (a sweep), or brackets where one list is meant: key=[a,b]"
    if match := re.search(r"You must specify '([^']+)'", text):
        return f"{match[1]}: no value given"
    cause = error.__cause__
    lines = [line for line in text.splitlines() if line.strip()]
    if isinstance(error, OSError):
        return file_error(error)
    if cause is not None and str(cause).strip() and lines[0].startswith("Error "):
        lines.append(str(cause).strip().splitlines()[0])
    return " ".join(line.strip() for line in lines[:2])


def _own(error: BaseException | None) -> ConfigError | None:
    """The error of our own resolver inside OmegaConf's."""
    while error is not None and not isinstance(error, ConfigError):
        error = error.__cause__ or error.__context__
    return error


def file_error(error: OSError) -> str:
    """What the system refused, and for which file: a failed write does not say it itself (a full disk, a stale handle)."""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    names = [str(name) for name in (error.filename, error.filename2) if name is not None] or _open_files(error)
    return f"{reason}: {' -> '.join(names)}" if names else reason


def _open_files(error: OSError) -> list[str]:
    """The file that the innermost function on the way to the error had open."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in frame.f_locals.values():
            if isinstance(value, io.IOBase) and isinstance(name := getattr(value, "name", None), str):
                return [name]
    return []


_OUT_OF_MEMORY = (
    "allocate memory",
    "out of memory",
    "Storage size calculation overflowed",
    "STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
)


def is_users(error: BaseException) -> bool:
    """Whether the error is about configuration, data or environment: those get one line and no traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    kinds = (ConfigError, HydraException, OmegaConfBaseException, OSError)
    return isinstance(error, kinds) or out_of_memory(error) or _worker_died(error)


def _worker_died(error: BaseException) -> bool:
    """Whether PyTorch says that the system ended one of a loader's processes."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of its device: PyTorch raises a RuntimeError for both."""
    text = str(error)
    return isinstance(error, (MemoryError, RuntimeError)) and (
        isinstance(error, MemoryError) or any(part in text for part in _OUT_OF_MEMORY)
    )


def _missing_option(error: Any) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    choices = [c for c in (error.options or options(group)) if not c.startswith("_")]
    if not group:
        return f"unknown configuration '{option}'"
    return f"{group}: unknown option '{option}'; allowed: {', '.join(choices)}{did_you_mean(option, choices)}"


def _unreadable(override: str) -> str:
    if "=" in override[1:]:
        key, _, value = override.partition("=")
        return f"cannot read the override '{override}'; quote a value with special characters: {key}=\"'{value}'\""
    return f"cannot read the override '{override}': expected key=value, such as optimizer.lr=1e-3"


def check_keys(config: Mapping[str, Any]) -> None:
    """Raises ConfigError for a group or setting that `~` took away, or `+` put beside the others."""
    needed = [*GROUPS, *SETTINGS]
    for key in needed:
        if key not in config:
            raise ConfigError(f"{key}: was removed, but every run needs it")
    for key in config:
        if key not in needed:
            raise ConfigError(_unknown_key(str(key)))
    for group in GROUPS:
        if not isinstance(config[group], Mapping):
            raise ConfigError(f"{group}: got {config[group]!r}; expected one of {', '.join(options(group))}")


def _unknown_key(key: str) -> str:
    key = key.lstrip("+~")
    if "." not in key:
        near = difflib.get_close_matches(key, _top_level(), n=1, cutoff=0.5)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"{key}: unknown group or setting; allowed: {', '.join(_top_level())}{hint}"
    group, entry = key.split(".")[:2]
    if group in MAPPING_GROUPS and entry in options(group):
        return f"{key}: {entry} is not chosen; choose it by {group}={entry}, or in a list: {group}=[{entry},...]"
    parent = key.rpartition(".")[0]
    known = dotted_keys()
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == parent]
    level = [k for k in known if k.count(".") == key.count(".")]
    near = difflib.get_close_matches(key, level, n=1, cutoff=0.6)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    allowed = f"; {parent} has: {', '.join(siblings)}" if siblings else ""
    above = next((k for k in _above(key) if k in known), "")
    if above and not siblings and not any(k.startswith(f"{above}.") for k in known):
        allowed = f"; a new entry of {above} needs a plus: +{key}=..."
    return f"{key}: unknown setting{allowed}{hint}"


def _above(key: str) -> list[str]:
    """a.b.c -> [a.b, a]"""
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _top_level() -> list[str]:
    return [
        *GROUPS,
        *(["experiment"] if options("experiment") else []),
        *SETTINGS,
    ]


def dotted_keys() -> list[str]:
    """Every dotted key of the configuration as the user chose its groups (unknown keys left out), torch-free."""
    import sys

    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from dlrun.settings import config_dir

    chosen = [a for a in sys.argv[1:] if a.partition("=")[0] in GROUPS and "=" in a and "," not in a.split("[")[0]]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return _flatten(compose("config", overrides=chosen))
    except Exception:  # the choice of groups is wrong too: then no suggestion is better than another error
        return []


def _flatten(node: Any, prefix: str = "") -> list[str]:
    found = []
    for key in node:
        dotted = f"{prefix}{key}"
        child = node._get_node(key)
        nested = hasattr(child, "keys") and not child._is_none() and not child._is_missing()
        found += [dotted, *(_flatten(child, dotted + ".") if nested else [])]
    return found
