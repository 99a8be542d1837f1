"""A member that leaves the stack changes no bit of the others."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
import torch

from dlrun import rundir
from dlrun.actions.train import train
from dlrun.callbacks._base import Callback
from dlrun.divergence import Diverged

Config = dict[str, Any]
WORDS = {
    "mlp": ("model=mlp", "model.hidden=[24,16]", "model.batch_norm=true", "model.dropout=0.2"),
    "lenet": ("model=lenet", "trainer.steps=25"),
    "lenet_bn": ("model=lenet", "model.batch_norm=true", "trainer.steps=25"),
}


def four(lab: Any, model: str, optimizer: str = "adam", **shared: Any) -> list[Config]:
    """Four members of which the third leaves early."""
    config = lab.varied(lab.config(*WORDS[model], f"optimizer={optimizer}"), shared)
    rates = [0.01, 0.003, 0.02, 0.005]
    return [lab.varied(config, {"seed": number % 3, "optimizer.lr": rate}) for number, rate in enumerate(rates)]


def same_bits(lab: Any, pairs: list[tuple[str, str]]) -> None:
    """Weights, statistics, states of the optimizer and metrics of both runs are equal."""
    for one, other in pairs:
        found, wanted = lab.state(one), lab.state(other)
        for name, value in wanted["model"].items():
            assert torch.equal(found["model"][name], value), (one, name)
        for key, state in wanted["optimizer"]["state"].items():
            assert all(torch.equal(found["optimizer"]["state"][key][name], state[name]) for name in state), one
        assert found["run"] == wanted["run"]


@pytest.mark.parametrize(
    ("model", "optimizer", "at_once"),
    [
        ("mlp", "adam", False),
        ("mlp", "adam", True),
        ("mlp", "momentum", True),
        ("lenet", "adam", False),
        ("lenet_bn", "sgd", True),
    ],
)
def test_divergence(model: str, optimizer: str, at_once: bool, lab: Any) -> None:
    """In float32 the others are bit for bit those of a stack in which nobody diverges; the member ends as it would alone."""
    configs = four(lab, model, optimizer)
    bad = lab.varied(configs[2], {"optimizer.lr": 1e30})
    outcomes = lab.stack([*configs[:2], bad, configs[3]], "with", at_once=at_once)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished", "diverged", "finished"]
    lab.stack(configs, "whole", at_once=at_once)
    same_bits(lab, [(f"with/{number}", f"whole/{number}") for number in (0, 1, 3)])
    results = json.loads((lab.folder / "with" / "2" / rundir.RESULTS).read_text())
    alone = lab.build(bad, "alone")
    with pytest.raises(Diverged) as raised:
        alone.fit()
    assert results["status"] == "diverged"
    assert results["message"] == outcomes[2].message == str(raised.value)
    assert results["divergence"] == raised.value.details
    assert results["steps"] == alone.run.step


def test_a_stack_without_it(lab: Any) -> None:
    """Where widths are multiples of what the processor adds at once, it makes no difference whether a member is there."""
    words = ("model=mlp", "model.hidden=[64,32]", "model.batch_norm=true")
    configs = [lab.varied(lab.config(*words), {"seed": number, "optimizer.lr": 0.01}) for number in range(4)]
    configs[2]["optimizer"]["lr"] = 1e30
    lab.stack(configs, "with")
    lab.stack([*configs[:2], configs[3]], "without")
    same_bits(lab, [("with/0", "without/0"), ("with/1", "without/1"), ("with/3", "without/2")])


@pytest.mark.parametrize("left", [1, 2])
def test_down_to_few(left: int, lab: Any) -> None:
    """Likewise where one or two members are left, with samples of their own or shared."""
    for seeds in ((0, 1, 2), (0, 0, 0)):
        name = "".join(map(str, seeds))
        config = lab.config(*WORDS["mlp"])
        good = [lab.varied(config, {"seed": seed, "optimizer.lr": 0.01 / (n + 1)}) for n, seed in enumerate(seeds)]
        both = [good[n] if n < left else lab.varied(good[n], {"optimizer.lr": 1e30}) for n in range(3)]
        lab.stack(both, f"with{name}")
        lab.stack(good, f"whole{name}")
        same_bits(lab, [(f"with{name}/{n}", f"whole{name}/{n}") for n in range(left)])


def test_early_stopping(lab: Any) -> None:
    """A member that stops early is tested and done with; the others go on, bit for bit as beside it."""
    configs = four(lab, "mlp")
    stopping = lab.varied(configs[2], {"trainer.patience": 1, "trainer.min_delta": 100.0})
    outcomes = lab.stack([*configs[:2], stopping, configs[3]], "with")
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert [outcome.epochs for outcome in outcomes] == [6, 6, 2, 6]
    lab.stack(configs, "whole")
    same_bits(lab, [(f"with/{number}", f"whole/{number}") for number in (0, 1, 3)])
    results = json.loads((lab.folder / "with" / "2" / rundir.RESULTS).read_text())
    assert results["status"] == "finished"
    assert (results["epochs"], results["steps"]) == (2, 20)
    assert "accuracy" in results["metrics"]["test"]


def test_divergence_that_is_looked_for_every_so_often(lab: Any) -> None:
    """Where reading each loss would wait for the device, a member that diverged is found later and named by a replay."""
    configs = four(lab, "mlp", "sgd")
    configs[2]["optimizer"]["lr"] = 1e30
    trainers = [lab.build(config, f"unread/{number}") for number, config in enumerate(configs)]
    for trainer in trainers:
        trainer.reads_losses = False
    outcomes = lab.fit(trainers, at_once=True)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished", "diverged", "finished"]
    assert "layer" in outcomes[2].message or "weights" in outcomes[2].message
    lab.stack(configs, "read", at_once=True)
    same_bits(lab, [(f"unread/{n}", f"read/{n}") for n in (0, 1, 3)])


class Failing(Callback):
    """Raises in the second epoch."""

    def on_epoch_start(self, run: Any) -> None:
        if run.epoch == 1:
            raise ValueError("no disk")


class Signal(Callback):
    """Sends SIGTERM to this process after a step, as a cluster would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Any, result: Any) -> None:
        if run.step == self.step:
            signal.raise_signal(signal.SIGTERM)


def test_a_member_that_fails(lab: Any) -> None:
    """An error of one member's own ends that one, with its traceback in its own log."""
    configs = four(lab, "mlp")
    trainers = [lab.build(config, f"with/{number}") for number, config in enumerate(configs)]
    trainers[2].callbacks.append(Failing())
    outcomes = lab.fit(trainers)
    assert [outcome.status for outcome in outcomes] == ["finished", "finished", "failed", "finished"]
    assert outcomes[2].message == "no disk"
    logs = [(lab.folder / "with" / str(n) / "dlrun.log").read_text() for n in range(4)]
    assert ["Traceback" in log for log in logs] == [False, False, True, False]
    assert all(log.count("epoch 1 step 10 val") == 1 for log in logs)


@pytest.mark.parametrize("step", [14, 20])
def test_interrupted_and_gone_on_with_alone(step: int, lab: Any) -> None:
    """At SIGTERM all members write a checkpoint of that step, from which each can be finished alone."""
    configs = four(lab, "mlp", "sgd")
    trainers = [lab.build(config, f"cut/{number}") for number, config in enumerate(configs)]
    trainers[1].callbacks.append(Signal(step))
    outcomes = lab.fit(trainers)
    assert [outcome.status for outcome in outcomes] == ["interrupted"] * 4
    assert {outcome.facts["code"] for outcome in outcomes} == {143}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    lab.stack(configs, "whole")
    for number, trainer in enumerate(trainers):
        folder = trainer.run.folder
        assert lab.state(f"cut/{number}")["counters"]["step"] == step
        rundir.write_config(folder, trainer.run.config)
        train({**trainer.run.config, "resume": str(folder)}, folder)
        results = json.loads((folder / rundir.RESULTS).read_text())
        assert (results["status"], results["steps"]) == ("finished", 60)
        assert lab.distance(lab.weights(f"cut/{number}"), lab.weights(f"whole/{number}")) < 1e-3


def test_a_second_signal_ends_all_at_once(lab: Any) -> None:
    """Nobody waits for checkpoints then; every run is recorded as interrupted."""
    configs = four(lab, "mlp")
    trainers = [lab.build(config, str(number)) for number, config in enumerate(configs)]
    trainers[0].callbacks += [Signal(5), Signal(5)]
    with pytest.raises(KeyboardInterrupt):
        lab.fit(trainers)
    for number in range(4):
        assert json.loads((lab.folder / str(number) / rundir.RESULTS).read_text())["status"] == "interrupted"
