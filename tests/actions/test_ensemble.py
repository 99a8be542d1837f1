"""action=ensemble: the mixture against PyTorch and numbers worked out by hand, ensembles of real runs, and bad input."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch.distributions import Categorical, MixtureSameFamily, Normal

from dlrun.actions._ensemble_mixture import Mixture, measure
from dlrun.losses._base import Loss
from dlrun.losses.bce import BCE
from dlrun.losses.ce import CE
from dlrun.losses.gaussian_nll import GaussianNLL
from dlrun.losses.hinge import Hinge
from dlrun.losses.l2 import L2
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

REAL = TargetSpec("real", 1, mean=(5.0,), std=(3.0,))
QUICK = ("device=cpu", "callbacks=none", "model=mlp", "model.hidden=[8]", "model.dropout=0", "hydra/launcher=basic")
DIGITS = (*QUICK, "data=digits", "trainer.epochs=2", "optimizer.lr=0.01")
CURVE = (*QUICK, "data=heteroscedastic", "trainer.epochs=1", "data.limit_train=300")


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def outputs_for(mean: float, variance: float) -> torch.Tensor:
    """One row of raw outputs that `gaussian_nll` reads as this mean and variance."""
    return torch.tensor([[mean, math.log(math.expm1(variance - 1e-6))]], dtype=torch.float64)


# ---- the mixture -------------------------------------------------------------------------------------------------------


def test_two_gaussians_by_hand() -> None:
    """N(0, 1) and N(2, 1) at 1: mean 1, variance 1 + 1; both densities are exp(-1/2) / sqrt(2 pi)."""
    target = TargetSpec("real", 1)
    found = measure([GaussianNLL(target)] * 2, [outputs_for(0, 1), outputs_for(2, 1)], torch.tensor([[1.0]]))
    assert found["rmse"] == pytest.approx(0, abs=1e-9)
    assert found["nll"] == pytest.approx(0.5 * math.log(2 * math.pi) + 0.5, abs=1e-9)
    assert found["nll_gaussian"] == pytest.approx(0.5 * math.log(2 * math.pi * 2), abs=1e-9)


def test_mixture_of_gaussians_is_that_of_pytorch() -> None:
    """Mean, variance and log-likelihood of four members on 50 rows, in original units."""
    torch.manual_seed(1)
    loss, outputs = GaussianNLL(REAL), [torch.randn(50, 2).double() for _ in range(4)]
    targets = torch.randn(50, 1)
    means, stds = (torch.stack([f(o) for o in outputs], -1)[:, 0] for f in (loss.predict, loss.std))
    reference = MixtureSameFamily(Categorical(torch.ones(50, 4).double()), Normal(means, stds))
    found = measure([loss] * 4, outputs, targets)
    y = targets[:, 0].double()
    assert found["nll"] == pytest.approx(math.log(3) - float(reference.log_prob(y).mean()), abs=1e-9)
    moments = Normal(reference.mean, reference.variance.sqrt())
    assert found["nll_gaussian"] == pytest.approx(math.log(3) - float(moments.log_prob(y).mean()), abs=1e-9)
    assert found["rmse"] == pytest.approx(3 * float((reference.mean - y).square().mean().sqrt()), abs=1e-9)


def test_probabilities_are_averaged() -> None:
    """(0.9, 0.1) and (0.2, 0.8) give (0.55, 0.45): class 0, though the logits' mean chooses class 1."""
    p, q = (torch.tensor([row]).log() for row in ([0.9, 0.1], [0.02, 0.98]))
    targets = torch.tensor([0])
    found = measure([CE(TargetSpec("class", 2))] * 2, [p, q], targets)
    assert (found["accuracy"], found["nll"]) == (0.0, pytest.approx(-math.log(0.46), abs=1e-6))
    found = measure([CE(TargetSpec("class", 2))] * 2, [p, torch.tensor([[0.2, 0.8]]).log()], targets)
    assert (found["accuracy"], found["nll"]) == (1.0, pytest.approx(-math.log(0.55), abs=1e-6))
    assert found["ece"] == pytest.approx(0.45, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "losses", "targets"),
    [
        ("binary", [BCE, BCE], [[1.0], [0.0]]),
        ("binary", [BCE, CE], [[1.0], [0.0]]),
        ("sign", [BCE, BCE], [[1.0], [-1.0]]),
    ],
)
def test_two_classes(kind: str, losses: list[Callable[..., Loss]], targets: list[list[float]]) -> None:
    """P(positive) of 0.9 and 0.3, and of 0.6 and 0.1, are 0.6 and 0.35, whichever losses the members were trained with."""
    members = [make(TargetSpec(kind, 1)) for make in losses]  # type: ignore[arg-type]
    logits = torch.tensor([[0.9, 0.6], [0.3, 0.1]], dtype=torch.float64).logit()
    outputs = [
        z[:, None] if loss.num_outputs == 1 else torch.stack([torch.zeros(2), z], 1)
        for loss, z in zip(members, logits, strict=True)
    ]
    found = measure(members, outputs, torch.tensor(targets))
    assert found["accuracy"] == 1.0
    assert found["nll"] == pytest.approx(-(math.log(0.6) + math.log(0.65)) / 2, abs=1e-6)


def test_several_labels() -> None:
    """Labels are averaged one by one; their negative log-likelihoods are summed."""
    loss = BCE(TargetSpec("multi_hot", 2))
    p, q = (torch.tensor([row]).logit() for row in ([0.9, 0.2], [0.5, 0.4]))
    found = measure([loss, loss], [p, q], torch.tensor([[1.0, 0.0]]))
    assert found["nll"] == pytest.approx(-math.log(0.7) - math.log(0.7), abs=1e-6)
    assert found["accuracy"] == 1.0


def test_certain_and_wrong_is_finite() -> None:
    """A probability that underflows does not make the likelihood infinite."""
    found = measure([CE(TargetSpec("class", 2))] * 2, [torch.tensor([[2000.0, 0.0]])] * 2, torch.tensor([1]))
    assert 700 < found["nll"] < 2001


def test_l2_members_have_a_variance_of_a_half() -> None:
    """`l2` is a Gaussian of variance 1/2; two of them at 0 and 2 have variance 3/2."""
    found = measure(
        [L2(TargetSpec("real", 1))] * 2, [torch.tensor([[0.0]]), torch.tensor([[2.0]])], torch.tensor([[1.0]])
    )
    assert found["nll_gaussian"] == pytest.approx(0.5 * math.log(2 * math.pi * 1.5), abs=1e-9)


def test_scores_are_no_probabilities() -> None:
    """Members trained with the hinge loss are refused."""
    with pytest.raises(ConfigError, match=r"loss.name: hinge gives no probabilities"):
        Mixture([Hinge(TargetSpec("class", 3))])


# ---- ensembles of runs -------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("X20")
def test_ensemble_is_as_good_as_its_members(cli, tmp_path: Path) -> None:
    """Three networks on digits: the ensemble's test accuracy is at least the mean of the members', which are those of their
    own results; so is its likelihood, always (Jensen)."""
    assert cli(*DIGITS, "seeds=3", "hydra.sweep.dir=sweep").rc == 0
    done = cli("action=ensemble", "sweep=sweep")
    assert done.rc == 0, done.stderr
    (found,) = json.loads((tmp_path / "sweep/ensemble/ensemble.json").read_text())["ensembles"]
    accuracy, nll = (found["metrics"]["test"][name] for name in ("accuracy", "nll"))
    results = [json.loads((tmp_path / f"sweep/{i}/results.json").read_text())["metrics"]["test"] for i in range(3)]
    assert accuracy["members"] == pytest.approx([result["accuracy"] for result in results], abs=1e-6)
    assert nll["members"] == pytest.approx([result["loss"] for result in results], abs=1e-5)
    assert accuracy["ensemble"] >= sum(accuracy["members"]) / 3
    assert nll["ensemble"] < sum(nll["members"]) / 3
    assert "test" in done.stdout
    assert "ensemble.csv" in done.stdout


def test_splits_and_settings(cli, tmp_path: Path) -> None:
    """Two settings x two splits x two seeds: four ensembles in two rows, of which the better on validation data reads the
    test set; figures agree with the members' predictions as CSV."""
    words = ("model.hidden=[4],[8]", "data.split_seed=0,1", "seeds=2")
    assert cli(*CURVE, *words, "hydra.sweep.dir=sweep", "-m").rc == 0
    done = cli("action=ensemble", "sweep=sweep")
    assert done.rc == 0, done.stderr
    told = json.loads((tmp_path / "sweep/ensemble/ensemble.json").read_text())
    assert [one["split"] for one in told["ensembles"]] == [{"data.split_seed": "0"}, {"data.split_seed": "1"}] * 2
    assert [[Path(run).name for run in one["runs"]] for one in told["ensembles"]] == [
        ["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"],
    ]  # fmt: skip
    nll = [one["metrics"]["val"]["nll"]["ensemble"] for one in told["ensembles"]]
    best = 0 if sum(nll[:2]) < sum(nll[2:]) else 2
    assert [i for i, one in enumerate(told["ensembles"]) if "test" in one["metrics"]] == [best, best + 1]
    assert "the test set is read for the best row by val/nll only" in done.stdout
    tests = []
    for i, one in enumerate(told["ensembles"]):
        part = "test" if i in (best, best + 1) else "val"
        figures = by_predictions(cli, tmp_path, [f"sweep/{2 * i}", f"sweep/{2 * i + 1}"], part)
        found = {name: values["ensemble"] for name, values in one["metrics"][part].items()}
        assert {name: found[name] for name in figures} == pytest.approx(figures, rel=1e-4)
        tests += [figures] if part == "test" else []
    (line,) = (line for line in told["summary"] if (line["on"], line["metric"]) == ("test", "rmse"))
    a, b = (figures["rmse"] for figures in tests)
    assert line["ensemble"] == pytest.approx((a + b) / 2, rel=1e-4)
    assert line["ensemble_se"] == pytest.approx(abs(a - b) / 2, rel=1e-2)  # std / sqrt(2) of two values
    table = rows(tmp_path / "sweep/ensemble/ensemble.csv")
    assert {(row["model.hidden"], row["data.split_seed"], row["members"]) for row in table} == {
        (h, s, "2") for h in ("[4]", "[8]") for s in ("0", "1")
    }


def test_a_row_that_lacks_a_split_competes_all_the_same(cli, tmp_path: Path) -> None:
    """Of two settings, one of which lacks a run and so a split, the better on the split that both have reads the test set."""
    words = ("model.hidden=[4],[8]", "data.split_seed=0,1", "seeds=2")
    assert cli(*CURVE, *words, "hydra.sweep.dir=sweep", "-m").rc == 0
    runs = ",".join(f"sweep/{number}" for number in range(7))
    assert cli("action=ensemble", f"action.runs=[{runs}]", "action.output=out").rc == 0
    told = json.loads((tmp_path / "out/ensemble.json").read_text())["ensembles"]
    assert [len(one["runs"]) for one in told] == [2, 2, 2]
    first, second, third = (one["metrics"]["val"]["nll"]["ensemble"] for one in told)
    tested = [i for i, one in enumerate(told) if "test" in one["metrics"]]
    assert tested == ([0, 1] if first < third else [2]), (first, second, third)


def by_predictions(cli, tmp_path: Path, folders: list[str], split: str) -> dict[str, float]:
    """RMSE and both likelihoods of an ensemble from what `action=predict` writes of its members."""
    found = []
    for folder in folders:
        assert cli("action=predict", f"run={folder}", f"action.split={split}").rc == 0
        found.append(rows(tmp_path / folder / "predictions.csv"))
    name = next(key for key in found[0][0] if key.startswith("mean_")).removeprefix("mean_")
    mean, std, y = (np.array([[float(row[f"{what}_{name}"]) for row in table] for table in found])
                    for what in ("mean", "std", "target"))  # fmt: skip
    logs = -0.5 * np.log(2 * np.pi) - np.log(std) - 0.5 * ((y - mean) / std) ** 2
    variance = (std**2 + mean**2).mean(0) - mean.mean(0) ** 2
    return {
        "rmse": float(np.sqrt(((mean.mean(0) - y[0]) ** 2).mean())),
        "nll": float(-(logsumexp(logs, axis=0) - np.log(len(folders))).mean()),
        "nll_gaussian": float(
            (0.5 * np.log(2 * np.pi * variance) + 0.5 * (y[0] - mean.mean(0)) ** 2 / variance).mean()
        ),
    }


def test_sealed_test_set_stays_sealed_on_request(cli, tmp_path: Path) -> None:
    """`action.test=false` evaluates on validation data only; reading the test set twice is counted and told."""
    assert cli(*CURVE, "seeds=2", "hydra.sweep.dir=sweep").rc == 0
    file = tmp_path / "sweep/ensemble/ensemble.json"
    for words, parts, reads in (
        (["action.test=false"], {"val"}, 0),
        ([], {"val", "test"}, 1),
        ([], {"val", "test"}, 2),
    ):
        done = cli("action=ensemble", "sweep=sweep", *words)
        assert done.rc == 0, done.stderr
        assert json.loads(file.read_text())["test_reads"] == reads
        assert {row["on"] for row in rows(file.with_suffix(".csv"))} == parts
        assert ("have read the test set 2 times" in done.stdout) == (reads == 2)


def test_networks_of_any_kind(cli, tmp_path: Path) -> None:
    """Runs of several commands with other models and losses make one ensemble with `action.over=all`."""
    for name, words in {
        "a": [],
        "b": ["model.hidden=[6]", "seed=1"],
        "c": ["loss=ce", "loss.label_smoothing=0.1"],
    }.items():
        assert cli(*DIGITS, *words, f"hydra.run.dir={name}").rc == 0
    done = cli("action=ensemble", "action.runs=[a,b,c]", "action.over=all", "action.output=out")
    assert done.rc == 0, done.stderr
    (one,) = json.loads((tmp_path / "out/ensemble.json").read_text())["ensembles"]
    assert len(one["runs"]) == 3


# ---- bad input ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sweep`: two seeds; `split0`, `split1`: runs on other splits; `other`: another data set of the same size; `hinge`: no
    probabilities."""
    import os

    from dlrun.cli import run

    folder, before = tmp_path_factory.mktemp("made"), os.getcwd()
    os.chdir(folder)
    try:
        assert run([*CURVE, "seeds=2", "hydra.sweep.dir=sweep"]) == 0
        for seed in (0, 1):
            assert run([*CURVE, f"seed={seed}", f"data.split_seed={seed}", f"hydra.run.dir=split{seed}"]) == 0
            assert run([*DIGITS, "loss=hinge", f"seed={seed}", f"hydra.run.dir=hinge{seed}"]) == 0
        assert run([*CURVE, "seed=1", "data.limit_train=200", "hydra.run.dir=fewer"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy of these runs in the folder of the test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


BAD = [
    ([], "sweep: no folder given"),
    (["sweep=sweep", "action.runs=[split0]"], "action.runs: not together with sweep="),
    (["sweep=nowhere"], "sweep: no such folder: nowhere"),
    (["action.runs=[split0]"], "needs two or more finished runs that differ in seed; 1 of 1 runs finished"),
    (["action.runs=[split0,split1]"], "split0 has data.split_seed=0, split1 has data.split_seed=1"),
    (["action.runs=[split0,split0]"], "needs two or more finished runs"),
    (["action.runs=[sweep/0,fewer]"], "no two runs differ only in it"),
    (["action.runs=[sweep/0,fewer]", "action.over=[seed,data.limit_train]"], "trained on different samples"),
    (["action.runs=[sweep/0,hinge0]", "action.over=all"], "cannot be averaged"),
    (["action.runs=[hinge0,hinge1]"], "hinge gives no probabilities of classes to average"),
    (["run=split0"], "run: an ensemble has several runs"),
    (["sweep=sweep", "action.over=[]"], "action.over: no setting given"),
    (["sweep=sweep", "action.over=[data.split]"], "members of an ensemble share their split"),
    (["sweep=sweep", "action.over=[sed]"], "no run has a setting 'sed'; did you mean 'seed'?"),
    (["sweep=sweep", "action.output=sweep/0/results.json"], "action.output: cannot create"),
    (["sweep=sweep", "action.test=maybe"], "action.test: got 'maybe'"),
]


@pytest.mark.parametrize(("words", "expected"), BAD, ids=[" ".join(words) or "nothing" for words, _ in BAD])
def test_bad_input_gets_one_line(cli, copied: Path, words: list[str], expected: str) -> None:
    """Exit code 1 and one line that says what, where and what is allowed."""
    done = cli("action=ensemble", *words)
    assert done.rc == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def damage_results(run: Path) -> None:
    (run / "results.json").write_text(json.dumps({"status": "interrupted"}))


def remove_best(run: Path) -> None:
    (run / "checkpoints/best.pt").unlink()


@pytest.mark.parametrize(
    ("harm", "expected"),
    [(damage_results, "is not finished (interrupted)"), (remove_best, "has no checkpoints/best.pt")],
)
def test_runs_that_cannot_be_members(cli, copied: Path, harm: Callable[[Path], None], expected: str) -> None:
    """An unfinished run, or one without best.pt, is named; it is left out where two others remain."""
    harm(copied / "sweep/0")
    done = cli("action=ensemble", "sweep=sweep")
    assert (done.rc, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
    assert expected in done.stderr
    assert cli(*CURVE, "seeds=3", "hydra.sweep.dir=three").rc == 0
    harm(copied / "three/1")
    done = cli("action=ensemble", "sweep=three")
    assert done.rc == 0, done.stderr
    assert f"note: three/1: {expected}" in done.stdout


def test_saved_configurations_are_data(cli, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module named in a member's configuration is not imported unasked; a damaged configuration gets one line."""
    file = copied / "sweep/1/.hydra/config.yaml"
    text = file.read_text()
    (copied / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(copied))
    file.write_text(text.replace("model:\n", "model:\n  import: evil\n"))
    done = cli("action=ensemble", "sweep=sweep")
    assert (done.rc, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
    assert "imports evil, which runs code; nothing was imported" in done.stderr
    file.write_text(text.replace("model:\n", "modle:\n"))
    done = cli("action=ensemble", "sweep=sweep")
    assert (done.rc, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
    assert "config.yaml is damaged (no 'model')" in done.stderr
    file.write_text(text.replace("hidden:", "hiden:"))
    done = cli("action=ensemble", "sweep=sweep")
    assert (done.rc, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
    assert "ensemble: sweep/1: model.hiden: unknown setting of mlp" in done.stderr
    file.write_text(text.replace("data:\n", "data: &data\n  loop: *data\n"))
    done = cli("action=ensemble", "sweep=sweep")
    assert (done.rc, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
    assert "config.yaml is damaged (it has no end)" in done.stderr
    file.write_text(re.sub(r"transfer:\n(  .*\n)*", "", text))  # as an older dlrun wrote it
    assert cli("action=ensemble", "sweep=sweep").rc == 0


# ---- the UCI recipes ---------------------------------------------------------------------------------------------------

UCI = ("uci_boston", "uci_concrete", "uci_energy", "uci_wine", "uci_yacht")


@pytest.mark.parametrize("experiment", UCI)
def test_a_recipe_sweeps_over_the_standard_splits(experiment: str, hydra_clean: None) -> None:
    """`-m experiment=uci_yacht` runs 20 splits: one hidden layer of 50 ReLU units, mean and variance."""
    from hydra import compose, initialize_config_dir

    from dlrun.settings import config_dir

    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        found = compose("config", [f"experiment={experiment}"], return_hydra_config=True)
    assert dict(found.hydra.sweeper.params) == {"data.split": "range(20)"}
    assert (list(found.model.hidden), found.model.activation, found.loss.name) == ([50], "relu", "gaussian_nll")


def test_a_recipe_in_one_command(cli, data_dir: Path, tmp_path: Path) -> None:
    """Two splits x two seeds of Yacht, shortened, then the ensembles; splits on the command line beat the recipe's."""
    short = ("trainer.epochs=2", "data.split=0,19", "hydra/launcher=basic", "hydra.sweep.dir=yacht")
    done = cli("experiment=uci_yacht", "seeds=2", *short)
    assert done.rc == 0, done.stderr
    done = cli("action=ensemble", "sweep=yacht")
    assert done.rc == 0, done.stderr
    told = json.loads((tmp_path / "yacht/ensemble/ensemble.json").read_text())
    assert [one["split"]["data.split"] for one in told["ensembles"]] == ["0", "19"]
    assert {line["metric"] for line in told["summary"]} >= {"rmse", "nll", "nll_gaussian"}
