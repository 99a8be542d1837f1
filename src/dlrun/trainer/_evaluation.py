"""Loss and metrics of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from dlrun import streams
from dlrun.callbacks._base import Run
from dlrun.data._module import SplitName
from dlrun.device import autocast
from dlrun.metrics._collection import MetricCollection
from dlrun.metrics._sums import EpochSums
from dlrun.spec import Batch


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
    batch sizes would take longer than most evaluations. `observers`: see `Callback.on_evaluation_batch`.
    """
    metrics, sums = MetricCollection(run.loss, run.task.target()), EpochSums()
    stream = streams.Stream(seed, f"task/{split}")
    run.model.eval()
    with torch.inference_mode(), autocast(precision, run.device):
        for batch in batches:
            result = run.task(run.model, batch, stream)
            metrics.update(result.outputs.float(), result.targets)
            sums.add(result.loss, result.loss, len(batch.indices))
            for observe in observers:
                observe(run, split, batch, result)
    run.model.train()
    return {"loss": sums.loss(), **metrics.compute()}
