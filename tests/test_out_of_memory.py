"""`trainer.accumulate=auto`: smaller micro-batches where the memory of the device does not suffice, and the same updates."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dlrun import checkpoint, memory, rundir
from dlrun.build import build_trainer, check, resolved
from dlrun.callbacks._base import Callback
from dlrun.memory import out_of_memory
from dlrun.models import MODELS
from dlrun.registry import ConfigError
from dlrun.trainer import Trainer

AUTO = "trainer.accumulate=auto"
BASE = ("device=cpu", "callbacks=none", "data=digits", "data.limit_val=64", "data.limit_test=64", "trainer.epochs=2")
MLP = ("model=mlp", "model.hidden=[16]", "data.batch_size=48", "data.limit_train=240")
CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB of which 1.00 GiB is free."
)


@pytest.fixture
def make(composed: Callable[..., dict], tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer for the given overrides, in a folder of its own."""

    def build(*overrides: str, folder: str = "run") -> Trainer:
        config = composed(*BASE, *overrides)
        check(config)
        (tmp_path / folder).mkdir(exist_ok=True)
        return build_trainer(config, tmp_path / folder)

    return build


def fits(trainer: Trainer, samples: int, from_step: int = 0, error: Exception | None = None) -> None:
    """From a step (counted from 0) on, the last layer has memory for so many samples only while it is trained."""
    last = [m for m in trainer.run.model.modules() if isinstance(m, nn.Linear)][-1]

    def refuse(module: nn.Module, inputs: Any) -> None:
        if module.training and trainer.run.step >= from_step and len(inputs[0]) > samples:
            raise error or torch.OutOfMemoryError(CUDA)

    last.register_forward_pre_hook(refuse)


class Sets(Callback):
    """Sets the number of micro-batches after a step."""

    def __init__(self, trainer: Trainer, step: int, accumulate: int) -> None:
        self.trainer, self.step, self.accumulate = trainer, step, accumulate

    def on_step(self, run: Any, result: Any) -> None:
        if run.step == self.step:
            self.trainer.accumulate = self.accumulate


def state(trainer: Trainer) -> dict[str, Any]:
    """All that a checkpoint holds but times, and the callbacks, which a test adds."""
    return {k: v for k, v in trainer.state_dict().items() if k not in ("fit_seconds", "epoch_seconds", "callbacks")}


def resumed_at(make: Callable[..., Trainer], steps: int, *options: str, **limit: int) -> Trainer:
    """A run with `limit` that was killed after `steps` updates, with last.pt written there, and loaded anew."""
    stopped = make(*options, f"trainer.checkpoint_every_steps={steps}", folder="stopped")
    fits(stopped, **limit)
    original = stopped.save_last

    def save() -> None:
        original()
        raise KeyboardInterrupt

    stopped.save_last = save  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = make(*options, folder="stopped")
    resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
    assert resumed.run.step == steps
    return resumed


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, f"{where}/{number}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "out of memory" in r.getMessage()
    ]


@pytest.mark.parametrize(
    "options",
    [
        (*MLP, "model.dropout=0.0"),
        (*MLP, "model.dropout=0.5", "trainer.clip_norm=0.1", "trainer.ema_decay=0.9"),
        (*MLP, "regularization=[l2,max_norm]", "trainer.precision=bf16", "optimizer=momentum"),
        (*MLP, "trainer.precision=fp16", "data.limit_train=195"),
        ("model=lenet", "model.batch_norm=true", "data.batch_size=48", "data.limit_train=104"),
    ],
    ids=["plain", "dropout, clip, average", "penalties, bf16", "fp16, last minibatch of 3", "batch norm"],
)
def test_updates_are_those_of_the_number_from_the_start(
    make: Callable[..., Trainer], options: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A run that halves twice in its first step ends with the very checkpoint of one told `accumulate=4`: no gradient, batch
    norm statistic or random number of a failed attempt is left. Each halving is said once."""
    told, found = make(*options, "trainer.accumulate=4", folder="told"), make(*options, AUTO, folder="found")
    fits(found, 12)
    for trainer in (told, found):
        trainer.fit()
    assert_same(state(told), state(found))
    assert [text.split("; ")[0] for text in warnings(caplog)] == ["step 1: out of memory"] * 2
    assert [text.rpartition("trainer.accumulate=")[2] for text in warnings(caplog)] == ["2)", "4)"]


@pytest.mark.parametrize("options", [(*MLP, "model.dropout=0.5"), ("model=lenet", "model.batch_norm=true")])
def test_memory_that_runs_out_in_mid_run(make: Callable[..., Trainer], options: tuple[str, ...]) -> None:
    """The steps before are whole and the steps after split, as if somebody had changed the setting there."""
    options = (*options, "data.batch_size=48", "data.limit_train=240")
    told, found = make(*options, folder="told"), make(*options, AUTO, folder="found")
    told.callbacks = [Sets(told, 6, 2)]
    fits(found, 24, from_step=6)
    for trainer in (told, found):
        trainer.fit()
    assert found.accumulate == 2
    assert_same(state(told), state(found))


@pytest.mark.parametrize("options", [MLP, ("model=lenet", "model.batch_norm=true", "data.limit_train=96")])
def test_gradients_of_micro_batches_that_did_fit_are_dropped(
    make: Callable[..., Trainer], options: tuple[str, ...]
) -> None:
    """Memory runs out in the second of two micro-batches: the first, done again as two, counts once."""
    options = (*options, "data.batch_size=48", "trainer.steps=1")
    told, found = make(*options, "trainer.accumulate=4", folder="told"), make(*options, AUTO, folder="found")
    found.accumulate, calls = 2, []

    def refuse(module: nn.Module, inputs: Any) -> None:
        calls.append(len(inputs[0]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError(CUDA)

    handle = found.run.model.register_forward_pre_hook(refuse)
    batch = next(iter(found.run.data.epoch(0)))
    found._step(batch)
    handle.remove()
    told._step(batch)
    assert calls == [24, 24, 12, 12, 12, 12]
    assert_same(state(told), state(found))


def test_resuming_keeps_the_number(make: Callable[..., Trainer], caplog: pytest.LogCaptureFixture) -> None:
    """A resumed run goes on with the micro-batches that were found, on a machine with more memory too, and ends bit for
    bit like one that was never stopped."""
    options = (*MLP, "model.dropout=0.5", AUTO)
    whole = make(*options, folder="whole")
    fits(whole, 12, from_step=3)
    resumed = resumed_at(make, 4, *options, samples=12, from_step=3)
    assert resumed.accumulate == 4
    assert resolved(resumed)["trainer"]["accumulate"] == "auto"
    whole.fit()
    caplog.clear()
    resumed.fit()
    assert not warnings(caplog)
    assert_same(state(whole), state(resumed))


def test_batch_norm_is_never_left_with_one_sample(make: Callable[..., Trainer]) -> None:
    """A last minibatch of three samples is not split in four, and what fits for one sample only is an error in one line."""
    options = ("model=lenet", "model.batch_norm=true", "data.batch_size=16", "data.limit_train=35", AUTO)
    trainer = make(*options, folder="a")
    fits(trainer, 4)
    trainer.fit()
    assert (trainer.accumulate, trainer.run.epoch) == (4, 2)
    trainer = make(*options, folder="b")
    fits(trainer, 1)
    with pytest.raises(ConfigError, match=r"trainer\.accumulate: auto cannot help: micro-batches of 2 do not fit"):
        trainer.fit()


def test_a_last_minibatch_smaller_than_the_number(make: Callable[..., Trainer]) -> None:
    """Three samples make three micro-batches where there are eight of the others."""
    trainer, sizes = make(*MLP, "data.limit_train=99", "trainer.epochs=1", AUTO), []
    fits(trainer, 6)
    trainer.run.model.register_forward_hook(lambda module, x, y: sizes.append(len(x[0])) if module.training else None)
    trainer.fit()
    assert sizes == [6] * 16 + [1] * 3


def test_a_sample_that_does_not_fit_is_one_line(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Exit code 1, no traceback, what to do; with `auto` and without."""
    original = MODELS.build

    def build(*args: Any, **context: Any) -> nn.Module:
        model = original(*args, **context)
        model.register_forward_pre_hook(refuse)
        return model

    def refuse(module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled() and module.training:
            raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(MODELS, "build", build)
    done = cli(*BASE, *MLP, "data.batch_size=32", AUTO, f"hydra.run.dir={tmp_path}/run")
    last = done.stderr.splitlines()[-1]
    assert done.rc == 1
    assert "Traceback" not in done.stderr
    assert last.startswith("dlrun: trainer.accumulate: auto cannot help: micro-batches of 1 do not fit")
    assert "trainer.precision=bf16" in last
    assert done.stderr.count("from here on each minibatch is split") == 5  # 2, 4, 8, 16, 32
    done = cli(*BASE, *MLP, f"hydra.run.dir={tmp_path}/plain")
    assert (done.rc, "Traceback" in done.stderr) == (1, False)
    assert "memory" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", ["auto", "1"])
def test_other_errors_are_not_taken_for_it(make: Callable[..., Trainer], number: str) -> None:
    """A mistake in a model is raised at once."""
    trainer = make(*MLP, f"trainer.accumulate={number}")
    fits(trainer, 1, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trainer.fit()
    assert trainer.accumulate == 1


def test_without_auto_nothing_is_split(make: Callable[..., Trainer]) -> None:
    """The error is the user's to see."""
    trainer = make(*MLP, "trainer.accumulate=2")
    fits(trainer, 12)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit()


def test_libraries_below_pytorch(make: Callable[..., Trainer]) -> None:
    """cuBLAS finds no memory for its workspace: the minibatch is halved too."""
    trainer = make(*MLP, "trainer.epochs=1", AUTO)
    fits(trainer, 24, error=RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    trainer.fit()
    assert trainer.accumulate == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (RuntimeError(CUDA), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError(CUDA), False),
        (MemoryError(), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    """The memory of a device, said by PyTorch or by a library below it; not the memory of the machine."""
    assert out_of_memory(error) is expected


def test_what_the_failed_attempt_kept_is_free_in_the_next(make: Callable[..., Trainer]) -> None:
    """No traceback or variable holds the activations of the attempt that failed: they would take the memory again."""
    trainer, kept, alive = make(*MLP, "trainer.steps=1", AUTO), [], []
    last = [m for m in trainer.run.model.modules() if isinstance(m, nn.Linear)][-1]

    def note(module: nn.Module, inputs: Any) -> None:
        if module.training:
            alive.append([size for size, reference in kept if reference() is not None])
            kept.append((len(inputs[0]), weakref.ref(inputs[0])))

    last.register_forward_pre_hook(note)
    fits(trainer, 12)
    trainer.fit()
    assert [size for size, _ in kept] == [48, 24, 12, 12, 12, 12]
    assert alive == [[]] * 6


def test_a_compiled_model_meets_whole_minibatches_only(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a minibatch is split, its parts go through the model itself, in the resumed run as well, which compiles for the
    whole one again."""
    seen: list[int] = []

    def compile_(model: nn.Module, dynamic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(inputs: torch.Tensor) -> torch.Tensor:
            seen.append(len(inputs))
            return model(inputs)

        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    options = (*MLP, "trainer.compile=true", AUTO)
    whole = make(*options, folder="whole")
    fits(whole, 24, from_step=3)
    whole.fit()
    assert seen == [48] * 5  # the trial, three steps and the one that failed
    resumed = resumed_at(make, 4, *options, samples=24, from_step=3)
    fits(resumed, 24, from_step=3)
    resumed.fit()
    assert_same(state(whole), state(resumed))


def fits_evaluation(trainer: Trainer, samples: int, error: Exception | None = None) -> list[int]:
    """The last layer has memory for so many samples only while it is evaluated. Returns the sizes that did fit."""
    last, sizes = [m for m in trainer.run.model.modules() if isinstance(m, nn.Linear)][-1], list[int]()

    def refuse(module: nn.Module, inputs: Any) -> None:
        if not module.training:
            if len(inputs[0]) > samples:
                raise error or torch.OutOfMemoryError(CUDA)
            sizes.append(len(inputs[0]))

    last.register_forward_pre_hook(refuse)
    return sizes


def test_an_evaluation_is_split_too(make: Callable[..., Trainer], caplog: pytest.LogCaptureFixture) -> None:
    """Batches of 50 that do not fit are evaluated as 25 and later ones too, with one warning, without `auto`; loss and
    metrics are those of the whole batches."""
    options = (*MLP, "data.limit_val=120", "data.evaluation_batch_size=50", "trainer.epochs=1")
    whole, split = make(*options, folder="whole"), make(*options, folder="split")
    sizes = fits_evaluation(split, 30)
    expected = whole.evaluate("val")
    assert split.evaluate("val") == pytest.approx(expected, rel=1e-5)
    assert split.evaluate("val") == pytest.approx(expected, rel=1e-5)
    assert sizes == [25, 25, 25, 25, 20] * 2
    assert len(warnings(caplog)) == 1


def test_a_resumed_run_evaluates_at_the_size_that_was_found(make: Callable[..., Trainer]) -> None:
    """It is in the checkpoint: another size would change the last bits."""
    options = (*MLP, "data.evaluation_batch_size=64", "trainer.epochs=1")
    stopped = make(*options, folder="stopped")
    fits_evaluation(stopped, 20)
    stopped.fit()
    resumed = make(*options, folder="resumed")
    resumed.load_state_dict(stopped.state_dict())
    sizes = fits_evaluation(resumed, 1000)
    resumed.evaluate("val")
    assert sizes == [16] * 4


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError("a mistake")], ids=["memory", "other"])
def test_an_evaluation_that_cannot_be_split(make: Callable[..., Trainer], error: Exception) -> None:
    """One sample that does not fit, or another error, is raised."""
    trainer = make(*MLP)
    fits_evaluation(trainer, 0, error)
    with pytest.raises(type(error), match=str(error)[:12]):
        trainer.evaluate("val")


@pytest.mark.parametrize("sign", memory._SIGNS)
def test_every_sign_is_told_in_one_line(sign: str) -> None:
    """What counts as memory running out in training is told as such where it ends a run."""
    from dlrun.suggest import out_of_memory

    assert out_of_memory(RuntimeError(f"{sign} when calling something"))
