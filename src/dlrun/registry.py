"""Registries: a name in YAML, a constructor in Python, and the constructor's signature as the only schema.

Keyword-only parameters are settings, written in YAML and checked against their annotations; all other parameters are
context, passed by dlrun (`input_shape`, `target`, ...). An entry lives in a file of its own name inside the registry's
package (a trailing underscore, as in `csv_.py`, keeps it apart from the standard library), so that looking a name up
imports that file and no other. Users add entries from outside: `import: my_module` beside `name:` in their own
YAML, or an entry point of the group `dlrun.components` that names such a module.
Settings, annotations and ConfigError are in `schema.py`; import them from here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dlrun.schema import ConfigError, Setting, argument_help, did_you_mean, settings_of, type_name, validate

__all__ = [
    "MISSING",
    "RESERVED",
    "ConfigError",
    "Registry",
    "Setting",
    "argument_help",
    "did_you_mean",
    "imports_of",
    "settings_of",
    "type_name",
    "validate",
]

RESERVED = ("name", "import")
MISSING = "???"  # OmegaConf's mark for a value that the user must give


class Registry:
    """The entries of one configuration group.

    Args:
        group: the configuration group, and the first part of every dotted key in an error.
        package: the package whose files are the entries; None for a registry filled by hand.
        common: constructor whose keyword-only parameters are settings that every entry of the group has.
    """

    def __init__(self, group: str, package: str | None, common: Callable[..., Any] | None = None) -> None:
        self.group = group
        self.package = package
        self.common = common
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that files a class or function under `name`. Raises ConfigError for a name already taken."""

        def wrap(constructor: Any) -> Any:
            known = self._entries.get(name)
            if name in self._files() and not self._is_own(constructor, name):
                raise ConfigError(f"{self.group} '{name}' is shipped with dlrun and cannot be shadowed")
            if known is not None and (known.__module__, known.__qualname__) != (
                constructor.__module__,
                constructor.__qualname__,
            ):
                raise ConfigError(f"{self.group} '{name}' is already registered by {known.__module__}")
            self._entries[name] = constructor
            return constructor

        return wrap

    def names(self) -> list[str]:
        """All names, sorted, without importing the entries."""
        return sorted(set(self._files()) | set(self._entries))

    def get(self, name: str, key: str | None = None) -> Callable[..., Any]:
        """The constructor of `name`; `key` is the dotted key to blame. Raises ConfigError for an unknown name."""
        if name not in self._entries and name in self._files():
            importlib.import_module(f"{self.package}.{self._files()[name]}")
        if name not in self._entries:
            _import_entry_points()
        if name not in self._entries:
            raise ConfigError(
                f"{key or self.group}.name: unknown '{name}'; allowed: {', '.join(self.names())}"
                f"{did_you_mean(name, self.names())}"
            )
        return self._entries[name]

    def settings(self, name: str) -> dict[str, Setting]:
        """The settings of `name` in signature order, those common to the group first."""
        found = settings_of(self.common) if self.common else {}
        return {**found, **settings_of(self.get(name))}

    def check(self, node: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
        """Checks a YAML node against the signature and returns its settings as plain Python values.

        Needs no data. `key` is the dotted key of the node (default: the group). Raises ConfigError for an unknown name
        or setting, a wrong type, a value out of range, a missing value, or a setting that dlrun itself provides.
        """
        key = key or self.group
        name = self._name(node, key)
        context = _context(self.get(name, key))
        settings = self.settings(name)
        for given in node:
            if given in RESERVED or given in settings:
                continue
            if given in context:
                raise ConfigError(f"{key}.{given}: is set by dlrun itself; remove it")
            raise ConfigError(self._unknown_setting(key, name, str(given), settings))
        values = {}
        for setting in settings.values():
            value = node.get(setting.name, MISSING if setting.required else setting.default)
            if isinstance(value, str) and value == MISSING:
                raise ConfigError(
                    f"{key}.{setting.name}: no value given; {name} needs one ({setting.help or 'required'})"
                )
            values[setting.name] = (
                value if setting.name not in node else validate(value, setting.annotation, f"{key}.{setting.name}")
            )
        return values

    def build(self, node: Mapping[str, Any], key: str | None = None, **context: Any) -> Any:
        """Checks `node` and calls its constructor with the settings and those of the `context` values it names."""
        values = self.check(node, key)
        constructor = self.get(node["name"], key)
        own = {name: values[name] for name in settings_of(constructor)}
        return constructor(**{name: context[name] for name in _context(constructor) if name in context}, **own)

    def build_common(self, node: Mapping[str, Any], key: str | None = None) -> Any:
        """Checks `node` and calls the group's `common` constructor with the settings that every entry has."""
        assert self.common is not None, f"{self.group} has no common settings"
        values = self.check(node, key)
        return self.common(**{name: values[name] for name in settings_of(self.common)})

    def with_setting(self, setting: str) -> list[str]:
        """The names of the entries that have `setting`; imports every entry."""
        return [name for name in self.names() if setting in self.settings(name)]

    def _name(self, node: Mapping[str, Any], key: str) -> str:
        if module := node.get("import"):
            _import_user_module(str(module), key)
        name = node.get("name")
        if not isinstance(name, str) or name == MISSING:
            raise ConfigError(f"{key}.name: no name given; allowed: {', '.join(self.names())}")
        return name

    def _unknown_setting(self, key: str, name: str, given: str, settings: Mapping[str, Setting]) -> str:
        near = did_you_mean(given, settings)
        if not near and (others := self.with_setting(given)):
            return f"{key}.{given}: {name} has no such setting; these have: {', '.join(others)}"
        allowed = ", ".join(settings) or "none"
        return f"{key}.{given}: unknown setting of {name}; allowed: {allowed}{near}"

    def _files(self) -> dict[str, str]:
        """Name -> module of the entries in the package, from the file names alone."""
        if self.package is None:
            return {}
        folder = Path(__file__).parent.joinpath(*self.package.split(".")[1:])
        return {p.stem.rstrip("_"): p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}

    def _is_own(self, constructor: Any, name: str) -> bool:
        return constructor.__module__ == f"{self.package}.{self._files()[name]}"


def imports_of(config: Any) -> set[str]:
    """Every module that a configuration imports, wherever its `import:` stands."""
    if isinstance(config, Mapping):
        own = {str(config["import"])} if config.get("import") else set()
        return own.union(*map(imports_of, config.values()))
    return set().union(*map(imports_of, config)) if isinstance(config, (list, tuple)) else set()


def _context(constructor: Callable[..., Any]) -> list[str]:
    return [
        p.name
        for p in inspect.signature(constructor).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _import_user_module(module: str, key: str) -> None:
    here = os.getcwd()
    if not {"", here} & set(sys.path):  # the installed command's path holds the folder of the command instead
        sys.path.append(here)
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever the user's module does wrong, down to a syntax error
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{key}.import: no module '{module}' in the current folder ({here}) or on PYTHONPATH"
            ) from error
        raise ConfigError(f"{key}.import: importing '{module}' failed: {_one_line(error)}") from error


@functools.cache
def _import_entry_points() -> None:
    """Imports what installed packages name in the entry-point group `dlrun.components`, once per process."""
    for entry in metadata.entry_points(group="dlrun.components"):
        try:
            entry.load()
        except Exception as error:
            raise ConfigError(f"entry point '{entry.name}' ({entry.value}) failed: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
