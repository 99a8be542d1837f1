"""The schedules against torch.optim.lr_scheduler and the curriculum's literals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler as reference

from dlrun.registry import ConfigError
from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._build import build_scheduler

LR, EPOCHS, PER_EPOCH = 0.3, 6, 5
TOTAL = EPOCHS * PER_EPOCH


def rates(node: dict) -> list[float]:
    schedule = build_scheduler(node, TOTAL, PER_EPOCH)
    return [LR * schedule.factor(step) for step in range(TOTAL)]


def pytorch_rates(make: Callable[[torch.optim.Optimizer], reference.LRScheduler], every: int = 1) -> list[float]:
    """The learning rate of each update, with the PyTorch schedule advanced after every `every` updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, momentum=0.9)
    schedule = make(optimizer)
    found = []
    for step in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0 and step + 1 < TOTAL:
            schedule.step()
    return found


CASES = {
    "constant": ({"name": "constant"}, lambda o: reference.ConstantLR(o, factor=1.0), 1),
    "step": ({"name": "step", "step_epochs": 2, "gamma": 0.3}, lambda o: reference.StepLR(o, 2, 0.3), PER_EPOCH),
    "milestones": (
        {"name": "step", "milestones": [1, 4], "gamma": 0.5},
        lambda o: reference.MultiStepLR(o, [1, 4], 0.5),
        PER_EPOCH,
    ),
    "cosine": (
        {"name": "cosine", "final_factor": 0.1},
        lambda o: reference.CosineAnnealingLR(o, T_max=TOTAL, eta_min=0.1 * LR),
        1,
    ),
    "polynomial": (
        {"name": "polynomial", "power": 2.0},
        lambda o: reference.PolynomialLR(o, total_iters=TOTAL, power=2.0),
        1,
    ),
    "inverse_time": (
        {"name": "inverse_time", "decay": 0.7},
        lambda o: reference.LambdaLR(o, lambda step: 1 / (1 + 0.7 * step / PER_EPOCH)),
        1,
    ),
    "one_cycle": (
        {"name": "one_cycle"},
        lambda o: reference.OneCycleLR(o, max_lr=LR, total_steps=TOTAL),
        1,
    ),
    "one_cycle_linear": (
        {"name": "one_cycle", "anneal": "linear", "pct_start": 0.45, "div_factor": 5, "final_div_factor": 10},
        lambda o: reference.OneCycleLR(
            o, LR, TOTAL, pct_start=0.45, anneal_strategy="linear", div_factor=5, final_div_factor=10
        ),
        1,
    ),
    "one_cycle_no_rise": (
        {"name": "one_cycle", "pct_start": 0.0},
        lambda o: reference.OneCycleLR(o, LR, TOTAL, pct_start=0.0),
        1,
    ),
    "one_cycle_all_rise": (
        {"name": "one_cycle", "pct_start": 1.0},
        lambda o: reference.OneCycleLR(o, LR, TOTAL, pct_start=1.0),
        1,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_pytorch(case: str) -> None:
    """Each schedule gives the learning rates of its PyTorch counterpart at every update."""
    node, make, every = CASES[case]
    assert rates(node) == pytest.approx(pytorch_rates(make, every), rel=1e-9, abs=1e-15)


@pytest.mark.curriculum("O13")
def test_inverse_time_is_one_over_n() -> None:
    """With decay 1 the learning rate at the start of epoch n (from 0) is lr / (1 + n)."""
    assert rates({"name": "inverse_time", "decay": 1.0})[::PER_EPOCH] == pytest.approx(
        [LR / (1 + n) for n in range(EPOCHS)]
    )


def test_warmup_equals_pytorch() -> None:
    """A warm-up of two epochs over a constant rate equals PyTorch's LinearLR from 1 / (steps + 1)."""
    steps = 2 * PER_EPOCH
    make = lambda o: reference.LinearLR(o, start_factor=1 / (steps + 1), total_iters=steps)  # noqa: E731
    assert rates({"name": "constant", "warmup_epochs": 2}) == pytest.approx(pytorch_rates(make))


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_warmup_for_all(name: str) -> None:
    """Every schedule takes warm-up: it scales the first updates linearly and leaves the later ones as they were."""
    plain, warm = rates({"name": name}), rates({"name": name, "warmup_epochs": 0.8})
    assert warm[4:] == plain[4:]
    assert [w / p for w, p in zip(warm[:4], plain[:4], strict=True)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("name", SCHEDULERS.names())
@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_short_runs(name: str, total: int) -> None:
    """Every schedule gives finite factors in [0, 1] for runs of any length, and past their end."""
    schedule = build_scheduler({"name": name}, total, 2)
    factors = [schedule.factor(step) for step in range(total + 2)]
    assert all(math.isfinite(f) and 0 <= f <= 1 for f in factors)


@pytest.mark.parametrize("name", SCHEDULERS.names())
def test_pure_function_of_the_step(name: str) -> None:
    """Without observations the factor of a step does not depend on which steps were asked for before."""
    forward = build_scheduler({"name": name}, TOTAL, PER_EPOCH)
    backward = build_scheduler({"name": name}, TOTAL, PER_EPOCH)
    there = [forward.factor(step) for step in range(TOTAL)]
    assert there == [backward.factor(step) for step in reversed(range(TOTAL))][::-1]
    assert isinstance(there[0], float)


@pytest.mark.curriculum("O14")
def test_halving_literals() -> None:
    """On a flat validation error a learning rate of 0.1 becomes 0.05, then 0.025, with the defaults."""
    schedule = build_scheduler({"name": "halve_on_plateau"}, TOTAL, PER_EPOCH)
    rate = []
    for _ in range(3):
        schedule.observe({"val/loss": 1.0, "val/accuracy": 0.9})
        rate.append(0.1 * schedule.factor(7))
    assert rate == pytest.approx([0.1, 0.05, 0.025])


@pytest.mark.curriculum("O14")
def test_halving_watches_the_error() -> None:
    """The default monitor follows the validation error, not the loss, and takes the loss where there is no accuracy."""
    schedule = build_scheduler({"name": "halve_on_plateau"}, TOTAL, PER_EPOCH)
    for loss, accuracy in ((1.0, 0.5), (2.0, 0.6), (3.0, 0.7)):
        schedule.observe({"val/loss": loss, "val/accuracy": accuracy})
    assert schedule.factor(0) == 1.0
    schedule.observe({"val/loss": 0.1, "val/accuracy": 0.7})
    assert schedule.factor(0) == 0.5
    regression = build_scheduler({"name": "halve_on_plateau"}, TOTAL, PER_EPOCH)
    regression.observe({"val/loss": 1.0})
    regression.observe({"val/loss": 1.5})
    assert regression.factor(0) == 0.5


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize(("patience", "threshold"), [(1, 0.0), (2, 0.0), (3, 0.05)])
def test_halving_equals_pytorch(direction: str, patience: int, threshold: float) -> None:
    """Over a noisy sequence the factors equal ReduceLROnPlateau's (whose patience counts one less)."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plateau = reference.ReduceLROnPlateau(
            optimizer, direction, 0.5, patience - 1, threshold, "abs", min_lr=0.02, eps=0.0
        )
    node = {"name": "halve_on_plateau", "monitor": "val/x", "direction": direction, "patience": patience}
    schedule = build_scheduler({**node, "threshold": threshold, "min_factor": 0.02}, TOTAL, PER_EPOCH)
    generator = torch.Generator().manual_seed(0)
    values = torch.exp(-torch.arange(40) / 10) + 0.1 * torch.randn(40, generator=generator)
    seen = set()
    for value in (values if direction == "min" else -values).tolist():
        plateau.step(value)
        schedule.observe({"val/x": value})
        assert schedule.factor(0) == optimizer.param_groups[0]["lr"]
        seen.add(schedule.factor(0))
    assert len(seen) > 3


def test_halving_state_round_trip() -> None:
    """A saved plateau schedule goes on where it stood, with plain containers."""
    values = [0.5, 0.6, 0.4, 0.45, 0.41, 0.42]
    node = {"name": "halve_on_plateau", "monitor": "val/loss", "patience": 2}
    whole, first, second = (build_scheduler(node, TOTAL, PER_EPOCH) for _ in range(3))
    for value in values:
        whole.observe({"val/loss": value})
    for value in values[:4]:
        first.observe({"val/loss": value})
    state = first.state_dict()
    assert all(value is None or isinstance(value, (int, float)) for value in state.values())
    second.load_state_dict(state)
    for value in values[4:]:
        second.observe({"val/loss": value})
    assert second.state_dict() == whole.state_dict()
    assert whole.factor(0) == 0.5


def test_halving_survives_undefined_values() -> None:
    """NaN and a metric that is left out for once count as no improvement."""
    schedule = build_scheduler({"name": "halve_on_plateau", "monitor": "val/auroc"}, TOTAL, PER_EPOCH)
    schedule.observe({"val/auroc": 0.5})
    schedule.observe({"val/loss": 1.0})
    schedule.observe({"val/auroc": math.nan})
    assert schedule.factor(0) == 0.25


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "cosin"}, "scheduler.name: unknown 'cosin'.*did you mean 'cosine'"),
        ({"name": "cosine", "final_factor": 2}, "scheduler.final_factor: got 2"),
        ({"name": "step", "gamma": 0}, "scheduler.gamma: got 0"),
        ({"name": "constant", "warmup_epochs": -1}, "scheduler.warmup_epochs: got -1"),
        ({"name": "one_cycle", "anneal": "cosine"}, "scheduler.anneal: got 'cosine'"),
        ({"name": "halve_on_plateau", "monitor": "test/loss"}, "scheduler.monitor: got 'test/loss'"),
    ],
)
def test_bad_settings(node: dict, message: str) -> None:
    """A wrong name or value is one line with the key, the value and what is allowed."""
    with pytest.raises(ConfigError, match=message) as error:
        build_scheduler(node, TOTAL, PER_EPOCH)
    assert "\n" not in str(error.value)


def test_monitor_that_nothing_reports() -> None:
    """A monitor that validation does not report is refused at the first validation, with the nearest match."""
    schedule = build_scheduler({"name": "halve_on_plateau", "monitor": "val/los"}, TOTAL, PER_EPOCH)
    with pytest.raises(ConfigError, match=r"'val/los' is not reported; allowed: .*did you mean 'val/loss'"):
        schedule.observe({"train/loss": 1.0, "val/loss": 1.0})
