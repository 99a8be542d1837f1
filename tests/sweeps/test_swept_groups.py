"""Sweeps over the options of a group, beside settings that the default option does not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

QUICK = (
    "data=blobs", "device=cpu", "trainer.epochs=1", "data.limit_train=64", "callbacks=none", "hydra/launcher=basic", "-m",
)  # fmt: skip
OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.sampler=grid")
BOTH = ("optimizer=momentum,nesterov", "optimizer.momentum=0.8", "model=mlp")


def jobs(sweep: Path) -> list[dict]:
    """The jobs of a sweep as they were submitted."""
    lines = [json.loads(line) for line in (sweep / "jobs.jsonl").read_text().splitlines()]
    return [line for line in lines if "config" in line]


def statuses(sweep: Path) -> list[str]:
    return [json.loads((sweep / str(job["job"]) / "results.json").read_text())["status"] for job in jobs(sweep)]


def test_a_setting_that_every_swept_option_has(cli, tmp_path: Path) -> None:
    """Each run gets it; the words keep their order; the same command, in another order too, finds its folder again."""
    done = cli(*QUICK, *BOTH)
    assert done.rc == 0, done.stderr
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    assert [(job["config"]["optimizer"]["name"], job["config"]["optimizer"]["momentum"]) for job in jobs(sweep)] == [
        ("momentum", 0.8), ("nesterov", 0.8)
    ]  # fmt: skip
    assert statuses(sweep) == ["finished", "finished"]
    assert yaml.safe_load((sweep / "sweep.yaml").read_text())["words"] == [*QUICK[:5], *BOTH]
    for again in ((*QUICK, *reversed(BOTH)), ("action=resume_sweep", f"sweep={sweep}")):
        done = cli(*again)
        assert (done.rc, done.stderr.count("finished already")) == (0, 2), done.stderr
    assert list(sweep.parent.iterdir()) == [sweep]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The configurations of the runs, which are not trained."""
    found: list[dict] = []

    def only_note(config: dict, folder: Path, begins: object) -> float:
        found.append(config)
        return 1.0

    monkeypatch.setattr("dlrun.command.perform", only_note)
    return found


def test_two_groups(cli, ran: list[dict]) -> None:
    """Settings of two swept groups, neither of which the default options have."""
    cli(*QUICK[1:], *BOTH[:2], "model=mlp,cnn", "model.hidden=[3]")
    assert [(run["optimizer"]["name"], run["model"]["name"]) for run in ran] == [
        ("momentum", "mlp"), ("momentum", "cnn"), ("nesterov", "mlp"), ("nesterov", "cnn"),
    ]  # fmt: skip
    assert all((run["optimizer"]["momentum"], run["model"]["hidden"]) == (0.8, [3]) for run in ran)


def test_a_dry_run(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows the runs and leaves nothing."""
    monkeypatch.setattr("dlrun.sweeps.dry_run._estimate", lambda jobs, left: f"{len(left)} to do")
    done = cli(*QUICK, *BOTH, "dry_run=true")
    assert (done.rc, "2 to do" in done.stdout) == (0, True), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_swept_transfer(cli, ran: list[dict]) -> None:
    """`transfer=none`, the default, has no source."""
    cli(*QUICK, "model=mlp", "transfer=finetune,frozen", "transfer.source=first")
    assert [(run["transfer"]["freeze"], run["transfer"]["source"]) for run in ran] == [
        ([], "first"),
        (["body"], "first"),
    ]


def test_options_swept_by_an_experiment(cli, tmp_path: Path, ran: list[dict]) -> None:
    """hydra.sweeper.params of a file choose the options; the setting is on the command line."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "speeds.yaml").write_text(
        "# @package _global_\nhydra: {sweeper: {params: {optimizer: 'momentum,nesterov'}}}\n"
    )
    own = ("--config-dir", str(tmp_path / "own"), "experiment=speeds", "model=mlp")
    cli(*QUICK, *own, "optimizer.momentum=0.7")
    assert [run["optimizer"]["momentum"] for run in ran] == [0.7, 0.7]
    done = cli(*QUICK, *own, "optimizer.momentun=0.7")
    assert (done.rc, "did you mean 'optimizer.momentum'?" in done.stderr) == (1, True), done.stderr


def test_a_search_over_options(cli, ran: list[dict]) -> None:
    """Optuna chooses between options that have the setting."""
    cli(*QUICK, *OPTUNA, *BOTH)
    assert [(run["optimizer"]["name"], run["optimizer"]["momentum"]) for run in ran] == [
        ("momentum", 0.8), ("nesterov", 0.8)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("optimizer=sgd,momentum,adam,nesterov", "optimizer.momentum=0.5,0.6"),
            "optimizer.momentum: optimizer=sgd, optimizer=adam have no such setting (optimizer=momentum, "
            "optimizer=nesterov have)",
        ),
        (
            ("model=mlp,cnn", "model.blocks.0.channels=3"),
            "model.blocks.0.channels: model=mlp has no such setting (model=cnn has)",
        ),
        (
            ("optimizer=adam,sgd", "model=mlp,lenet", "model.hidden=[3]", *OPTUNA),
            "model.hidden: model=lenet has no such setting (model=mlp has)",
        ),
        (
            ("data=digits,heteroscedastic", "loss.beta=0.5", "dry_run=true"),
            "loss.beta: data=digits has no such setting (data=heteroscedastic has)",
        ),
    ],
    ids=["grid", "list", "search", "dry_run"],
)
def test_a_setting_that_an_option_lacks(cli, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    """One line that says which option; nothing is left behind."""
    done = cli(*QUICK[1:], *words)
    assert (done.rc, done.stderr.strip()) == (1, f"dlrun: {line}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("optimizer=momentum,nesterov", "optimizer.momentun=0.8"), ["optimizer has: ", "'optimizer.momentum'?"]),
        (("model=mlp,lenet", "optimizer.lrr=1"), ["optimizer.lrr: unknown setting", "did you mean 'optimizer.lr'?"]),
        (("model=mlp,lenet", "regularization.l1.strength=1"), ["choose it by regularization=l1"]),
        (
            ("hydra/sweeper=basic", "optimizer=momentum,sgd", "optimizer.momentum=0.8"),
            ["optimizer.momentum: unknown setting; optimizer=sgd has: name, lr, weight_decay"],
        ),
    ],
    ids=["swept group", "another group", "not chosen", "sweeper of Hydra's"],
)
def test_a_misspelt_setting(cli, tmp_path: Path, words: tuple[str, ...], parts: list[str]) -> None:
    """One line with the nearest of the settings that the swept options have."""
    done = cli(*QUICK, *words)
    assert (done.rc, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert all(part in done.stderr for part in parts), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_sweep_that_worked_before(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is the hash of the words that it has always been."""
    monkeypatch.setattr("dlrun.sweeps.dry_run._estimate", lambda jobs, left: "")
    done = cli("-m", "model=mlp,lenet", "data=digits", "optimizer.lr=1e-3,1e-2", "dry_run=true")
    assert (done.rc, "outputs/multirun/9fba910e" in done.stdout) == (0, True), done.stdout
