"""Loss and metrics of a split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch

from dlrun import streams
from dlrun.callbacks._base import Run
from dlrun.data._module import SplitName
from dlrun.device import autocast
from dlrun.memory import out_of_memory
from dlrun.metrics._collection import MetricCollection
from dlrun.metrics._sums import EpochSums
from dlrun.spec import Batch, StepResult

log = logging.getLogger(__name__)


def evaluate(
    run: Run,
    split: SplitName,
    batches: Iterable[Batch],
    precision: str,
    seed: int,
    observers: Sequence[Callable[..., None]] = (),
) -> dict[str, float]:
    """Mean loss and metrics over `batches` of a split with the model as it is; it is in training mode afterwards.

    Sums and metrics stay on the device until all batches are done. The model is never a compiled one: compiling for other
    batch sizes would take longer than most evaluations. Batches that do not fit into the memory of the device are halved,
    which changes no more than the last bits. `observers`: see `Callback.on_evaluation_batch`.
    """
    metrics, sums = MetricCollection(run.loss, run.task.target()), EpochSums()
    stream = streams.Stream(seed, f"task/{split}")
    run.model.eval()
    with torch.inference_mode(), autocast(precision, run.device):
        for batch in batches:
            for part, result in _results(run, batch, stream):
                metrics.update(result.outputs.float(), result.targets)
                sums.add(result.loss, result.loss, len(part.indices))
                for observe in observers:
                    observe(run, split, part, result)
    run.model.train()
    return {"loss": sums.loss(), **{name: float(value) for name, value in metrics.compute().items()}}


def parts_of(run: Run, batch: Batch) -> list[Batch]:
    """A batch of an evaluation in parts of at most `run.evaluation_batch` samples."""
    size = run.evaluation_batch or len(batch.indices)
    if size >= len(batch.indices):
        return [batch]
    return [Batch(*tensors) for tensors in zip(*(tensor.split(size) for tensor in batch), strict=True)]


def _results(run: Run, batch: Batch, stream: streams.Stream) -> list[tuple[Batch, StepResult]]:
    """The parts of a batch and their results; `run.evaluation_batch` is halved where memory runs out."""
    while True:
        try:
            return [(part, run.task(run.model, part, stream)) for part in parts_of(run, batch)]
        except RuntimeError as error:
            size = min(run.evaluation_batch or len(batch.indices), len(batch.indices))
            if size == 1 or not out_of_memory(error):
                raise
        run.evaluation_batch = (size + 1) // 2
        log.warning("out of memory in an evaluation; from here on %d samples at a time", run.evaluation_batch)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()
