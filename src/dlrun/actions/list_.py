"""Prints the catalogue. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.registry import ConfigError, did_you_mean
from dlrun.settings import catalogue_file

TOP = "config"  # the catalogue's name for the settings at the top of config.yaml: seed, device, ...


@ACTIONS.register("list")
class List(Action):
    """Prints every group and option; of one group or option also the settings with type, default and meaning.

    Args:
        group: the group to show; null: all.
        option: the option of that group to show; null: all.
    """

    def __init__(self, *, group: str | None = None, option: str | None = None) -> None:
        self.group = group
        self.option = option

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        list_options(self.group, self.option)
        return None


def read_catalogue() -> dict[str, Any]:
    """The catalogue shipped with the package."""
    return json.loads(catalogue_file().read_text())


def find(catalogue: Mapping[str, Any], group: str, option: str | None = None) -> dict[str, Any]:
    """A group, or one option of it. Raises ConfigError for an unknown one."""
    if group not in catalogue:
        raise _unknown("action.group", group, catalogue)
    found = catalogue[group]
    if option is None:
        return found
    if option not in found["options"]:
        raise _unknown("action.option", option, found["options"])
    return found["options"][option]


def _unknown(key: str, given: str, allowed: Mapping[str, Any]) -> ConfigError:
    return ConfigError(f"{key}: unknown '{given}'; allowed: {', '.join(allowed)}{did_you_mean(given, allowed)}")


def list_options(group: str | None, option: str | None) -> None:
    """Prints all groups, one group, or one option. Raises ConfigError for one that does not exist."""
    catalogue = read_catalogue()
    if group is None and option is not None:
        owners = [name for name, found in catalogue.items() if option in found["options"]]
        if len(owners) != 1:
            raise ConfigError(f"action.group: needed with action.option={option}; allowed: {', '.join(catalogue)}")
        group = owners[0]
    if group is None:
        for name, found in catalogue.items():
            _print_options(name, found)
        _print_settings(_title(TOP), TOP, catalogue[TOP]["settings"])
        _print("Settings of one option: dlrun action=list action.group=model action.option=lenet")
        return
    found = find(catalogue, group, option)
    if option is None:
        _print_options(group, found)
        _print_settings(_title(group), group, found["settings"])
    else:
        _print_option(group, option, found, find(catalogue, group)["settings"])


def _print_options(group: str, found: Mapping[str, Any]) -> None:
    if not found["options"]:
        return
    table = _table(f"{group}=", "option", "what it is")
    for name, option in found["options"].items():
        table.add_row(f"[bold]{name}[/bold]", _escape(option["about"]))
    _print(table)


def _print_option(group: str, option: str, found: Mapping[str, Any], common: list[dict[str, Any]]) -> None:
    _print(f"[bold]{group}={option}[/bold]  {_escape(found['about'])}")
    for label, text in (("Source", found["source"]), ("Shapes", found["shapes"]), ("Run", found["command"])):
        if text:
            _print(f"  {label}: {_escape(text)}")
    for key, value in found["sets"].items():
        _print(f"  Sets: {_escape(f'{key}={_show(value)}')}")
    _print_settings("Settings", group, found["settings"])
    _print_settings(_title(group), group, common)


def _title(group: str) -> str:
    return "Settings of the run itself" if group == TOP else f"Settings of every {group}"


def _print_settings(title: str, group: str, settings: list[dict[str, Any]]) -> None:
    if not settings:
        return
    table = _table(title, "setting", "type", "default", "meaning")
    for setting in settings:
        name = setting["name"] if group == TOP else f"{group}.{setting['name']}"
        cells = (name, setting["type"], _show(setting["default"]), setting["help"])
        table.add_row(*map(_escape, cells))
    _print(table)


def _show(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold cyan", box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print(what: Any) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=isinstance(what, str)).print(what)
