"""Every option of every group: its YAML, name, signature and docstring, and that it composes and is accepted."""

from __future__ import annotations

import inspect
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dlrun import catalogue
from dlrun.registry import RESERVED, Registry, settings_of
from dlrun.settings import GROUPS, MAPPING_GROUPS, config_dir, options

OPTIONS = [(group, option) for group in GROUPS for option in options(group)]
EXPERIMENTS = options("experiment")
AUTO = ("loss", "auto")  # stands for another loss until the data are known
FLAGS = ("-m", "--multirun")


@cache
def registries() -> dict[str, Registry]:
    return catalogue.registries()


def nodes(group: str, option: str) -> list[tuple[str, dict[str, Any]]]:
    """The nodes of an option that name a component."""
    return [] if (group, option) == AUTO else list(catalogue.option_nodes(group, option).items())


@cache
def _registered() -> list[tuple[str, str]]:
    return [(group, name) for group, registry in registries().items() for name in registry.names()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes over options and over registered names."""
    if {"group", "option"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("group", "option"), OPTIONS, ids=[f"{g}={o}" for g, o in OPTIONS])
    if {"group", "name"} <= set(metafunc.fixturenames):
        metafunc.parametrize(("group", "name"), _registered(), ids=[f"{g}={n}" for g, n in _registered()])


def compose(*overrides: str) -> dict[str, Any]:
    """The configuration as the command line composes it, unresolved values left alone."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("dlrun.run_dir", lambda action, wanted: wanted, replace=True)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(hydra_compose("config", list(overrides)), throw_on_missing=False)
    return config


def accept(config: dict[str, Any]) -> None:
    """Checks a whole configuration as a run does, file names the user must give filled in."""
    from dlrun.build import check

    for node in (config["data"],):
        node.update({key: "given.by.the.user" for key, value in node.items() if value == "???"})
    check(config)


def test_option_names_a_component(group: str, option: str) -> None:
    """Every YAML names a registered component, or sets settings of another group, or stands for no entry at all."""
    content = catalogue.read_option(group, option)
    if group not in MAPPING_GROUPS and (group, option) != AUTO:
        assert "name" in content, "no `name:`"
    for _, node in nodes(group, option):
        assert node["name"] in registries()[group].names()


def test_component_has_a_yaml(group: str, name: str) -> None:
    """Every registered name can be chosen by some YAML."""
    chosen = {node["name"] for option in options(group) for _, node in nodes(group, option)}
    assert name in chosen | ({"auto"} if group == "loss" else set())


def test_yaml_lists_every_setting(group: str, option: str) -> None:
    """The YAML has exactly the settings of the signature, own and common, so that Hydra itself finds a misspelt key."""
    for _, node in nodes(group, option):
        assert set(node) - set(RESERVED) == set(registries()[group].settings(node["name"]))


def test_yaml_of_the_same_name_has_the_defaults(group: str, option: str) -> None:
    """A YAML named like its component writes down the signature's defaults; variants may differ."""
    for _, node in nodes(group, option):
        if node["name"] != option:
            continue
        for setting in settings_of(registries()[group].get(option)).values():
            written = "???" if setting.required else catalogue._plain(setting.default)
            assert catalogue._plain(node[setting.name]) == written, setting.name


def test_first_line(group: str, option: str) -> None:
    """The first line says what the option is and which command runs it."""
    about, command = catalogue.header(group, option)
    assert about, "the first line is no comment"
    assert command.startswith("dlrun"), "the first line names no dlrun command"


def test_global_header_stands_first(group: str, option: str) -> None:
    """Hydra reads `# @package` only above the first line of another kind."""
    lines = (config_dir() / group / f"{option}.yaml").read_text().splitlines()
    assert not [line for line in lines[1:] if line.startswith("# @package")]


def test_option_is_accepted(group: str, option: str) -> None:
    """Every option composes with the defaults and passes the check that a run makes before it reads any data."""
    accept(compose(f"{group}=[{option}]" if group in MAPPING_GROUPS else f"{group}={option}"))


def test_command_of_the_first_line_composes(group: str, option: str) -> None:
    """The command a user copies from the YAML is accepted and chooses this option."""
    _, command = catalogue.header(group, option)
    words = [word for word in shlex.split(command, comments=True)[1:] if word not in FLAGS]
    assert re.search(rf"\b{group}(=\S*\b{option}\b|\.)", command) or option == "train"
    if any(re.match("(resume|run)=", word) for word in words):
        return  # composes on top of a saved run
    accept(compose(*(word for word in words if "," not in word.split("[")[0] and "range(" not in word)))


def test_no_target(group: str, option: str) -> None:
    """No YAML calls Python by path."""
    assert "_target_" not in (config_dir() / group / f"{option}.yaml").read_text()


def test_settings_are_documented(group: str, name: str) -> None:
    """Every setting and every context argument has a line in `Args:`, and nothing else has."""
    from dlrun.registry import _context, argument_help

    constructor = registries()[group].get(name)
    documented = argument_help((constructor.__doc__ or "").split("Attributes:")[0])
    wanted = {*settings_of(constructor), *_context(constructor)}
    assert set(documented) == wanted
    assert all(documented.values())


def test_docstring_says_what_it_is(group: str, name: str) -> None:
    """The docstring begins with a sentence of its own, not inherited."""
    constructor = registries()[group].get(name)
    docstring = vars(constructor)["__doc__"] if inspect.isclass(constructor) else constructor.__doc__
    assert docstring
    assert len(inspect.cleandoc(docstring).splitlines()[0]) > 10


def test_common_settings_are_documented() -> None:
    """The settings common to a group are documented too."""
    for group, registry in registries().items():
        for setting in settings_of(registry.common).values() if registry.common else ():
            assert setting.help, f"{group}.{setting.name}"


def test_entries_below_data_are_documented() -> None:
    """Augmentations and transforms have no YAML of their own; their settings are documented all the same, and their commands
    compose."""
    for registry in catalogue._below_data():
        for name in registry.names():
            for setting in settings_of(registry.get(name)).values():
                assert setting.help, f"{name}.{setting.name}"
            accept(compose(f"{registry.group}={{{name}: {{}}}}"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_is_accepted(experiment: str) -> None:
    """Every experiment composes and passes the check."""
    accept(compose(f"experiment={experiment}"))


def test_yaml_files_are_options_or_shared() -> None:
    """No YAML lies outside a known group."""
    known = {*GROUPS, "experiment", "hydra"}
    for path in config_dir().rglob("*.yaml"):
        parts = path.relative_to(config_dir()).parts
        assert parts == ("config.yaml",) or parts[0] in known, path


def test_repository_has_no_missing_groups() -> None:
    """Every group has at least one option."""
    assert not [group for group in GROUPS if not options(group)]
    assert Path(config_dir() / "config.yaml").is_file()
