"""The update of a full minibatch, recorded once as a CUDA graph and replayed: one launch in place of some hundred.

    graph.update(batch)     in place of     trainer._update(batch)

Recorded: forward, loss and penalties, backward, the finite check, clipping, the optimizer, projections. What changes from step
to step is put into the memory that the recording reads before each replay: samples, learning rates, keys of dropout.
Everything else of a step stays outside: the weight average, metrics, callbacks.

Numbers are those of the updates launched kernel by kernel, since the kernels are the same: cuDNN chooses them by rule, not by
timing (`device.set_deterministic` keeps its benchmark mode off). A recording holds addresses, which is why it is dropped when
the optimizer loads a state, whose tensors are new ones; the model's are written in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from dlrun.models._dropout import DropoutKeys
from dlrun.registry import ConfigError
from dlrun.spec import Batch, StepResult

if TYPE_CHECKING:
    from dlrun.trainer.loop import Trainer

log = logging.getLogger(__name__)
WARM_UP = 3  # updates before the recording: libraries set up workspaces in the first, the optimizer its state
Result = TypeVar("Result")


class Recorder(Protocol):
    """Records what a function does on the device."""

    def launch(self, function: Callable[[], Result]) -> Result:
        """Calls the function, in a way that allows to record it later."""

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Calls the function without its work being done. Gives its result, tensors that are yet to be filled, and what
        does the work and fills them, again at each call."""


class CudaRecorder:
    """Records with PyTorch's CUDA graphs, on a stream of its own: the default stream cannot be recorded, and neither can a
    backward pass through what was launched there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def launch(self, function: Callable[[], Result]) -> Result:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: a thread that loads data or writes a checkpoint may go on meanwhile
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = function()
        return result, graph.replay


class Rate(Tensor):
    """A learning rate on the device. Equal to itself only: to compare values is to wait for the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    __hash__ = Tensor.__hash__

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return self is other


class Recording(NamedTuple):
    """A recorded update: the memory that it reads and fills, and what runs it."""

    batch: Batch
    result: StepResult
    objective: Tensor
    gradients: list[Tensor | None]
    clipped_norm: Tensor | None
    replay: Callable[[], None]


class GraphedUpdate:
    """See the top of this file; made by `graphed`.

    Args:
        trainer: whose updates are recorded.
        recorder: of its device.
    """

    def __init__(self, trainer: Trainer, recorder: Recorder) -> None:
        self.trainer, self.recorder = trainer, recorder
        run, rates = trainer.run, [built["lr"] for built in trainer.built_settings]
        dtype = torch.float32 if run.device.type == "cuda" else torch.float64  # as the kernels read it
        shared = {rate: torch.zeros((), dtype=dtype, device=run.device).as_subclass(Rate) for rate in rates}
        self.rates = [shared[rate] for rate in rates]  # groups of equal rates are updated together
        self.size = min(run.data.batch_size, run.spec.num_train)
        self.updates = 0  # since the start or the last `drop`
        self.recording: Recording | None = None
        self.failed = False
        run.optimizer.register_load_state_dict_post_hook(lambda _: self.drop())

    def drop(self) -> None:
        """Forgets the recording; the update is recorded anew after as many others as at first."""
        self.recording, self.updates = None, 0

    def update(self, batch: Batch) -> tuple[StepResult, Tensor]:
        """One update, replayed where it can be. Expects the learning rates of the step in the optimizer's groups, leaves its
        gradients in `.grad`, and returns what `Trainer._update` does; nothing of it is overwritten by later updates."""
        trainer = self.trainer
        self.updates += 1
        full = len(batch.indices) == self.size
        with self._rates_on_device():
            if trainer.reads_losses or self.failed:  # reading is waiting, which cannot be recorded
                return trainer._update(batch)
            if full and self.recording is None and self.updates > WARM_UP:
                self.recording = self._record(batch)
            if full and self.recording:
                return self._replay(self.recording, batch)
            return self.recorder.launch(lambda: trainer._update(batch))

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """The learning rates as tensors in place of floats, so that a recording reads those of its step, and updates that are
        not recorded meet the same kernels."""
        groups = self.trainer.run.optimizer.param_groups
        values = [group["lr"] for group in groups]
        for rate, value in dict(zip(self.rates, values, strict=True)).items():
            rate.fill_(value)
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, value in zip(groups, values, strict=True):
                group["lr"] = value

    def _record(self, batch: Batch) -> Recording | None:
        """None, with one warning, where the update cannot be recorded."""
        trainer, static = self.trainer, Batch(*(tensor.clone() for tensor in batch))
        keys, seed = trainer.dropout_keys, trainer.seed
        states = {parameter: dict(state) for parameter, state in trainer.run.optimizer.state.items()}
        trainer.dropout_keys = DropoutKeys((), seed)  # filled before each replay instead
        trainer.seed = None  # type: ignore[assignment]  # what draws from a stream fails, not draws the same for ever
        try:
            (result, objective), replay = self.recorder.record(lambda: trainer._update(static))
        except Exception as error:  # PyTorch, CUDA and the model fail in many ways, and nothing but speed depends on it
            trainer.run.optimizer.state.update(states)  # tensors made while recording were never filled
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            log.warning(
                "trainer.cuda_graph: this model's update cannot be recorded, training goes on without (%s)", reason
            )
            self.failed = True
            return None
        finally:
            trainer.dropout_keys, trainer.seed = keys, seed
        gradients = [parameter.grad for parameter in trainer.trainable]
        return Recording(static, result, objective, gradients, trainer.clipped_norm, replay)

    def _replay(self, recording: Recording, batch: Batch) -> tuple[StepResult, Tensor]:
        trainer, recorded = self.trainer, recording.result
        torch._foreach_copy_(list(recording.batch), list(batch))
        trainer.dropout_keys.fill(trainer.run.step)
        recording.replay()
        for parameter, gradient in zip(trainer.trainable, recording.gradients, strict=True):
            parameter.grad = gradient
        trainer.clipped_norm = recording.clipped_norm
        loss = recorded.loss.clone()
        objective = loss if recording.objective is recorded.loss else recording.objective.clone()
        targets = batch.targets if recorded.targets is recording.batch.targets else recorded.targets.clone()
        parts = {name: part.clone() if isinstance(part, Tensor) else part for name, part in recorded.parts.items()}
        return StepResult(loss, recorded.outputs.clone(), targets, parts), objective


def graphed(trainer: Trainer, recorder: Recorder | None = None) -> GraphedUpdate | None:
    """The trainer's update for recording; None, with one warning, where it is of a kind that cannot be recorded. Raises
    ConfigError for a device other than CUDA."""
    device = trainer.run.device
    if recorder is None and device.type != "cuda":
        raise ConfigError(f"trainer.cuda_graph: needs a CUDA device, and this run is on the {device}; set it to false")
    if reason := _obstacle(trainer):
        log.warning("trainer.cuda_graph: %s, training goes on without", reason)
        return None
    return GraphedUpdate(trainer, recorder or CudaRecorder(device))


def _obstacle(trainer: Trainer) -> str:
    """Why updates of this trainer cannot be recorded; "" if they may be."""
    if trainer.accumulate != 1 or trainer.halves:
        return "trainer.accumulate is not 1"
    if trainer.scaler:
        return "trainer.precision=fp16 leaves out updates"
    if trainer.reseed:
        return "a component draws, or may draw, from PyTorch's global generators"
    if not all(group.get("fused") or group.get("capturable") for group in trainer.run.optimizer.param_groups):
        return "the optimizer takes its learning rate from the CPU (optimizer.implementation is not fused)"
    return ""
