"""The wheel works by itself: built, installed into an empty environment, run from an unrelated folder.

Torch and the other dependencies are borrowed from the environment of the tests; the checkout is not on the path there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.xdist_group("wheel")  # one worker builds it once


def run(*words: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A process without the environment variables that lead Python back to the checkout."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    return subprocess.run(
        list(map(str, words)), cwd=cwd, env=kept | env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout; hatchling comes from the index where it is not installed."""
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = run(*pip, "wheel", "--quiet", "--no-deps", *isolation, "--wheel-dir", folder, ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("dlrun-*.whl")
    return found


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel, and the dependencies through a path file; its folder of commands."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, with_pip=False, symlinks=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = run(folder / "bin" / "python", "-c", code, cwd=folder).stdout.strip()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python"]
    done = run(*pip, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    # A folder named in a .pth file joins the path, but its own .pth files (that of the editable install) are not read.
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_wheel_carries_configs_and_catalogue(wheel: Path) -> None:
    """Every YAML and every module of the checkout and the catalogue are in the wheel, and no test is."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"dlrun/configs/{p.relative_to(ROOT / 'configs').as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")}
    wanted |= {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*.py")}
    wanted.add("dlrun/catalogue.json")
    assert wanted <= inside, sorted(wanted - inside)
    assert not [name for name in inside if name.startswith(("tests/", "scripts/", "outputs/"))]


def test_installed_package_is_the_one_that_runs(elsewhere: Path, tmp_path: Path) -> None:
    """The package is imported from the new environment, and finds the configuration inside it."""
    code = "import dlrun, sys; from dlrun.settings import config_dir; print(dlrun.__file__, config_dir(), *sys.path)"
    done = run(elsewhere / "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    module, configs, *path = done.stdout.split()
    assert Path(module).is_relative_to(elsewhere.parent)
    assert Path(configs).is_relative_to(elsewhere.parent)
    assert str(ROOT / "src") not in path


def test_help_from_elsewhere(elsewhere: Path, tmp_path: Path) -> None:
    """`dlrun --help` and `dlrun action=list` work from any folder."""
    done = run(elsewhere / "dlrun", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lenet" in done.stdout
    done = run(elsewhere / "dlrun", "action=list", "action.group=model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lenet" in done.stdout


def test_training_from_elsewhere(elsewhere: Path, tmp_path: Path) -> None:
    """A dry run trains, tests and leaves its results in the folder it was started from."""
    done = run(elsewhere / "dlrun", "trainer.fast_dev_run=true", "device=cpu", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    (results,) = tmp_path.glob("outputs/*/*/results.json")
    assert json.loads(results.read_text())["status"] == "finished"


def test_sweep_from_elsewhere(elsewhere: Path, tmp_path: Path) -> None:
    """A sweep of two dry runs works from the wheel too, its launcher and callbacks included."""
    words = (
        "-m",
        "optimizer.lr=1e-3,1e-2",
        "trainer.fast_dev_run=true",
        "device=cpu",
        f"hydra.sweep.dir={tmp_path / 's'}",
    )
    done = run(elsewhere / "dlrun", *words, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "s").rglob("results.json"))) == 2


def test_a_sweep_runs_by_workers(elsewhere: Path, tmp_path: Path) -> None:
    """Hydra finds dlrun's launcher and sweeper in the wheel; the workers import it there."""
    words = ("model=linear", "data=xor", "trainer.fast_dev_run=true", "device=cpu", "callbacks=none", "seeds=2")
    done = run(elsewhere / "dlrun", *words, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    statuses = [json.loads((tmp_path / "sweep" / n / "results.json").read_text())["status"] for n in "01"]
    assert statuses == ["finished"] * 2
