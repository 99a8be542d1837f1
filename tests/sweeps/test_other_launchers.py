"""Hydra's other launchers (one process, joblib, Submitit, Ray): same folders, same manifest, same numbers as dlrun's own.

joblib, Submitit and Ray are tested where their plugins are installed; see docs/clusters.md.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.sweeps import manifest

SWEEP = (
    "-m", "data=digits", "model=mlp", "model.hidden=[8]", "device=cpu", "trainer.epochs=1", "trainer.threads=1",
    "callbacks=[metrics_file]", "optimizer.lr=0.001,0.1", "seed=0,1",
)  # fmt: skip
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": ("hydra.launcher.timeout_min=5",),
    "ray": ("+hydra.launcher.ray.init.num_cpus=2",),
}
MODULES = {"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit_local": "submitit", "ray": "ray"}
each = pytest.mark.parametrize("launcher", LAUNCHERS)


def words(launcher: str) -> list[str]:
    """What chooses a launcher; skips the test where its plugin is not installed."""
    if launcher in MODULES:
        pytest.importorskip(MODULES[launcher])
    return [f"hydra/launcher={launcher}", *LAUNCHERS[launcher]]


def results(folder: Path) -> list[dict]:
    """results.json of the runs 0, 1, 2 ... of a sweep."""
    found = sorted(folder.glob("[0-9]*"), key=lambda path: int(path.name))
    assert [path.name for path in found] == [str(number) for number in range(len(found))]
    return [json.loads((path / "results.json").read_text()) for path in found]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep by dlrun's own launcher."""
    import os
    import subprocess
    import sys

    place = tmp_path_factory.mktemp("own")
    command = [sys.executable, "-m", "dlrun", *SWEEP, "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, cwd=place, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return place / "sweep"


@each
def test_the_same_sweep(launcher: str, own: Path, dlrun: Callable, tmp_path: Path) -> None:
    """Four runs in the folders 0 to 3: metrics, curves, configurations and words bit for bit those of dlrun's own launcher, the
    manifest that of the same sweep, the same leaderboard; a second time nothing is run again."""
    done = dlrun(*SWEEP, *words(launcher), "hydra.sweep.dir=sweep")
    assert done.rc == 0, done.stderr
    sweep = tmp_path / "sweep"
    assert [found["status"] for found in results(sweep)] == ["finished"] * 4
    for key in ("metrics", "best", "parameters"):
        assert [found[key] for found in results(sweep)] == [found[key] for found in results(own)]
    for name in ("metrics.jsonl", ".hydra/config.yaml", ".hydra/overrides.yaml"):
        for number in range(4):
            assert (sweep / str(number) / name).read_bytes() == (own / str(number) / name).read_bytes(), name
    assert manifest.read(sweep).is_of(manifest.read(own))
    boards = [list(csv.DictReader((folder / "leaderboard.csv").read_text().splitlines())) for folder in (sweep, own)]
    assert boards[0] == boards[1]
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")}
    again = dlrun(*SWEEP, *words(launcher), "hydra.sweep.dir=sweep")
    assert (again.rc, before) == (0, {path: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")})


@each
def test_failures_stay_in_their_runs(launcher: str, dlrun: Callable, tmp_path: Path) -> None:
    """Of a wrong value, a sound one and one that diverges, each is recorded in its own folder, wherever it ran: exit code 4."""
    changed = [word for word in SWEEP if not word.startswith(("optimizer.lr", "seed"))]
    values = ("optimizer=sgd", "optimizer.lr=-1,0.01,1e30", "scheduler=constant")
    done = dlrun(*changed, *values, *words(launcher), "hydra.sweep.dir=sweep")
    assert done.rc == 4, done.stderr
    assert [found["status"] for found in results(tmp_path / "sweep")] == ["failed", "finished", "diverged"]
    assert "optimizer.lr" in results(tmp_path / "sweep")[0]["message"]


@each
def test_the_folder_that_dlrun_chooses(launcher: str, dlrun: Callable, tmp_path: Path) -> None:
    """Without hydra.sweep.dir all runs lie in the one folder that the command has made, relative names of other files count
    from where it was started."""
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{n},{n % 2}\n" for n in range(40)))
    done = dlrun("-m", "data=csv", "data.path=t.csv", "data.target=y", "model=linear", "device=cpu", "trainer.epochs=1",
                 "callbacks=none", "seed=0,1", *words(launcher))  # fmt: skip
    assert done.rc == 0, done.stderr
    sweeps = [path.parent for path in (tmp_path / "outputs").rglob(manifest.FILE)]
    assert len(sweeps) == 1
    assert [found["status"] for found in results(sweeps[0])] == ["finished"] * 2


@pytest.mark.parametrize("launcher", MODULES)
def test_a_killed_process_is_recorded(launcher: str, dlrun: Callable, tmp_path: Path) -> None:
    """A run whose process is killed is recorded, with exit code 4 and no traceback; the same command runs what is missing."""
    chosen = words(launcher)
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "deadly.yaml").write_text(
        "defaults: [_common, _self_]\nname: deadly\nimport: deadly\nmark: null\n"
    )
    (tmp_path / "deadly.py").write_text(
        "import os, pathlib\n"
        "from dlrun.data import DATASETS\n"
        "from dlrun.data.digits import Digits\n"
        "@DATASETS.register('deadly')\n"
        "class Deadly(Digits):\n"
        "    def __init__(self, *, mark: str | None = None) -> None:\n"
        "        if mark and not os.path.exists(mark):\n"
        "            pathlib.Path(mark).touch()\n"
        "            os.kill(os.getpid(), 9)\n"
    )
    command = [word for word in SWEEP if not word.startswith(("data=", "optimizer.lr", "seed"))]
    command += ["--config-dir", "own", "data=deadly", "data.mark=null,died", *chosen, "hydra.sweep.dir=sweep"]
    done = dlrun(*command)
    if launcher == "ray":  # starts it again by itself
        assert done.rc == 0, done.stderr
    else:
        assert (done.rc, "Traceback" in done.stderr, "goes on with what is missing" in done.stderr) == (4, False, True)
        assert json.loads((tmp_path / "sweep/1/results.json").read_text())["status"] == "killed"
    assert dlrun(*command).rc == 0
    assert [found["status"] for found in results(tmp_path / "sweep")] == ["finished"] * 2
