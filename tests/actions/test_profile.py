"""Where the time of a configuration goes, and which settings would make it faster."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dlrun.actions import _comparison, _epoch, _phases, _profile_tables, _turns, _variants
from dlrun.actions._comparison import AGAIN, GIVEN, Comparison, rows
from dlrun.actions._epoch import PHASES, TimedEpoch
from dlrun.actions._operators import top_operators, trace
from dlrun.actions._phases import LOOP, Phases, replaced, watched
from dlrun.actions._profile_tables import advice, command_line, duration, suggestions
from dlrun.actions._turns import ROUNDS, TooSlow, median_with_interval, take_turns
from dlrun.actions._variants import Variant, variants_of
from dlrun.build import build_trainer
from dlrun.callbacks._base import Callback
from dlrun.divergence import Diverged
from dlrun.trainer import Trainer

QUICK = ("model=mlp", "model.hidden=[8]", "data=digits", "device=cpu", "trainer.threads=1")


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of pytest share the cores: no variant takes more than one."""
    monkeypatch.setattr(_variants, "cores", lambda: 1)


@pytest.fixture
def make(composed: Callable[..., dict], tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of the quick configuration with changes."""

    def trainer(*words: str, folder: str = "made", quick: tuple[str, ...] = QUICK) -> Trainer:
        (tmp_path / folder).mkdir()
        return build_trainer(composed(*quick, *words), tmp_path / folder)

    return trainer


class Clock:
    """Time that only goes on when told to; stands for the module `time`."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds

    def during(self, seconds: float, function: Callable[..., Any] = lambda: None) -> Callable[..., Any]:
        """The function, which now takes so long."""

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.seconds += seconds
            return function(*args, **kwargs)

        return slow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of everything that profiles."""
    clock = Clock()
    for module in (_phases, _epoch, _turns):
        monkeypatch.setattr(module, "time", clock)
    return clock


# ---- phases -----------------------------------------------------------------------------------------------------------


def test_an_update_on_the_whole_set_is_refused(cli, tmp_path: Path) -> None:
    """An optimizer that solves at once has no steps to time: one line, and nothing is left."""
    done = cli("action=profile", "data=affine", "model=linear", "optimizer=closed_form", "hydra.run.dir=p")
    assert (done.rc, done.stderr.count("\n")) == (1, 1)
    assert "optimizer.name: closed_form solves in one update; action=profile has no steps to time" in done.stderr
    assert not (tmp_path / "p").exists()


def test_a_phase_within_a_phase_is_part_of_it(clock: Clock) -> None:
    """Seconds count once, for the outer phase; those outside all phases for the loop, also after an error."""
    phases = Phases(torch.device("cpu"))
    inner = phases.wrap("forward", clock.during(2))
    outer = phases.wrap("validation", clock.during(3, inner))
    inner()
    clock.seconds += 5
    outer()
    with pytest.raises(ZeroDivisionError):
        phases.wrap("data", clock.during(7, lambda: 1 // 0))()
    clock.seconds += 1
    phases.switch(LOOP)
    assert {phase: s for (_, phase), s in phases.seconds.items()} == {"forward": 2, "validation": 5, "data": 7, LOOP: 6}


def test_replaced_puts_back() -> None:
    """An attribute of the object itself, one of its class, and one that an error leaves."""

    class Thing:
        shared = 1

    thing = Thing()
    thing.own = 2  # type: ignore[attr-defined]
    with replaced(thing, "shared", 5), replaced(thing, "own", 6):
        assert (thing.shared, thing.own) == (5, 6)  # type: ignore[attr-defined]
    assert vars(thing) == {"own": 2}
    with pytest.raises(KeyError), replaced(Thing, "shared", 5):
        raise KeyError
    assert Thing.shared == 1


class Slow(Callback):
    """Takes half a second of every step, 4 s of an evaluation of the training and 1000 s at the end."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step(self, *_: Any) -> None:
        self.clock.seconds += 0.5

    def on_evaluation(self, run: Any, split: str, metrics: Any) -> None:
        self.clock.seconds += 4 if split == "train" else 0

    def on_fit_end(self, run: Any) -> None:
        self.clock.seconds += 1000


def slowed(trainer: Trainer, clock: Clock) -> Trainer:
    """The trainer, every phase of which takes a known time: 1, 5, 3, 2 and 0.5 s of a step; 20, 11 + 6 and 4 s of an epoch;
    0.25 s of each step belong to the loop."""
    run, data, task = trainer.run, trainer.run.data, trainer.run.task
    epoch = data.epoch

    def batches(*args: Any) -> Any:
        for batch in epoch(*args):
            clock.seconds += 1
            yield batch

    def forward(model: Any, batch: Any, stream: Any) -> Any:
        clock.seconds += 5 if run.model.training else 0
        result = task(model, batch, stream)
        if run.model.training:
            result.loss.register_hook(clock.during(3, lambda gradient: None))
        return result

    data.epoch = batches  # type: ignore[method-assign]
    run.task = _phases.Instead(task, forward)  # type: ignore[assignment]
    run.optimizer.step = clock.during(2, run.optimizer.step)  # type: ignore[method-assign]
    trainer.scheduler.factor = clock.during(0.25, trainer.scheduler.factor)  # type: ignore[method-assign]
    for name, seconds in (("evaluate", 20), ("save_last", 11), ("_save_best", 6)):
        vars(trainer)[name] = clock.during(seconds, getattr(trainer, name))
    trainer.callbacks.append(Slow(clock))
    return trainer


STEP = {"data": 1, "forward": 5, "backward": 3, "optimizer": 2, "logging": 0.5, LOOP: 0.25}


@pytest.mark.parametrize(
    ("words", "limit", "steps", "of"),
    [
        (("data.limit_train=320",), 300, 9, 10),
        (("data.limit_train=320",), 50, 5, 10),
        (("data.limit_train=320",), 1000, 65, 10),
        (("data.limit_train=32",), 1000, 10, 1),
        (("data.limit_train=64", "trainer.epochs=1"), 1000, 1, 2),
        (("trainer.steps=1",), 1000, 1, 1),
    ],
    ids=["an epoch", "a part of one", "several", "epochs of one step", "one short epoch", "one step"],
)
def test_every_phase_gets_its_time(
    make: Callable[..., Trainer], clock: Clock, words: tuple[str, ...], limit: float, steps: int, of: int
) -> None:
    """With phases of known length the table is exact, whatever part of an epoch the time suffices for."""
    trainer = slowed(make("data.batch_size=32", "callbacks=none", "trainer.epochs=11", *words), clock)
    timed = TimedEpoch(trainer, limit)
    found = timed.measure()
    assert (timed.steps, timed.steps_per_epoch) == (steps, of)
    seconds = {phase: value * of for phase, value in STEP.items()}
    seconds["logging"] += 4
    checkpoint = found["checkpoint"]["seconds"]
    assert 11 <= checkpoint <= 17  # best.pt is not written in every epoch
    assert checkpoint == 17 or trainer.run.epochs > 1
    seconds |= {"validation": 20.0, "checkpoint": checkpoint}
    assert {phase: row["seconds"] for phase, row in found.items()} == pytest.approx(seconds)
    assert list(found) == list(PHASES)
    assert sum(row["share"] for row in found.values()) == pytest.approx(1)
    assert found["forward"]["step_s"] == pytest.approx(5)
    assert timed.first_step_s == pytest.approx(1 + 5 + 3 + 2 + 0.25)


def test_a_validation_that_takes_too_long_is_cut(
    make: Callable[..., Trainer], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends when its time is over, and the seconds are those of all its samples; a metric that is then undefined ends
    nothing."""
    trainer = make(
        "data.limit_train=320",
        "data.limit_val=100",
        "data.batch_size=32",
        "trainer.epochs=1",
        "callbacks=none",
        "trainer.monitor=val/f1",
    )
    trainer.run.data.evaluation_batch = 32
    split, seen = trainer.run.data.split, []

    def batches(name: str) -> Any:
        for batch in split(name):
            clock.seconds += 10
            seen.append(len(batch.indices))
            yield batch

    trainer.run.data.split = batches  # type: ignore[method-assign]
    monkeypatch.setattr("dlrun.trainer._evaluation.MetricCollection.compute", lambda self: {})
    found = TimedEpoch(trainer, 15).measure()
    assert seen == [32, 32]
    assert found["validation"]["seconds"] == pytest.approx(20 * 100 / 64)


def test_watching_changes_no_number(make: Callable[..., Trainer]) -> None:
    """A run with wrapped phases, dropout, penalties and an average ends with the same weights as one without."""
    words = (
        "model.dropout=0.3",
        "regularization=[l2]",
        "trainer.ema_decay=0.9",
        "trainer.epochs=2",
        "data.limit_train=200",
    )
    plain, seen = make(*words), make(*words, folder="seen")
    backward = torch.Tensor.backward
    plain.fit()
    with watched(seen, Phases(torch.device("cpu")).wrap):
        seen.fit()
    assert torch.Tensor.backward is backward
    assert plain.run.history == seen.run.history
    for name, value in plain.run.model.state_dict().items():
        assert torch.equal(value, seen.run.model.state_dict()[name]), name


# ---- turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "left_out"), [(1, 0), (4, 0), (5, 0), (7, 0), (8, 1), (11, 2), (15, 3)])
def test_the_interval_holds_the_median_in_nine_of_ten_cases(n: int, left_out: int) -> None:
    """The order statistics are those of the binomial distribution, checked against its sum; leaving out one more at either
    end would not do."""
    values = list(range(n))
    middle, low, high = median_with_interval(values[::-1])
    assert (middle, low, high) == ((n - 1) / 2, left_out, n - 1 - left_out)
    outside = [2 * sum(math.comb(n, i) for i in range(k)) / 2**n for k in (left_out + 1, left_out + 2)]
    assert n < 5 or outside[0] <= 0.1 < outside[1]


def test_turns_are_counted_by_round(clock: Clock) -> None:
    """Every one has a turn in each round; one that fails is left out with its first line, and the first one's error is
    raised."""
    calls: list[str] = []

    def turn(name: str, fails_after: int = 1000) -> Callable[[], float]:
        def take() -> float:
            calls.append(name)
            clock.seconds += 0.1
            if calls.count(name) > fails_after:
                raise Diverged("not finite\nand more")
            return 10.0 * len(name)

        return take

    filled: dict[str, tuple[float, float]] = {}

    def fill(name: str, seconds: float, rate: float) -> None:
        filled[name] = seconds, rate

    turns = {"a": turn("a"), "bb": turn("bb"), "ccc": turn("ccc", 5), "dddd": turn("dddd", 0)}
    rates, left = take_turns(turns, fill, 60.0, (Diverged,))
    assert rates == {"a": [10.0] * ROUNDS, "bb": [20.0] * ROUNDS}
    assert left == {"ccc": "not finite", "dddd": "not finite"}
    assert filled == {name: (60 / ROUNDS / 3, 10.0 * len(name)) for name in ("a", "bb", "ccc")}
    orders = ["".join(calls)[i : i + 3] for i in range(0, 30, 3)]
    assert len(set(orders)) > 1
    with pytest.raises(Diverged):
        take_turns({"a": turn("a", 0)}, fill, 60.0, (Diverged,))


def test_slow_turns_are_refused_at_once(clock: Clock) -> None:
    """Seven rounds of two turns of 10 s do not fit into 2 x 60 s; only the first one has been tried."""
    turns = {"a": clock.during(10, lambda: 1.0), "b": clock.during(10, lambda: pytest.fail("was tried"))}
    with pytest.raises(TooSlow) as raised:
        take_turns(turns, lambda *_: None, 60.0, ())
    assert raised.value.args == (70,)


def test_turns_end_with_their_time(clock: Clock) -> None:
    """After five rounds, when the time is over."""
    rates, _ = take_turns({"a": clock.during(3, lambda: 1.0)}, lambda *_: None, 14.0, ())
    assert rates == {"a": [1.0] * 5}


def test_gains() -> None:
    """A variant is compared with the mean of the two turns as given of its round; only one whose interval begins at 1.03 or
    above gains, and the configuration itself never does."""
    rates = {GIVEN: [100.0] * 7, AGAIN: [110.0] * 7, "fast=1": [115.5] * 7, "same=1": [107.0] * 6 + [200.0]}
    again, fast, same, failed = rows(rates, {"fast=1": "last bits", "same=1": "results"}, {"bad=1": "diverged"})
    assert (again["setting"], again["speed"], again["gain"]) == (AGAIN, pytest.approx(1.1), False)
    assert (fast["speed"], fast["gain"], fast["samples_per_s"], fast["rounds"]) == (pytest.approx(1.1), True, 115.5, 7)
    assert (same["low"], same["gain"]) == (pytest.approx(107 / 105), False)
    assert failed == {"setting": "bad=1", "changes": "", "why": "diverged"}


def test_steps_go_on_through_epochs(
    make: Callable[..., Trainer], composed: Callable[..., dict], tmp_path: Path
) -> None:
    """Turns are real updates of the trainer, as many as asked for, over the end of an epoch; a variant of the batch size
    shares what was read."""
    config = composed(*QUICK, "data.limit_train=100", "data.batch_size=32")
    data = make("data.limit_train=100", "data.batch_size=32").run.data
    (tmp_path / "turns").mkdir()
    comparison = Comparison(config, data, 1, False, tmp_path / "turns")
    steps, double = comparison.steps(), comparison.steps(Variant("data.batch_size", 64, ""))
    steps.warm, steps.steps = 1, 6
    assert steps.turn() > 0
    assert steps.trainer.run.step == 7
    assert steps.trainer.run.samples == 100 + 96  # batches of 32, 32, 32, 4 and three more
    double.turn()
    assert (double.data.batch_size, data.batch_size, double.data._store is data._store) == (64, 32, True)
    assert double.trainer.run.samples == 64 + 36 + 64 + 36
    steps.fill(1.0, 3200.0)
    assert (steps.warm, steps.steps) == (20, 80)


@pytest.fixture
def photos(tmp_path: Path) -> tuple[str, ...]:
    """The words for 120 small pictures in two folders, read by a worker process."""
    from PIL import Image

    for number in range(120):
        path = tmp_path / "photos" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    given = ("data=image_folder", f"data.path={tmp_path / 'photos'}", "data.image_size=8", "data.batch_size=4")
    return *given, "data.loader=streaming", "data.workers=1", "model=mlp", "model.hidden=[8]", "device=cpu"


def test_streamed_turns_leave_no_process(
    composed: Callable[..., dict], photos: tuple[str, ...], tmp_path: Path
) -> None:
    """The workers of a turn end with it; the next one goes on in another epoch."""
    import multiprocessing

    config = composed(*photos, "trainer.threads=1")
    (tmp_path / "run").mkdir()
    data = build_trainer(config, tmp_path / "run").run.data
    (tmp_path / "turns").mkdir()
    steps = Comparison(config, data, 1, True, tmp_path / "turns").steps()
    workers = []
    steps.between = lambda: workers.append(len(multiprocessing.active_children()))
    for number in (1, 2):
        assert steps.turn() > 0
        assert steps.trainer.run.step == number * (steps.warm + steps.steps)
        assert multiprocessing.active_children() == []
    assert set(workers) == {1}


# ---- variants and advice ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "compile", "expected"),
    [
        (
            ("model=mlp", "optimizer.implementation=fused"),
            False,
            "optimizer.implementation=foreach trainer.precision=bf16 data.batch_size=64 data.batch_size=128",
        ),
        (
            ("model=lenet", "data.limit_train=100", "optimizer=rmsprop", "trainer.memory_format=contiguous"),
            True,
            "trainer.compile=true trainer.memory_format=channels_last trainer.precision=bf16 data.batch_size=64",
        ),
        (
            ("model=mlp", "trainer.precision=bf16", "optimizer.implementation=foreach", "data.limit_train=40"),
            False,
            "optimizer.implementation=fused trainer.precision=fp32",
        ),
    ],
    ids=["mlp", "lenet", "other settings"],
)
def test_variants(make: Callable[..., Trainer], words: tuple[str, ...], compile: bool, expected: str) -> None:
    """What is tried differs from what is set, exists for the optimizer and the model, and fits the data."""
    trainer = make("data=digits", "device=cpu", "data.batch_size=32", *words, quick=())
    found = variants_of(trainer, 1, compile, 0.0, False)
    assert [variant.word for variant in found] == expected.split()


def test_variants_of_threads_and_loader(make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads up to the cores; where steps wait for streamed data, the settings of the loader."""
    monkeypatch.setattr(_variants, "cores", lambda: 8)
    trainer = make("data.loader=streaming", "data.workers=8")
    threads = [v.word for v in variants_of(trainer, 4, False, 0.0, False) if v.key == "trainer.threads"]
    assert threads == ["trainer.threads=1", "trainer.threads=2", "trainer.threads=8"]
    waiting = [v.word for v in variants_of(trainer, 8, False, 0.5, True)]
    assert waiting[:4] == ["data.workers=4", "data.workers=16", "data.prefetch_factor=8", "data.loader=auto"]
    assert waiting[4:] == ["trainer.threads=1", "trainer.threads=2", "trainer.threads=4"]
    assert not any(v.key.startswith("data.workers") for v in variants_of(trainer, 8, False, 0.1, True))


def gain(setting: str, speed: float, changes: str, certain: bool = True) -> dict[str, Any]:
    return {"setting": setting, "speed": speed, "changes": changes, "gain": certain, "low": 1.1, "high": 2.0}


def test_suggestions() -> None:
    """One command for what changes at most the last bits, one for each of the others; the best of several values, in place
    of what was typed, without what belongs to the action."""
    words = ["model=lenet", "action=profile", "action.seconds=3", "trainer.threads=4", "data.path=my photos"]
    found = suggestions(
        [
            gain("trainer.threads=1", 1.2, "last bits"),
            gain("trainer.threads=2", 1.3, "last bits"),
            gain("data.workers=4", 1.5, "no number"),
            gain("trainer.precision=bf16", 1.4, "results"),
            gain("data.batch_size=64", 1.9, "experiment", certain=False),
        ],
        words,
    )
    start = command_line([], []) + " model=lenet"
    assert [one["command"] for one in found] == [
        f"{start} 'data.path=my photos' data.workers=4 trainer.threads=2",
        f"{start} trainer.threads=4 'data.path=my photos' trainer.precision=bf16",
    ]
    quiet = gain(AGAIN, 1.0, "") | {"low": 0.95, "high": 1.05}
    lines = advice(found, quiet)
    assert lines[0] == (
        "data.workers=4 is 1.50 times as fast, trainer.threads=2 is 1.30 times as fast (measured one at a time); changes "
        "at most the last bits:"
    )
    assert lines[2] == "trainer.precision=bf16 is 1.40 times as fast; changes the results: compare them:"
    assert advice([], quiet) == ["nothing worth changing: no gain of 3 % or more is certain here"]
    assert advice([], quiet | {"low": 0.5})[0].startswith("the same settings differ by a factor of 0.50 to 1.05: ")


def test_top_operators() -> None:
    """By time of their own, a step; ranges such as those of phases are none, but on CUDA all counts that took its time."""
    events = [
        SimpleNamespace(key=key, count=10, self_cpu_time_total=cpu, self_device_time_total=cuda)
        for key, cpu, cuda in (("aten::a", 1e6, 0), ("aten::b", 3e6, 0), ("forward", 9e6, 0), ("kernel", 0, 5e6))
    ]
    found = top_operators(events, 5, cuda=False)
    assert found == [
        {"name": "aten::b", "calls": 2.0, "seconds": 0.6, "share": 0.75},
        {"name": "aten::a", "calls": 2.0, "seconds": 0.2, "share": 0.25},
    ]
    assert top_operators(events, 5, cuda=True) == [{"name": "kernel", "calls": 2.0, "seconds": 1.0, "share": 1.0}]
    assert len(top_operators(events[:2] * 20, 5, cuda=False)) == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.34, "12.3 s"), (0.01234, "12.3 ms"), (4.5e-6, "4.5 us"), (0.0, "0 us"), (1234.5, "1,234 s"), (1.0, "1 s")],
)
def test_durations(seconds: float, text: str) -> None:
    """Three digits and a unit."""
    assert duration(seconds) == text


# ---- the action -------------------------------------------------------------------------------------------------------


def test_the_whole_action(cli, tmp_path: Path) -> None:
    """Tables on standard output, two whole files in the folder and nothing else; threads are put back."""
    threads = torch.get_num_threads()
    done = cli("action=profile", *QUICK, "trainer.epochs=2", "action.seconds=0.6", "hydra.run.dir=p")
    assert done.rc == 0, done.stderr
    assert torch.get_num_threads() == threads
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["profile.json", "trace.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    report = json.loads((tmp_path / "p/profile.json").read_text())
    assert list(report["epoch"]["phases"]) == list(PHASES)
    assert report["epoch"]["steps"] == 41
    assert "reading the data" in report["start_up"]
    assert min(report["start_up"].values()) >= 0
    assert len(report["operators"]) == 10
    named = {row["setting"]: row for row in report["variants"]}
    assert {AGAIN, "trainer.precision=bf16", "data.batch_size=64"} <= set(named)
    for row in named.values():
        assert "why" in row or 0 < row["low"] <= row["speed"] <= row["high"]
    events = {event.get("name") for event in json.loads((tmp_path / "p/trace.json").read_text())["traceEvents"]}
    assert {"data", "forward", "backward", "optimizer", "aten::mm", "aten::addmm", "aten::_fused_adam_"} <= events
    for title in (
        "start-up",
        "an epoch of 41 steps",
        "operators of a step",
        "one setting changed",
        "trace of some steps",
    ):
        assert title in done.stdout
    assert "tensorboard --logdir" not in done.stderr
    again = cli("action=profile", *QUICK, "hydra.run.dir=p")
    assert (again.rc, "already holds 'profile.json'" in again.stderr) == (1, True)


@pytest.mark.parametrize(
    "words",
    [
        ("model=autoencoder", "data=digits", "model.code_size=2"),
        ("model=linear", "data=poly1d", "trainer.precision=bf16", "trainer.clip_norm=1.0"),
        ("model=mlp", "data=digits", "trainer.fast_dev_run=true", "trainer.accumulate=2", "callbacks=none"),
    ],
    ids=["autoencoder", "regression", "dry run"],
)
def test_every_kind_of_run(cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Phases and variants of other tasks, losses, loaders and step shapes."""
    short = ("data.limit_train=200", "action.seconds=0.2", "action.trace=false", "hydra.run.dir=p")
    done = cli("action=profile", "device=cpu", "trainer.threads=1", *words, *short)
    assert done.rc == 0, done.stderr
    report = json.loads((tmp_path / "p/profile.json").read_text())
    assert report["epoch"]["phases"]["forward"]["seconds"] > 0
    assert ("variants" in report) != ("not_compared" in report)
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["profile.json"]


def test_streaming(cli, photos: tuple[str, ...], tmp_path: Path) -> None:
    """Steps that wait for pictures: the loader's settings are tried, and no process is left."""
    import multiprocessing

    short = ("trainer.threads=1", "action.seconds=3", "action.trace=false", "hydra.run.dir=p")
    done = cli("action=profile", *photos, *short)
    assert done.rc == 0, done.stderr
    report = json.loads((tmp_path / "p/profile.json").read_text())
    assert report["epoch"]["phases"]["data"]["seconds"] > 0
    assert ("variants" in report) != ("not_compared" in report)
    assert not any(row["setting"].startswith("data.evaluation") for row in report.get("variants", []))
    assert multiprocessing.active_children() == []


def test_a_variant_that_diverges_is_left_out(
    composed: Callable[..., dict], make: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Its row says why; the others are compared."""
    config = composed(*QUICK, "data.limit_train=100", "optimizer=sgd")
    (tmp_path / "turns").mkdir()
    comparison = Comparison(config, make("data.limit_train=100").run.data, 1, False, tmp_path / "turns")
    bad, good = Variant("optimizer.lr", 1e30, "results"), Variant("trainer.precision", "bf16", "results")
    wrong = Variant("data.batch_size", -1, "experiment")
    found = {row["setting"]: row for row in comparison.of_steps([bad, good, wrong], 1.0)}
    assert "not finite" in found["optimizer.lr=1e+30"]["why"]
    assert "data.batch_size: got -1" in found["data.batch_size=-1"]["why"]
    assert found["trainer.precision=bf16"]["speed"] > 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("optimizer=sgd", "optimizer.lr=1e30"), 3, "not finite"),
        (("action.seconds=0",), 1, "action.seconds"),
        (("run=somewhere",), 1, "run: "),
        (("resume=somewhere",), 1, "resume: "),
        (("hydra.run.dir=/proc/nowhere",), 1, "hydra.run.dir: cannot create"),
        (("optimizer.lr=-1",), 1, "optimizer.lr"),
        (("-m", "seed=0,1"), 1, "leave -m away"),
    ],
)
def test_bad_conditions(cli, tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    """One line, the right exit code, and nothing stays behind."""
    done = cli("action=profile", *QUICK, "callbacks=none", "hydra.run.dir=p", *words)
    assert done.rc == code
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("*")) == []


def test_too_large_for_copies(
    composed: Callable[..., dict], make: Callable[..., Trainer], tmp_path: Path, monkeypatch
) -> None:
    """Where copies of the model do not fit, none is made to fail."""
    monkeypatch.setattr(_comparison, "free_memory", lambda device: 1000)
    (tmp_path / "turns").mkdir()
    comparison = Comparison(composed(*QUICK), make().run.data, 1, False, tmp_path / "turns")
    with pytest.raises(_comparison.ConfigError, match="3 copies of the model"):
        comparison.of_steps([Variant("trainer.precision", "bf16", "results")], 1.0)


def test_ctrl_c(tmp_path: Path) -> None:
    """Exit code 130, and the folder goes with everything in it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dlrun", "action=profile", *QUICK, "action.seconds=600", "trainer.epochs=100000",
         "data.batch_size=1", "hydra.run.dir=p"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # pytest's own parent may ignore it
    )  # fmt: skip
    end = time.monotonic() + 120
    while not list(tmp_path.glob("p/.profile-*/run/tensorboard")) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cuda
def test_on_a_gpu(cli, tmp_path: Path) -> None:
    """The whole action on CUDA: operators are those of the device."""
    done = cli("action=profile", "model=lenet", "data=digits", "device=cuda", "action.seconds=2", "hydra.run.dir=p")
    assert done.rc == 0, done.stderr
    report = json.loads((tmp_path / "p/profile.json").read_text())
    assert report["operators"]
    assert any(row["setting"].startswith("trainer.") for row in report["variants"])


def test_tables_fit_into_eighty_columns() -> None:
    """The longest settings and numbers leave no line folded."""
    from rich.console import Console

    names = (
        "trainer.memory_format=channels_last",
        "optimizer.implementation=foreach",
        "data.evaluation_batch_size=2048",
    )
    table = [gain(name, 1.23, "experiment") | {"samples_per_s": 123456.0} for name in names]
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(_profile_tables.variants_table(table))
    lines = [line for line in capture.get().splitlines() if line.strip()]
    assert len(lines) == 3 + len(names)
    assert all("123,456" in line and line.rstrip().endswith("experiment") for line in lines[3:])


def test_a_trace_that_cannot_be_written(
    make: Callable[..., Trainer], composed: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profiler of PyTorch does not say that the disk is full: a file cut short is refused, and no part of it stays."""
    (tmp_path / "turns").mkdir()
    steps = Comparison(composed(*QUICK), make().run.data, 1, False, tmp_path / "turns").steps()
    monkeypatch.setattr(
        "torch.profiler.profile.export_chrome_trace", lambda self, path: Path(path).write_text('{"traceEvents": [{')
    )
    with pytest.raises(_comparison.ConfigError, match=r"trace\.json: the disk may be full"):
        trace(steps, tmp_path / "trace.json")
    assert not list(tmp_path.glob("*trace*"))
    monkeypatch.setattr("torch.profiler.profile.export_chrome_trace", lambda self, path: None)
    with pytest.raises(_comparison.ConfigError, match=r"trace\.json: the disk may be full"):
        trace(steps, tmp_path / "trace.json")
