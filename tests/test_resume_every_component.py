"""Bit-exact resume, for every component: a run killed after a checkpoint and resumed from the file ends like one never stopped.

A new option of a group and a new augmentation are picked up by themselves; the tables hold what some need beside them.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from dlrun import checkpoint, rundir
from dlrun.actions.train import fit_and_test
from dlrun.build import build_trainer, check
from dlrun.callbacks._base import Callback, Run
from dlrun.catalogue import read_option
from dlrun.data._augmentation import AUGMENTATIONS
from dlrun.data._transform import TRANSFORMS
from dlrun.losses import DEFAULT_LOSS, LOSSES
from dlrun.models import MODELS
from dlrun.models._summary import count_parameters
from dlrun.registry import ConfigError
from dlrun.settings import options
from dlrun.signals import Interrupted
from dlrun.spec import StepResult, TargetKind
from dlrun.trainer import Trainer

SHORT = (
    "device=cpu", "callbacks=none", "seed=3", "trainer.epochs=2", "data.limit_train=20", "data.limit_val=16",
    "data.limit_test=16", "data.batch_size=8", "trainer.log_every_steps=1",
)  # fmt: skip
STEPS = 3  # of an epoch: the last minibatch is half a one
SMALL_MODEL = ("model=mlp", "model.hidden=[8]")
NORMED = (*SMALL_MODEL, "model.batch_norm=true", "model.dropout=0.3")
LARGE = 500_000  # parameters
IGNORED = {"epoch_seconds", "fit_seconds", "wait_seconds", "callbacks"}  # times, and lengths of files that hold times

MODEL_NEEDS = {
    "gaussian": ("loss=gaussian_nll",),
    "autoencoder": ("task=reconstruction",),
    "autoencoder_conv": ("task=reconstruction",),
}
REGULARIZATION_NEEDS = {"code_sparsity": ("model=autoencoder",), "augmentation": ("model=lenet",)}
FITTING_DATA = {  # kind of target: overrides
    "class": ("data=blobs", *SMALL_MODEL),
    "binary": ("data=two_moons", *SMALL_MODEL),
    "sign": ("data=xor", "data.labels=sign", *SMALL_MODEL),
    "real": ("data=poly1d", *SMALL_MODEL),
    "unit": ("data=digits", "model=autoencoder"),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """The overrides of data sets that need a file: tables of two kinds of targets, and 40 small colour images."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 2))
    lines = [f"{a:.3f},{b:.3f},{int(a > 0)},{int(b > 0)},{abs(a + b):.3f}" for a, b in rows]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,left,right,minutes", *lines]))
    for i in range(40):
        path = tmp_path / "pictures" / ("no", "yes")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    table = ("data=csv", f"data.path={tmp_path / 'table.csv'}", *SMALL_MODEL)
    return {
        "multi_hot": (*table, "data.target=[left,right]"),
        "non_negative": (*table, "data.target=minutes", "data.drop=[left,right]", "data.kind=non_negative"),
        "pictures": ("data=image_folder", f"data.path={tmp_path / 'pictures'}", "data.image_size=8"),
    }


class Killed(BaseException):
    """As SIGKILL: nobody handles it."""


class Kill(Callback):
    """Ends the run after a number of updates."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, run: Run, result: StepResult) -> None:
        if run.step == self.at:
            raise Killed


class Raise(Callback):
    """A signal during a number of updates, answered with a checkpoint after them."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, run: Run, result: StepResult) -> None:
        if run.step == self.at:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def resumes_exactly(composed: Callable[..., dict], tmp_path: Path) -> Callable[..., Trainer]:
    """Expects of a composed configuration that a run with a checkpoint after update `save_at`, killed after update `kill_at`,
    and resumed, ends like one never stopped; gives the resumed trainer."""

    def expect(
        *overrides: str, save_at: int = 4, kill_at: int = 5, stop: Callable[[Trainer], None] | None = None
    ) -> Trainer:
        config = composed(*SHORT, *overrides)
        check(config)

        def make(folder: str) -> Trainer:
            return build_trainer(config, tmp_path / folder)

        (tmp_path / "whole").mkdir()
        (tmp_path / "stopped").mkdir()
        whole, stopped = make("whole"), make("stopped")
        assert whole.run.total_steps > kill_at or whole.run.epochs > 2, "the run is over before it is stopped"
        fit_and_test(whole)
        (stop or kill(save_at, kill_at))(stopped)
        stopped.run.data.close()
        resumed = make("stopped")
        state = checkpoint.load_last(resumed.run.folder / rundir.LAST)
        assert state is not None
        resumed.load_state_dict(state)
        fit_and_test(resumed)
        assert differences(whole, resumed) == []
        return resumed

    return expect


def kill(save_at: int, at: int) -> Callable[[Trainer], None]:
    """Writes a checkpoint after update `save_at` and kills the run after update `at`."""

    def stop(trainer: Trainer) -> None:
        trainer.checkpoint_every_steps = save_at
        trainer.callbacks.append(Kill(at))
        with pytest.raises(Killed):
            trainer.fit()
        trainer.callbacks.pop()

    return stop


def interrupt(at: int) -> Callable[[Trainer], None]:
    """A signal during update `at`, after which everything is closed as the command does it."""

    def stop(trainer: Trainer) -> None:
        trainer.callbacks.insert(0, Raise(at))
        with pytest.raises(Interrupted):
            fit_and_test(trainer)
        assert trainer.run.step == at

    return stop


def interrupt_validation(trainer: Trainer) -> None:
    """A signal during the validation after the first epoch."""
    original = trainer.evaluate

    def evaluate(split: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return original(split)

    trainer.evaluate = evaluate  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        fit_and_test(trainer)
    assert (trainer.run.epoch, trainer.batch) == (0, trainer.run.steps_per_epoch)


def differences(a: Trainer, b: Trainer) -> list[str]:
    """Where two runs that have ended differ, in memory, in their checkpoints and in what the callbacks wrote."""
    found = unlike(kept(a.state_dict()), kept(b.state_dict()), "trainer")
    found += unlike(a.run.history, b.run.history, "metrics")
    for name in (rundir.LAST, rundir.BEST):
        first, second = (kept(checkpoint.load(t.run.folder / name)) for t in (a, b))
        found += unlike(first, second, str(name))
    files = [t.run.folder / "metrics.jsonl" for t in (a, b)]
    if files[0].exists() and files[0].read_bytes() != files[1].read_bytes():
        found.append("metrics.jsonl")
    return found + unlike(events(a.run.folder), events(b.run.folder), "events")


def kept(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key not in IGNORED}


def unlike(a: Any, b: Any, name: str) -> list[str]:
    """The places at which two nests of containers, tensors and plain values differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [place for key in a for place in unlike(a[key], b[key], f"{name}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [place for i, pair in enumerate(zip(a, b, strict=True)) for place in unlike(*pair, f"{name}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [name]
    return [] if type(a) is type(b) and a == b else [name]


def events(folder: Path) -> list[tuple[str, int, bytes]]:
    """Tag, step and value of all summaries in the order written, without those that hold a time, and graphs."""
    found = []
    for file in (folder / "tensorboard").glob("*"):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            if event.graph_def:
                found.append(("graph", event.step, event.graph_def))
            for value in event.summary.value:
                if value.tag == "epoch/data_wait_s":  # left out where a resumed run has not waited
                    continue
                timed = value.tag == "samples_per_s" or value.tag.startswith("_hparams_")
                found.append((value.tag, event.step, b"" if timed else value.SerializeToString(deterministic=True)))
    return found


def kinds_of(loss: str) -> list[str]:
    """The kinds of target that a loss accepts."""
    return sorted(set(get_args(TargetKind)) & set(DEFAULT_LOSS if loss == "auto" else LOSSES.get(loss).kinds))  # type: ignore[attr-defined]


# ---- every option of every group ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", sorted({*options("optimizer")} - {"closed_form"}))
def test_optimizer(resumes_exactly, option: str) -> None:
    """An optimizer goes on with its moments and counters."""
    resumed = resumes_exactly("data=digits", *SMALL_MODEL, f"optimizer={option}", "optimizer.weight_decay=0.1")
    assert resumed.run.step == 2 * STEPS


@pytest.mark.parametrize("save_at", [2, 4])
@pytest.mark.parametrize("option", options("scheduler"))
def test_scheduler(resumes_exactly, option: str, save_at: int) -> None:
    """A schedule goes on in its warm-up (an epoch and a half) as after it."""
    resumes_exactly("data=digits", *SMALL_MODEL, f"scheduler={option}", "scheduler.warmup_epochs=1.5", save_at=save_at)


@pytest.mark.parametrize("option", options("regularization"))
def test_regularization(resumes_exactly, option: str) -> None:
    """A regularizer goes on."""
    needs = REGULARIZATION_NEEDS.get(option, ("data=digits", "model=mlp"))
    resumes_exactly("data=digits", *needs, f"regularization=[{option}]")


@pytest.mark.parametrize("name", AUGMENTATIONS.names())
def test_augmentation(resumes_exactly, files, name: str) -> None:
    """An augmentation changes the samples after a resume as it would have."""
    resumes_exactly(*files["pictures"], *SMALL_MODEL, f"data.augmentation={{{name}: {{}}}}")


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_transform(resumes_exactly, name: str) -> None:
    """A transform treats inputs after a resume as it would have."""
    resumes_exactly("data=two_moons", *SMALL_MODEL, f"data.transform={{{name}: {{}}}}")


def test_sampling_with_replacement(resumes_exactly) -> None:
    """An epoch drawn with replacement goes on with the draws it would have had."""
    resumes_exactly("data=blobs", *SMALL_MODEL, "data.sampling=with_replacement")


@pytest.mark.parametrize(("option", "kind"), [(o, k) for o in options("loss") for k in kinds_of(o)])
def test_loss(resumes_exactly, files, option: str, kind: str) -> None:
    """A loss goes on, on every kind of target it accepts."""
    resumes_exactly(*(FITTING_DATA.get(kind) or files[kind]), f"loss={option}")


def is_small(option: str) -> bool:
    """Whether a model takes small images and is trained here; built without memory."""
    try:
        with torch.device("meta"):
            model = MODELS.build(read_option("model", option), input_shape=(3, 8, 8), num_outputs=3 * 8 * 8)
    except ConfigError:
        return False
    return count_parameters(model) <= LARGE


@pytest.mark.parametrize("option", [option for option in options("model") if is_small(option)])
def test_model(resumes_exactly, files, option: str) -> None:
    """A model goes on; large ones have no layer that small ones lack."""
    resumes_exactly(*files["pictures"], f"model={option}", *MODEL_NEEDS.get(option, ()))


@pytest.mark.parametrize("option", options("task"))
def test_task(resumes_exactly, option: str) -> None:
    """A task goes on."""
    model = {"reconstruction": ("model=autoencoder",), "density": ("model=constant",)}.get(option, SMALL_MODEL)
    resumes_exactly("data=digits", *model, f"task={option}")


# ---- together, with everything that is written ------------------------------------------------------------------------------

WRITTEN = ("callbacks=[tensorboard,metrics_file]", "callbacks.tensorboard.images=4")
COMBINATIONS = {
    "adam": ("optimizer=adamw", "scheduler=one_cycle"),
    "ema": ("trainer.ema_decay=0.9", "optimizer=momentum", "regularization=[l1,l2,max_norm]"),
    "swa": ("trainer.swa_start=0.2", "optimizer=nesterov"),
    "patience": ("trainer.epochs=4", "trainer.patience=1", "trainer.min_delta=10", "trainer.monitor=val/accuracy"),
    "plateau": ("scheduler=halve_on_plateau", "scheduler.threshold=10", "trainer.epochs=4"),
    "accumulate": ("trainer.accumulate=3", "data.batch_size=9", "trainer.clip_norm=0.1"),
    "fp16": ("trainer.precision=fp16", "trainer.clip_norm=0.5"),
    "bf16": ("trainer.precision=bf16", "trainer.ema_decay=0.5"),
    "deterministic": ("trainer.deterministic=true", "regularization=[label_smoothing]"),
    "validate_every_epochs": ("trainer.epochs=3", "trainer.validate_every_epochs=2"),
    "steps": ("trainer.steps=7",),
    "limit_train_batches": ("trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.epochs=3"),
    "log_every_steps": ("trainer.log_every_steps=2",),
    "augmentation": ("regularization=[augmentation]", "trainer.ema_decay=0.8"),
}


@pytest.fixture(autouse=True)
def _kernels_as_before() -> Any:
    """`trainer.deterministic` is a switch of the whole process."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_combination(resumes_exactly, name: str) -> None:
    """Settings of the loop, with batch norm and dropout: weights, metrics file and event file are those of one run."""
    resumes_exactly("data=digits", *NORMED, *WRITTEN, *COMBINATIONS[name])


@pytest.mark.parametrize("name", ["swa", "patience", "plateau", "fp16", "accumulate"])
@pytest.mark.parametrize("save_at", [1, 2])
def test_combination_stopped_in_the_first_epoch(resumes_exactly, name: str, save_at: int) -> None:
    """Likewise if the only checkpoint is one of the first epoch, and the run went on for a while before it was killed."""
    resumes_exactly("data=digits", *NORMED, *COMBINATIONS[name], save_at=save_at, kill_at=save_at + 1)


STOPS = {
    "first step": interrupt(1),
    "in mid-epoch": interrupt(2),
    "last step of an epoch": interrupt(STEPS),
    "last step": interrupt(2 * STEPS),
    "validation": interrupt_validation,
    "killed in the next epoch": kill(2, 5),  # the file of the epoch's end counts
}


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("options", [("trainer.swa_start=0.2",), ("scheduler=halve_on_plateau", "trainer.patience=5")])
def test_wherever_it_stops(resumes_exactly, options: tuple[str, ...], name: str) -> None:
    """A signal at any point: nothing is doubled and nothing missing in any file."""
    resumes_exactly("data=digits", *NORMED, *WRITTEN, *options, stop=STOPS[name])


@pytest.mark.parametrize(
    "damage", [lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-100])]
)
def test_from_the_checkpoint_before_it(resumes_exactly, damage: Callable[[Path], None]) -> None:
    """A damaged last.pt: the run goes on from previous.pt, and the files are cut to that."""

    def stop(trainer: Trainer) -> None:
        kill(1, 5)(trainer)
        damage(trainer.run.folder / rundir.LAST)

    resumes_exactly("data=digits", *NORMED, *WRITTEN, "trainer.ema_decay=0.9", stop=stop)


@pytest.mark.parametrize("times", [2, 5])
def test_stopped_again_and_again(composed, tmp_path: Path, times: int) -> None:
    """A run stopped after each of its updates is like one never stopped."""
    config = composed(*SHORT, "data=digits", *NORMED, *WRITTEN, "trainer.swa_start=0.2", "scheduler=halve_on_plateau")
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole, trainer = build_trainer(config, tmp_path / "whole"), build_trainer(config, tmp_path / "stopped")
    fit_and_test(whole)
    for step in range(1, times + 1):
        interrupt(step)(trainer)
        trainer = build_trainer(config, tmp_path / "stopped")
        trainer.load_state_dict(checkpoint.load(tmp_path / "stopped" / rundir.LAST))
    fit_and_test(trainer)
    assert differences(whole, trainer) == []


# ---- loaders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["digits", "pictures"])
@pytest.mark.parametrize("loader", ["resident", "streaming 0", "streaming 1", "streaming 2"])
def test_loader(resumes_exactly, files, loader: str, data: str) -> None:
    """Tensors and image files, kept on the device or read by so many worker processes."""
    name, _, workers = loader.partition(" ")
    overrides = (*files.get(data, (f"data={data}",)), f"data.loader={name}", f"data.workers={workers or 0}")
    resumes_exactly(*overrides, *NORMED, "data.augmentation={shift: {pixels: 1}, noise: {}}")


@pytest.mark.parametrize("stop", [interrupt(2), interrupt_validation], ids=["in mid-epoch", "in validation"])
def test_a_signal_with_workers(resumes_exactly, files, stop: Callable[[Trainer], None]) -> None:
    """Worker processes do not answer the signal, and the resumed run starts new ones."""
    written = (*WRITTEN, "callbacks.tensorboard.graph=false")
    resumes_exactly(*files["pictures"], *NORMED, *written, "data.loader=streaming", "data.workers=2", stop=stop)


@pytest.mark.parametrize("before", ["resident", "streaming"])
def test_another_loader_on_resuming(composed, tmp_path: Path, before: str) -> None:
    """Where samples are kept changes no bit, so that it may be another after a resume."""
    after = {"resident": "streaming", "streaming": "resident"}[before]
    shared = (*SHORT, "data=digits", *NORMED, "data.workers=0", "data.augmentation={shift: {pixels: 1}}")
    configs = {name: composed(*shared, f"data.loader={name}") for name in (before, after)}
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole, stopped = (build_trainer(configs[before], tmp_path / folder) for folder in ("whole", "stopped"))
    fit_and_test(whole)
    kill(2, 3)(stopped)
    resumed = build_trainer(configs[after], tmp_path / "stopped")
    resumed.load_state_dict(checkpoint.load(tmp_path / "stopped" / rundir.LAST))
    fit_and_test(resumed)
    assert differences(whole, resumed) == []
