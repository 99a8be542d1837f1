"""Steps and evaluations of random images that can be stopped after any of them: what `settings` compares."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from benchmark.workload import Workload, build_model
from dlrun.trainer._max_pooling import keep_max_pooling

SHAPE, SAMPLES = (1, 28, 28), 8192
TURN_S, LEAST, WARM = 0.2, 4, 2  # length of a turn; the fewest repetitions of what is short, and those not counted
ALL_THREADS = torch.get_num_threads()


class Repeated(Protocol):
    """Something that can be done again and again.

    Attributes:
        threads: of PyTorch while it is done.
    """

    threads: int

    def __call__(self) -> None:
        """Does it once."""


class Steps:
    """Training steps with the given settings.

    Args:
        model: a key of `workload.MODELS`.
        batch: samples of a minibatch.
        device: cpu or cuda.
        settings: implementation (of Adam), memory_format, precision, compile, threads.
    """

    def __init__(self, model: str, batch: int, device: str, settings: Mapping[str, Any]) -> None:
        module = build_model(Workload(model).config(), SHAPE).to(device)
        self.format = torch.channels_last if settings["memory_format"] == "channels_last" else torch.contiguous_format
        module = module.to(memory_format=self.format)  # type: ignore[call-overload]
        implementation = {settings["implementation"]: True}
        self.optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, **implementation)
        if settings["compile"]:  # as the trainer does
            torch._dynamo.reset()
            if device == "cpu":
                keep_max_pooling(module)
        self.model = torch.compile(module, dynamic=False) if settings["compile"] else module
        self.mixed = torch.autocast(device, torch.bfloat16) if settings["precision"] == "bf16" else nullcontext()
        self.threads = settings["threads"] or ALL_THREADS
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(SAMPLES, *SHAPE, generator=generator).to(device)
        self.targets = torch.randint(10, (SAMPLES,), generator=generator).to(device)
        self.rows = torch.randperm(SAMPLES, generator=generator).to(device).split(batch)[: SAMPLES // batch]
        self.at = 0

    def __call__(self) -> None:
        """One step."""
        rows = self.rows[self.at % len(self.rows)]
        self.at += 1
        inputs = self.inputs[rows].contiguous(memory_format=self.format)
        self.optimizer.zero_grad()
        with self.mixed:
            loss = F.cross_entropy(self.model(inputs), self.targets[rows])
        loss.backward()
        self.optimizer.step()


class Evaluation:
    """An evaluation of 8,192 samples in batches of the given size: loss and accuracy."""

    def __init__(self, model: str, batch: int, device: str) -> None:
        self.model = build_model(Workload(model).config(), SHAPE).to(device).eval()
        self.batch, self.threads = batch, ALL_THREADS
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(SAMPLES, *SHAPE, generator=generator).to(device)
        self.targets = torch.randint(10, (SAMPLES,), generator=generator).to(device)

    @torch.inference_mode()
    def __call__(self) -> None:
        """All samples."""
        for inputs, targets in zip(self.inputs.split(self.batch), self.targets.split(self.batch), strict=True):
            outputs = self.model(inputs)
            F.cross_entropy(outputs, targets, reduction="sum")
            (outputs.argmax(1) == targets).sum()


def take_turns(tried: Mapping[str, Repeated], base: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of one repetition in each turn, by name; turns of all last about as long as one of `base` of 0.2 s."""
    for repeated in tried.values():  # compiling too
        _turn(repeated, 1)
    once = _turn(tried[base], 1)
    count = max(LEAST, round(TURN_S / once)) if once < TURN_S else 1
    found: dict[str, list[float]] = {name: [] for name in tried}
    chooser = random.Random(0)
    for _ in range(rounds):
        for name in chooser.sample(list(tried), len(tried)):
            found[name].append(_turn(tried[name], count, WARM if count > 1 else 0))
    torch.set_num_threads(ALL_THREADS)
    return found


def _turn(repeated: Repeated, count: int, warm: int = 0) -> float:
    torch.set_num_threads(repeated.threads)
    for _ in range(warm):
        repeated()
    _synchronize()
    start = time.perf_counter()
    for _ in range(count):
        repeated()
    _synchronize()
    return (time.perf_counter() - start) / count


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
