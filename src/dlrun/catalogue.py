"""The catalogue: every group, option and setting with type, default and meaning, from signatures, docstrings and YAML.

Building it imports every component; `action=list` only reads what `make catalogue` wrote (catalogue.json).

    catalogue: {group: {"settings": [setting], "options": {name: option}}}
    option: {"name", "about", "command", "source", "shapes", "sets", "settings": [setting]}
    setting: {"name", "type", "default", "help"}; a group's own settings are those that all its options have.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from dlrun.registry import RESERVED, Registry, Setting, settings_of, type_name
from dlrun.settings import GROUPS, MAPPING_GROUPS, config_dir, options

BELOW_DATA = ("data.transform", "data.augmentation")  # no YAML files: entries are written below these settings


def registries() -> dict[str, Registry]:
    """Group -> registry, in the order of the defaults list. Imports torch."""
    from dlrun.actions import ACTIONS
    from dlrun.callbacks import CALLBACKS
    from dlrun.data import DATASETS
    from dlrun.losses import LOSSES
    from dlrun.models import MODELS
    from dlrun.optimizers import OPTIMIZERS
    from dlrun.regularization import REGULARIZATION
    from dlrun.schedulers import SCHEDULERS
    from dlrun.tasks import TASKS
    from dlrun.trainer import TRAINERS
    from dlrun.transfer import TRANSFER

    first = (TASKS, LOSSES, OPTIMIZERS, SCHEDULERS, CALLBACKS, ACTIONS, TRAINERS)
    found = (*first, TRANSFER, DATASETS, MODELS, REGULARIZATION)
    return {group: next(registry for registry in found if registry.group == group) for group in GROUPS}


def read_option(group: str, option: str) -> dict[str, Any]:
    """The YAML of an option as plain values, the shared pieces of its group (`_common`) merged in."""
    from omegaconf import OmegaConf

    node = OmegaConf.load(config_dir() / group / f"{option}.yaml")
    own: Any = OmegaConf.to_container(node, resolve=False) or {}
    merged: dict[str, Any] = {}
    for entry in own.pop("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            merged |= read_option(group, entry)
    return merged | own


def header(group: str, option: str) -> tuple[str, str]:
    """What the first comment of an option's YAML says: what it is, and the command that runs it; empty if silent."""
    lines = (config_dir() / group / f"{option}.yaml").read_text().splitlines()
    first = next((line for line in lines if not line.startswith("# @package")), "")
    if not (match := re.match(r"#\s*(?P<about>\S.*?)\s*[:;.,]?\s*\(?`?(?P<command>dlrun( .*?)?)[`)]*$", first)):
        return (first.lstrip("# ").strip() if first.startswith("#") else "", "")
    return match["about"].strip(), match["command"].strip()


def option_nodes(group: str, option: str) -> dict[str, dict[str, Any]]:
    """The nodes of an option that name a component: one for most groups, several (or none) for those that compose as a
    mapping."""
    content = read_option(group, option)
    if group not in MAPPING_GROUPS:
        return {option: content} if "name" in content else {}
    return {key: node for key, node in content.items() if isinstance(node, dict) and "name" in node}


def build_catalogue() -> dict[str, Any]:
    """Everything, from the sources. Imports every component."""
    found = {group: _describe_group(group, registry) for group, registry in registries().items()}
    found["experiment"] = _describe_group("experiment", Registry("experiment", None))
    found |= {registry.group: _describe_below_data(registry) for registry in _below_data()}
    found["config"] = {"settings": _describe_top(), "options": {}}
    return json.loads(json.dumps(found))  # tuples become lists, as in the file


def _describe_group(group: str, registry: Registry) -> dict[str, Any]:
    common = settings_of(registry.common) if registry.common else {}
    described = {option: _describe_option(group, option, registry) for option in options(group)}
    return {"settings": [_describe_setting(s, s.default) for s in common.values()], "options": described}


def _describe_option(group: str, option: str, registry: Registry) -> dict[str, Any]:
    about, command = header(group, option)
    nodes = option_nodes(group, option)
    found: dict[str, Any] = {"name": option, "about": about, "command": command, "source": "", "shapes": ""}
    found |= {"sets": {}, "settings": []}
    if not nodes:  # chooses a setting of another group, or nothing
        content = {key: value for key, value in read_option(group, option).items() if key not in RESERVED}
        return found | {"sets": _flatten(content)}
    for key, node in nodes.items():
        if node["name"] not in registry.names():  # `auto`: resolved when the data are known
            continue
        constructor = registry.get(node["name"])
        found["name"] = node["name"]
        found |= _describe_docstring(constructor)
        prefix = f"{key}." if group in MAPPING_GROUPS else ""
        for setting in settings_of(constructor).values():
            described = _describe_setting(setting, node.get(setting.name, setting.default))
            found["settings"].append(described | {"name": prefix + setting.name})
        common = settings_of(registry.common) if registry.common else {}
        changed = {n: node[n] for n, s in common.items() if n in node and _plain(node[n]) != _plain(s.default)}
        found["sets"] |= {f"{group}.{n}": value for n, value in changed.items()}
    return found


def _below_data() -> tuple[Registry, ...]:
    from dlrun.data._augmentation import AUGMENTATIONS
    from dlrun.data._transform import TRANSFORMS

    return tuple(
        registry for group in BELOW_DATA for registry in (TRANSFORMS, AUGMENTATIONS) if registry.group == group
    )


def _describe_below_data(registry: Registry) -> dict[str, Any]:
    described = {}
    for name in registry.names():
        constructor = registry.get(name)
        described[name] = {
            "name": name,
            "about": _summary(constructor),
            "command": f"dlrun '{registry.group}={{{name}: {{}}}}'",
            "sets": {},
            "settings": [
                _describe_setting(s, s.default) | {"name": f"{name}.{s.name}"}
                for s in settings_of(constructor).values()
            ],
            **_describe_docstring(constructor),
        }
    return {"settings": [], "options": described}


def _describe_top() -> list[dict[str, Any]]:
    """The settings at the top of config.yaml: a plain value with a comment on its line."""
    from omegaconf import OmegaConf

    text = (config_dir() / "config.yaml").read_text()
    values = OmegaConf.create(text)
    found = []
    for name, comment in re.findall(r"^(\w+): \S+ +# (.*)$", text, re.MULTILINE):
        value = values[name]
        kind = "text or null" if value is None else type_name(type(value))
        found.append({"name": name, "type": kind, "default": value, "help": comment})
    return found


def _describe_setting(setting: Setting, default: Any) -> dict[str, Any]:
    required = default is inspect.Parameter.empty
    return {
        "name": setting.name,
        "type": type_name(setting.annotation),
        "default": "???" if required else _plain(default),
        "help": setting.help,
    }


def _describe_docstring(constructor: Any) -> dict[str, str]:
    return {key.lower(): docstring_section(constructor.__doc__ or "", key) for key in ("Source", "Shapes")}


def docstring_section(docstring: str, title: str) -> str:
    """The text after `Title:` up to the next empty line, on one line; empty if there is none."""
    match = re.search(rf"^{title}:\s*(.*?)(?:\n\s*\n|\Z)", inspect.cleandoc(docstring), re.MULTILINE | re.DOTALL)
    return " ".join(match[1].split()) if match else ""


def _summary(constructor: Any) -> str:
    return " ".join(inspect.cleandoc(constructor.__doc__ or "").split("\n\n")[0].split())


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"dropout": 0.5}} -> {"model.dropout": 0.5}"""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        inner = isinstance(value, Mapping) and value
        flat |= _flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _plain(value: Any) -> Any:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value, default=str))
