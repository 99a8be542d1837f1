"""A member of a stack is trained as its lone twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dlrun.stacking._batches import StackedBatches
from dlrun.stacking._stack import Stack
from dlrun.stacking._step import StackedStep

RATES = {"sgd": 0.05, "momentum": 0.05, "nesterov": 0.05, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3}
ALIKE, CHAOS = (
    1e-7,
    100.0,
)  # relative to the norm; times what a twin moves whose initial weights are nudged by one rounding
Config = dict[str, Any]

OF_OPTIMIZER: dict[str, list[Config]] = {
    "sgd": [{}] * 4,
    "momentum": [{}, {"optimizer.momentum": 0.5}, {"optimizer.momentum": 0.0}, {}],
    "nesterov": [{}, {"optimizer.momentum": 0.5}, {}, {}],
    "adam": [{}, {"optimizer.betas": [0.8, 0.99]}, {"optimizer.eps": 1e-6}, {}],
    "adamw": [{}, {"optimizer.betas": [0.8, 0.99]}, {"optimizer.eps": 1e-6}, {}],
    "rmsprop": [{}, {"optimizer.alpha": 0.9}, {"optimizer.momentum": 0.5}, {"optimizer.eps": 1e-6}],
}


def members(lab: Any, optimizer: str, *words: str) -> list[Config]:
    """Four members with augmentation and warm-up that differ in all that can be vectorised."""
    config = lab.config("regularization=[l2,l1]", "scheduler.warmup_epochs=0.5", f"optimizer={optimizer}", *words)
    augmentation = {"shift": {"pixels": 1}, "flip": {"p": 0.5}, "rotation": {"degrees": 10.0}}
    config = lab.varied(config, {"data.augmentation": augmentation, "loss.label_smoothing": 0.0})
    rate = RATES[optimizer]
    differing: list[Config] = [
        {"optimizer.lr": rate},
        {"seed": 1, "optimizer.lr": 3 * rate, "optimizer.weight_decay": 1e-2, "model.dropout": 0.5},
        {"seed": 2, "optimizer.lr": 0.3 * rate, "model.dropout": 0.0, "regularization.l2.strength": 1e-3},
        {"seed": 1, "optimizer.lr": rate, "model.init": "he_normal", "scheduler": {"name": "step", "step_epochs": 2.0}},
    ]
    differing[1]["loss.label_smoothing"] = 0.1
    differing[2]["trainer.clip_norm"] = 1.0
    both = [{**one, **other} for one, other in zip(differing, OF_OPTIMIZER[optimizer], strict=True)]
    return [lab.varied(config, values) for values in both]


@pytest.mark.parametrize("at_once", [True, False], ids=["at_once", "each"])
@pytest.mark.parametrize("optimizer", RATES)
def test_mlp_in_double(optimizer: str, at_once: bool, lab: Any) -> None:
    """With batch norm, dropout, augmentation, schedules, penalties and decay, 60 steps end where lone runs do."""
    check_twins(lab, at_once, members(lab, optimizer, *lab.mlp))


@pytest.mark.parametrize(("optimizer", "at_once"), [("momentum", True), ("adamw", False)])
def test_lenet_in_double(optimizer: str, at_once: bool, lab: Any) -> None:
    """Convolutions likewise."""
    check_twins(lab, at_once, members(lab, optimizer, *lab.lenet, "data.batch_size=8", "data.limit_train=80"))


def check_twins(lab: Any, at_once: bool, configs: list[Config]) -> None:
    """Trains the configurations as a stack and alone, in float64."""
    assert [outcome.status for outcome in lab.stack(configs, double=True, at_once=at_once)] == ["finished"] * len(
        configs
    )
    for number, config in enumerate(configs):
        alone = lab.build(config, f"alone/{number}", double=True)
        start = torch.cat([p.detach().reshape(-1) for p in alone.run.model.parameters()])
        alone.fit()
        end = torch.cat([p.detach().reshape(-1) for p in alone.run.model.parameters()])
        assert lab.distance(start, end) > 1e-3, "nothing was trained"
        found, wanted = lab.weights(f"stack/{number}"), lab.weights(f"alone/{number}")
        assert found.dtype == torch.float64
        moved = lab.distance(found, wanted)
        if moved > ALIKE:
            nudged = lab.build(config, f"nudged/{number}", double=True)
            with torch.no_grad():
                for parameter in nudged.run.model.parameters():
                    parameter.copy_(torch.nextafter(parameter, torch.tensor(torch.inf, dtype=torch.float64)))
            nudged.fit()
            assert moved <= CHAOS * lab.distance(lab.weights(f"nudged/{number}"), wanted), (number, moved)
        check_states(lab.state(f"stack/{number}"), lab.state(f"alone/{number}"))


def check_states(found: Config, wanted: Config) -> None:
    """Both checkpoints hold the same things, with equal counters and states of the optimizer."""
    assert found.keys() == wanted.keys()
    for name in ("counters", "scheduler", "data", "accumulate", "scaler", "average"):
        assert found[name] == wanted[name], name
    assert found["optimizer"]["param_groups"] == wanted["optimizer"]["param_groups"]
    one, other = found["optimizer"]["state"], wanted["optimizer"]["state"]
    assert one.keys() == other.keys()
    for key, state in other.items():
        assert one[key].keys() == state.keys()
        for name, value in state.items():
            assert (one[key][name].dtype, one[key][name].shape) == (value.dtype, value.shape), name
            torch.testing.assert_close(one[key][name], value, rtol=1e-4, atol=1e-6)
    assert found["best"]["best"] == pytest.approx(wanted["best"]["best"], rel=1e-5)
    for split in ("train", "val"):
        assert found["run"]["history"][split] == pytest.approx(wanted["run"]["history"][split], rel=1e-5)


@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_first_gradients_in_single(model: str, lab: Any) -> None:
    """In float32 losses and gradients of the first step are those of the lone runs to 1e-5."""
    trainers = [lab.build(c, str(n)) for n, c in enumerate(members(lab, "adam", *getattr(lab, model)))]
    batch, stack = StackedBatches(trainers).next(), Stack(trainers)
    stack.fill_keys(0)
    found = StackedStep(trainers, stack)(batch)
    for row, trainer in enumerate(trainers):
        trainer.run.model.train()
        result, objective = trainer._forward_backward(batch.of(row), 0, 1.0)
        named = dict(trainer.run.model.named_parameters())
        wanted = torch.cat([named[name].grad.reshape(-1) for name in found.gradients])
        own = torch.cat([gradient[row].reshape(-1) for gradient in found.gradients.values()])
        assert lab.distance(own, wanted) < 1e-5
        assert float(found.objective[row]) == pytest.approx(float(objective), rel=1e-5)
        assert float(found.loss[row]) == pytest.approx(float(result.loss), rel=1e-5)
        assert found.parts.keys() == result.parts.keys() == {"penalty/l1", "penalty/l2"}


def test_samples_and_masks_are_those_of_the_lone_twin(lab: Any) -> None:
    """Order, augmented inputs and dropout keys are equal bit for bit, in later epochs and from the middle of one on."""
    trainers = [lab.build(c, str(n)) for n, c in enumerate(members(lab, "adam", *lab.mlp))]
    stack = Stack(trainers)
    stack.attach([trainer.run.model for trainer in trainers])
    for epoch, start in ((0, 0), (3, 4)):
        for trainer in trainers:
            trainer.run.epoch, trainer.batch = epoch, start
        batches = StackedBatches(trainers)
        alone = [list(trainer.run.data.epoch(epoch, start)) for trainer in trainers]
        for step in range(10 - start):
            batch = batches.next()
            for row in range(len(trainers)):
                assert all(map(torch.equal, batch.of(row), alone[row][step]))
    for step in (0, 1, 255, 256, 1000):
        stack.fill_keys(step)
        for row, trainer in enumerate(trainers):
            dropouts = [module for name, module in trainer.run.model.named_modules() if name in stack.dropouts]
            found = [module.key.clone() for module in dropouts]
            assert len(found) == 2
            assert all(map(torch.equal, found, stack.keys[:, row])), (
                "the members' keys are no views of the stacked ones"
            )
            for module in dropouts:
                module.key.zero_()
            trainer.dropout_keys.fill(step)
            if trainer.dropout_keys.keys:  # else the rate is 0
                assert all(torch.equal(module.key, key) for module, key in zip(dropouts, found, strict=True))


def test_members_of_one_seed_share_their_samples(lab: Any) -> None:
    """Runs that differ in the learning rate alone see one minibatch, which lies in memory once."""
    config = lab.config(*lab.mlp)
    trainers = [lab.build(lab.varied(config, {"optimizer.lr": rate}), str(rate)) for rate in (0.1, 0.01, 0.001)]
    batch = StackedBatches(trainers).next()
    assert batch.shared
    assert batch.inputs.shape == (16, 1, 8, 8)
