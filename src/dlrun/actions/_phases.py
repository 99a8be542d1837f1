"""Where the time of training goes: the methods of one trainer are wrapped, and the trainer itself knows nothing of it."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dlrun.callbacks._base import Callback
from dlrun.trainer import Trainer

LOOP = "the loop itself"
GRAPH = "replayed CUDA graph"  # forward, backward and optimizer, which cannot be told apart in it
STEPS, EPOCH = "steps", "epoch"
HOOKS = ("on_epoch_start", "on_step", "on_log", "on_evaluation_batch", "on_evaluation", "on_epoch_end")
Wrap = Callable[[str, Callable[..., Any]], Callable[..., Any]]
"""Takes the name of a phase and a function; gives a function that does the same and notes the phase."""


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an attribute of an object, a class or a module another value within the block."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


class Instead:
    """Stands for an object, but for the attributes given; `call` is what calling it does."""

    def __init__(self, of: Any, call: Callable[..., Any] | None = None, **attributes: Any) -> None:
        self._of, self._call = of, call
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __call__(self, *args: Any) -> Any:
        assert self._call is not None
        return self._call(*args)


class Phases:
    """A clock that knows what it is timing. A phase within another one counts as part of the outer one.

    Args:
        device: on CUDA it is waited for wherever a phase begins or ends, so that work counts where it was asked for.

    Attributes:
        part: whether the seconds are those of the steps or of what comes once an epoch.
        seconds: by part and phase.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.part = EPOCH
        self.reset()

    def reset(self) -> None:
        """Begins anew, outside all phases."""
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.phase, self._last = LOOP, self.now()

    def now(self) -> float:
        """Seconds, once the device is done."""
        if self._cuda and not torch.cuda.is_current_stream_capturing():  # a graph that is captured takes no waiting
            torch.cuda.synchronize()
        return time.perf_counter()

    def switch(self, phase: str, part: str | None = None) -> None:
        """Ends the phase under way and begins another."""
        now = self.now()
        self.seconds[self.part, self.phase] += now - self._last
        self.phase, self._last, self.part = phase, now, part or self.part

    def wrap(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its seconds counted as those of `phase`."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.phase != LOOP:
                return function(*args, **kwargs)
            self.switch(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch(LOOP)

        return timed


def annotate(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, shown under the name of its phase in a trace."""

    @functools.wraps(function)
    def annotated(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(phase):
            return function(*args, **kwargs)

    return annotated


@contextmanager
def watched(trainer: Trainer, wrap: Wrap) -> Iterator[None]:
    """Wraps whatever belongs to a phase. The trainer is to be thrown away afterwards; `Tensor.backward` is put back."""
    run, data = trainer.run, trainer.run.data

    def epoch(*args: Any, **options: Any) -> Iterator[Any]:
        fetch = wrap("data", iter(data.epoch(*args, **options)).__next__)
        while (batch := _next(fetch)) is not None:
            yield batch

    run.data = Instead(data, epoch=epoch)  # type: ignore[assignment]
    run.task = Instead(run.task, wrap("forward", run.task.__call__))  # type: ignore[assignment]
    for _, regularizer in trainer.penalties:
        vars(regularizer)["penalty"] = wrap("forward", regularizer.penalty)
    run.optimizer.step = wrap("optimizer", run.optimizer.step)  # type: ignore[method-assign]
    if trainer.graph:
        vars(trainer.graph)["update"] = wrap(GRAPH, trainer.graph.update)
    methods = {"evaluate": "validation", "_refresh_batch_norm": "validation", "_log": "logging"}
    for name, phase in {**methods, "save_last": "checkpoint", "_save_best": "checkpoint"}.items():
        vars(trainer)[name] = wrap(phase, getattr(trainer, name))
    for callback in trainer.callbacks:
        for hook in HOOKS:
            if getattr(type(callback), hook) is not getattr(Callback, hook):
                vars(callback)[hook] = wrap("logging", getattr(callback, hook))
    with replaced(torch.Tensor, "backward", wrap("backward", torch.Tensor.backward)):
        yield


def _next(fetch: Callable[[], Any]) -> Any:
    """The next batch, or None."""
    try:
        return fetch()
    except StopIteration:
        return None
