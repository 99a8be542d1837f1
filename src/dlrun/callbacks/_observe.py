"""Running the model for a look at it, without leaving a trace in the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from dlrun.callbacks._base import Run
from dlrun.device import autocast
from dlrun.spec import Batch, StepResult
from dlrun.streams import Stream

DECIDED_KINDS = ("class", "binary", "sign")
"""Target kinds where a sample belongs to one class: those with a confusion matrix."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` wrapped it: hooks and tracing need its layers."""
    return getattr(model, "_orig_mod", model)


@contextmanager
def undisturbed(model: nn.Module, device: torch.device, precision: str = "fp32") -> Iterator[None]:
    """Evaluation mode without gradients, which keeps batch-norm statistics; afterwards the mode of every layer (a
    frozen body stays in evaluation mode) and the random state are as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with torch.no_grad(), forked, autocast(precision, device):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@dataclass
class Mistakes:
    """What a classifier gets wrong on the validation split, batch by batch.

    Attributes:
        count: of misclassified samples to keep.
        confusion: (K, K) int64 counts, row: true class, column: predicted class; on the device.
        inputs: of the first misclassified samples, as the network sees them.
        captions: of the same samples: (true class, predicted class).
    """

    count: int
    confusion: Tensor
    inputs: list[Tensor] = field(default_factory=list)
    captions: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def none_yet(cls, run: Run, count: int) -> Mistakes:
        """Before the first batch; without inputs where they are no images."""
        classes = len(run.loss.target.class_names())
        confusion = torch.zeros(classes, classes, dtype=torch.int64, device=run.device)
        return cls(count if run.spec.is_image else 0, confusion)

    def add(self, run: Run, batch: Batch, result: StepResult) -> None:
        """Counts a batch of the validation split. Waits for the device until all inputs to keep are found."""
        classes = len(self.confusion)
        true, predicted = _class_index(result.targets), _class_index(run.loss.predict(result.outputs))
        counts = torch.bincount(true * classes + predicted, minlength=classes**2)
        self.confusion += counts.view(classes, classes)
        if len(self.inputs) < self.count:
            wrong = (true != predicted).nonzero().flatten()[: self.count - len(self.inputs)]
            self.inputs += list(batch.inputs[wrong].cpu())
            self.captions += list(zip(true[wrong].tolist(), predicted[wrong].tolist(), strict=True))


def validation(run: Run) -> Iterator[Batch]:
    """The validation batches that the trainer evaluates; a dry run looks at two only."""
    settings = run.config.get("trainer", {})
    return islice(iter(run.data.split("val")), 2 if settings.get("fast_dev_run") else settings.get("limit_val_batches"))


def first_samples(run: Run, count: int) -> Batch:
    """The first `count` samples of the validation split."""
    with observing(run):  # reading may draw random numbers (worker processes)
        return Batch(*(tensor[:count].clone() for tensor in next(iter(run.data.split("val", count)))))


def observing(run: Run) -> AbstractContextManager[None]:
    """`undisturbed` in the precision of the run."""
    return undisturbed(run.model, run.device, run.config.get("trainer", {}).get("precision", "fp32"))


def find_mistakes(run: Run, count: int) -> Mistakes:
    """One pass over the validation split of a classification run; keeps the first `count` misclassified samples."""
    found = Mistakes.none_yet(run, count)
    with observing(run):
        for batch in validation(run):
            found.add(run, batch, run.task(run.model, batch, Stream(0, "task")))
    return found


def _class_index(labels: Tensor) -> Tensor:
    """Class indices from indices, {0, 1} or {-1, +1}: (N,) or (N, 1) -> (N,) int64."""
    return labels.flatten().long() if not labels.is_floating_point() else (labels.flatten() > 0.5).long()
