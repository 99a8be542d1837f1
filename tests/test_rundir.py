"""Run folders: one run each, written whole, locked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlrun import rundir
from dlrun.registry import ConfigError

CLAIM = "from dlrun import rundir; rundir.arm(); print(rundir.claim('train', 'outputs/day/time'))"


def test_processes_never_share_a_folder(tmp_path: Path) -> None:
    """Eight processes that want the same name at once get eight folders."""
    started = [
        subprocess.Popen([sys.executable, "-c", CLAIM], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    names = [process.communicate()[0].strip() for process in started]
    assert len(set(names)) == 8
    assert all((tmp_path / name).is_dir() for name in names)


def test_only_runs_claim_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions that read make no folder, and nothing is made before a run is certain."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rundir, "_armed", False)
    assert rundir.claim("train", "a/b") == "a/b"
    assert rundir.claim("test", "a/b") == "."
    assert list(tmp_path.iterdir()) == []


def test_config_is_written_once(tmp_path: Path) -> None:
    """A resumed run never rewrites the configuration it began with."""
    rundir.write_config(tmp_path, {"seed": 1, "lr": 1e-5})
    rundir.write_config(tmp_path, {"seed": 2})
    assert rundir.read_config(tmp_path, "run") == {"seed": 1, "lr": 1e-5}


@pytest.mark.parametrize("text", ["a: [", "just text", "\x00"])
def test_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    """A configuration that cannot be read is blamed by name."""
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml is damaged"):
        rundir.read_config(tmp_path, "run")


def test_json_is_strict(tmp_path: Path) -> None:
    """NaN is refused, and the file that was there stays whole."""
    rundir.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        rundir.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_locked_folder_names_its_process(tmp_path: Path) -> None:
    """A second process is refused with the first one's pid and host."""
    code = f"from dlrun import rundir; from pathlib import Path\nwith rundir.lock(Path({str(tmp_path)!r})): pass"
    with rundir.lock(tmp_path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is in use by process" in done.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_only_its_maker_removes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes that want the same folder at once, the one that came second leaves it alone, and so does its maker
    while the other one writes there."""
    monkeypatch.setattr(rundir, "_created", [])
    rundir.create(tmp_path / "a" / "b")
    made = list(rundir._created)
    rundir._created.clear()
    rundir.create(tmp_path / "a" / "b")
    rundir.remove_created()
    assert (tmp_path / "a" / "b").is_dir()
    with rundir.lock(tmp_path / "a" / "b"):
        rundir._created.extend(made)
        rundir.remove_created()
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    rundir._created.extend(made)
    rundir.remove_created()
    assert list(tmp_path.iterdir()) == []
