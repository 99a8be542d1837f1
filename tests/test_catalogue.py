"""The catalogue is fresh, complete, and printed without torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dlrun import catalogue
from dlrun.actions import list_
from dlrun.registry import ConfigError
from dlrun.settings import GROUPS, catalogue_file, options

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/make_catalogue.py as a module."""
    spec = importlib.util.spec_from_file_location("make_catalogue", ROOT / "scripts" / "make_catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built() -> dict:
    """The catalogue as the sources have it now."""
    return catalogue.build_catalogue()


def test_catalogue_json_is_fresh(built: dict, script: ModuleType) -> None:
    """The shipped catalogue equals the sources; if not, `make catalogue`."""
    assert catalogue_file().read_text() == script.as_json(built), "run `make catalogue`"


def test_catalogue_page_is_fresh(built: dict, script: ModuleType) -> None:
    """docs/catalogue.md equals the sources; if not, `make catalogue`."""
    assert (ROOT / "docs" / "catalogue.md").read_text() == script.as_markdown(built), "run `make catalogue`"


def test_every_option_is_listed(built: dict) -> None:
    """Each group lists exactly its YAML options, each with what it is."""
    for group in GROUPS:
        assert list(built[group]["options"]) == options(group)
        assert all(option["about"] for option in built[group]["options"].values()), group


def test_known_entry(built: dict) -> None:
    """One entry in full: the learning rate of Adam."""
    settings = {setting["name"]: setting for setting in built["optimizer"]["options"]["adam"]["settings"]}
    assert settings["lr"]["type"] == "float > 0"
    assert settings["lr"]["default"] == 0.001
    assert "learning rate" in settings["lr"]["help"].lower()


def test_run_settings_are_listed(built: dict) -> None:
    """The settings at the top of config.yaml are there with their comments."""
    names = [setting["name"] for setting in built["config"]["settings"]]
    assert {"seed", "device", "resume", "run", "debug"} <= set(names)
    assert all(setting["help"] for setting in built["config"]["settings"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What.\n\nSource: A (1999),\n    section 2.\n\nArgs:\n    x: y", "A (1999), section 2."),
        ("What.\n\nArgs:\n    x: y", ""),
        ("What.\n\nSource: last line", "last line"),
    ],
)
def test_docstring_section(text: str, expected: str) -> None:
    """A section ends at the next empty line and is joined to one line."""
    assert catalogue.docstring_section(text, "Source") == expected


def test_list_everything(capsys: pytest.CaptureFixture[str]) -> None:
    """`action=list` names every option of every group."""
    list_.list_options(None, None)
    printed = capsys.readouterr().out
    for group in GROUPS:
        assert f"{group}=" in printed
        assert all(option in printed for option in options(group)), group


def test_list_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One option is printed with the dotted key, type, default and meaning of each setting."""
    monkeypatch.setenv("COLUMNS", "200")
    list_.list_options("optimizer", "adam")
    line = next(row for row in map(str.strip, capsys.readouterr().out.splitlines()) if row.startswith("optimizer.lr "))
    assert "float > 0" in line
    assert "0.001" in line


def test_list_option_of_an_unnamed_group(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that only one group has needs no group; one that several have does."""
    list_.list_options(None, "lenet")
    assert "model=lenet" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^action.group: needed with action.option=nothing; allowed: task, loss,"):
        list_.list_options(None, "nothing")


@pytest.mark.parametrize(
    ("group", "option", "expected"),
    [
        ("modle", None, r"^action\.group: unknown 'modle'; allowed: .*; did you mean 'model'\?$"),
        ("model", "lent", r"^action\.option: unknown 'lent'; allowed: .*; did you mean 'lenet'\?$"),
    ],
)
def test_list_unknown(group: str, option: str | None, expected: str) -> None:
    """An unknown group or option is refused with the nearest match."""
    with pytest.raises(ConfigError, match=expected):
        list_.list_options(group, option)


def test_list_without_torch() -> None:
    """Printing the catalogue imports no torch."""
    code = "import sys; from dlrun.actions.list_ import list_options; list_options('model', 'lenet')"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "model=lenet" in done.stdout


def test_list_from_the_command_line(dlrun, tmp_path: Path) -> None:
    """`dlrun action=list` exits with 0 and leaves nothing behind."""
    done = dlrun("action=list", "action.group=optimizer")
    assert done.rc == 0, done.stderr
    assert "adamw" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_is_plain() -> None:
    """The shipped file is strict JSON."""
    json.loads(catalogue_file().read_text(), parse_constant=lambda constant: pytest.fail(constant))
