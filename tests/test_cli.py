"""The command line: flags, exit codes, one-line errors, and what it must not import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlrun.arguments import help_text, sort_arguments
from dlrun.settings import GROUPS

QUICK = [
    "model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.epochs=1", "data.limit_train=64",
    "callbacks.tensorboard=null",
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--cfg", "job"], 0),
        (["model=lenet", "--cfg", "job"], 0),
        (["model=lenett"], 1),
        (["modle=lenet"], 1),
        (["optimizer.lrr=1"], 1),
        (["experiment=tpyo"], 1),
        (["-sc", "query=bash"], 0),
        (["action=list"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answers_without_torch(words: list[str], code: int, tmp_path: Path) -> None:
    """Help, configuration, completion, the list and misspelt names never import torch, and leave nothing behind."""
    script = (
        "import sys; from dlrun.cli import run; code = run(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    environment = {**os.environ, "COMP_LINE": "dlrun model=", "COMP_POINT": "12"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_completion_names_options(tmp_path: Path) -> None:
    """Completion of `model=` offers the models."""
    environment = {**os.environ, "COMP_LINE": "dlrun model=le", "COMP_POINT": "14"}
    done = subprocess.run(
        [sys.executable, "-m", "dlrun", "-sc", "query=bash"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "model=lenet" in done.stdout


def test_help_names_every_group() -> None:
    """`--help` shows every group with its options."""
    text = help_text()
    assert all(group in text for group in GROUPS)
    assert "lenet" in text
    assert "_common" not in text


def test_flags_may_stand_last() -> None:
    """Hydra's flags go before the overrides, with their values."""
    assert sort_arguments(["model=lenet", "-m"]) == ["-m", "model=lenet"]
    assert sort_arguments(["a=1", "--cfg", "job", "b=2"]) == ["--cfg", "job", "a=1", "b=2"]


def test_only_created_folders_are_removed(cli, tmp_path: Path) -> None:
    """A wrong value takes the folders away that this process made, however deep, and none that was there before."""
    (tmp_path / "mine").mkdir()
    for folder in ("mine/a/b", "'a b/${seed}'", "mine", "outputs/x"):
        assert cli("optimizer.lr=-1", f"hydra.run.dir={folder}").rc == 1
        assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_outputs_may_be_a_file(cli, tmp_path: Path) -> None:
    """A file in the place of the folder: one line that names the setting."""
    (tmp_path / "outputs").touch()
    done = cli(*QUICK)
    assert done.rc == 1
    assert done.stderr.startswith("dlrun: hydra.run.dir: cannot create 'outputs/")
    assert len(done.stderr.strip().splitlines()) == 1


def test_version_is_that_of_dlrun(cli) -> None:
    """`--version` names this package, not Hydra."""
    from importlib.metadata import version

    assert cli("--version").stdout == f"dlrun {version('dlrun')}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dlrun --mul", "--multirun"),
        ("dlrun model=lenet -m optimizer.l", "optimizer.lr="),
        ("dlrun -m model=vg", "model=vgg16"),
    ],
)
def test_completion_with_flags(cli, monkeypatch: pytest.MonkeyPatch, line: str, expected: str) -> None:
    """Flags complete, wherever they stand, and never disturb the completion of what follows."""
    monkeypatch.setenv("COMP_LINE", line)
    done = cli("-sc", "query=bash")
    assert (done.rc, done.stdout.split(), done.stderr) == (0, [expected], "")


def test_completion_never_shows_an_error(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that cannot be read gives no words and no message."""
    monkeypatch.setenv("COMP_LINE", "dlrun 'a b")
    done = cli("-sc", "query=bash")
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_start_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM before the first checkpoint: exit code 130 or 143, one line, no folder."""
    script = (
        "import os, signal, dlrun.build, dlrun.cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it from birth
        f"dlrun.build.build_data = lambda *a, **k: os.kill(os.getpid(), {int(number)})\n"
        "dlrun.cli.main(['hydra.run.dir=a/b'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + number, f"dlrun: interrupted (exit code {128 + number})\n")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(dlrun) -> None:
    """`debug=true` adds the traceback to the line."""
    done = dlrun("optimizer.lr=-1", "debug=true")
    assert done.rc == 1
    assert "Traceback" in done.stderr


def test_divergence_has_its_own_exit_code(cli, tmp_path: Path) -> None:
    """A diverging run says at which step and in which layer, exits 3, and keeps its folder."""
    done = cli(*QUICK, "optimizer=sgd", "optimizer.lr=1e30", "hydra.run.dir=run", "scheduler=constant")
    assert done.rc == 3, done.stderr
    assert "step" in done.stderr.splitlines()[-1]
    assert '"status": "diverged"' in (tmp_path / "run" / "results.json").read_text()


def test_a_folder_is_never_shared(cli, tmp_path: Path) -> None:
    """A second run into the same folder is refused and the first one's files stay."""
    assert cli(*QUICK, "hydra.run.dir=run").rc == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    done = cli(*QUICK, "hydra.run.dir=run", "seed=5")
    assert done.rc == 1
    assert "already holds a run" in done.stderr
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_saved_runs_refuse_other_options(cli, tmp_path: Path) -> None:
    """`resume=` takes single values on top, but not another option of a group."""
    assert cli(*QUICK, "hydra.run.dir=run").rc == 0
    done = cli("resume=run", "optimizer=sgd")
    assert done.rc == 1
    assert "optimizer: cannot be exchanged" in done.stderr
    done = cli("action=test", "run=run", "data.split_seed=3")
    assert done.rc == 1
    assert "data.split_seed: cannot be changed" in done.stderr
    done = cli("resume=run", "trainer.epocs=3")
    assert done.rc == 1
    assert "trainer.epocs" in done.stderr


def test_a_finished_run_is_not_trained_further(cli, tmp_path: Path) -> None:
    """Its test set is open: more epochs are refused, and a sweep over a saved run as well."""
    assert cli(*QUICK, "hydra.run.dir=run=1").rc == 1
    assert cli(*QUICK, "hydra.run.dir='run=1'").rc == 0
    done = cli("resume=run=1", "trainer.epochs=2")
    assert done.rc == 1
    assert "finished" in done.stderr
    assert "trainer.epochs=2" in done.stderr
    assert cli("resume=run=1").rc == 0
    done = cli("action=test", "run=run=1", "data.batch_size=7,8", "-m")
    assert (done.rc, "run: not together with -m" in done.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["run=1"]


def test_a_damaged_saved_configuration_is_named(cli, tmp_path: Path) -> None:
    """A configuration that lost a group, and results that lost their content, give no traceback."""
    assert cli(*QUICK, "hydra.run.dir=run").rc == 0
    (tmp_path / "run" / "results.json").write_text('{"status": "finished"}')
    assert cli("resume=run").rc == 0
    config = tmp_path / "run" / ".hydra" / "config.yaml"
    config.write_text(config.read_text().replace("seed:", "sead:"))
    done = cli("resume=run")
    assert (done.rc, "config.yaml is damaged (no 'seed')" in done.stderr) == (1, True)


@pytest.mark.parametrize("flag", [["--config-dir", "mine"], ["-cd", "mine"], ["--config-dir=mine"]])
def test_shipped_options_cannot_be_shadowed(cli, tmp_path: Path, flag: list[str]) -> None:
    """An option of the user's that Hydra would pass over in silence is refused by name."""
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "lenet.yaml").write_text("name: lenet\n")
    done = cli(*flag, "model=lenet")
    assert done.rc == 1
    assert "dlrun ships a model 'lenet'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
