"""Where things are: configuration, catalogue and data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dlrun import settings


def test_groups_follow_the_defaults_list() -> None:
    """GROUPS names the groups in the order of the defaults list of config.yaml."""
    from omegaconf import OmegaConf

    defaults = OmegaConf.load(settings.config_dir() / "config.yaml").defaults
    listed = [str(key) for entry in defaults if hasattr(entry, "keys") for key in entry]
    assert tuple(key for key in listed if key in settings.GROUPS) == settings.GROUPS


def test_options_are_the_public_yaml_files() -> None:
    """Options are the YAML files of a group; shared pieces (leading underscore) are none."""
    assert "adam" in settings.options("optimizer")
    assert not [option for group in settings.GROUPS for option in settings.options(group) if option.startswith("_")]


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DLRUN_DATA_DIR wins over XDG_CACHE_HOME, which wins over ~/.cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DLRUN_DATA_DIR", "~/sets")
    assert settings.data_root() == tmp_path / "home" / "sets"
    monkeypatch.delenv("DLRUN_DATA_DIR")
    assert settings.data_root() == tmp_path / "cache" / "dlrun" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert settings.data_root() == tmp_path / "home" / ".cache" / "dlrun" / "data"


@pytest.mark.parametrize(
    "module", ["registry", "schema", "settings", "spec", "rundir", "suggest", "cli", "catalogue", "actions.list_"]
)
def test_no_torch(module: str) -> None:
    """The modules that answer without building anything do not import torch."""
    code = f"import dlrun.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
