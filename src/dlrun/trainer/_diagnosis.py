"""A step or a validation that was not finite, repeated under hooks that say where."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import torch

from dlrun import streams
from dlrun.callbacks._base import Run
from dlrun.data._module import SplitName
from dlrun.device import autocast
from dlrun.divergence import REMEDY, Diverged, Watch, watching
from dlrun.spec import Batch, StepResult
from dlrun.trainer._evaluation import parts_of

if TYPE_CHECKING:
    from dlrun.trainer.loop import Trainer


def diverged_in_step(trainer: Trainer, batch: Batch) -> Diverged:
    """Repeats the step that went wrong, from the same samples and random streams, and says what is first not finite."""
    run = trainer.run
    run.optimizer.zero_grad(set_to_none=True)
    trainer.forward = run.model  # a compiled one does not see what watches
    for micro, part in enumerate(trainer._micro_batches(batch)):
        with watching(run.model, part.indices) as watch:
            result, objective = trainer._forward_backward(part, micro, len(part.indices) / len(batch.indices))
            _see(run, result, watch)
            watch.see(objective, "the objective is")
            for name, parameter in run.model.named_parameters():
                layer = name.rpartition(".")[0]
                watch.see(parameter.grad, f"the gradient of the weights '{name}' is", layer, of_samples=False)
        if watch.what:
            break
    return _explain(run, watch, f"at step {run.step + 1}", run.step + 1, batch)


def diverged_in_validation(trainer: Trainer) -> Diverged:
    """Repeats the validation up to the first batch with a loss that is not finite."""
    run = trainer.run
    run.model.eval()
    with trainer._averaged(), torch.inference_mode(), autocast(trainer.precision, run.device):
        whole = islice(run.data.split("val"), trainer.limits["val"])
        for batch in (part for each in whole for part in parts_of(run, each)):
            with watching(run.model, batch.indices) as watch:
                result = run.task(run.model, batch, streams.Stream(trainer.seed, "task/val"))
                _see(run, result, watch)
            if watch.what:
                break
    return _explain(run, watch, f"in the validation after step {run.step}", run.step, batch, "val")


def _see(run: Run, result: StepResult, watch: Watch) -> None:
    """Watches the loss, sample by sample where it is a mean over samples, and the other parts of the objective."""
    with suppress(NotImplementedError):
        watch.see(run.loss.per_sample(result.outputs, result.targets), "the loss itself is")
    watch.see(result.loss, "the loss itself is")
    for name, value in result.parts.items():
        watch.see(value, f"'{name}' is")


def _explain(run: Run, watch: Watch, when: str, step: int, batch: Batch, split: SplitName = "train") -> Diverged:
    """The divergence that a replay has seen."""
    samples = batch.indices.tolist()
    blamed = watch.samples or samples
    rows = run.data.source_rows(split, blamed)
    what = watch.what or "the loss or a gradient was"
    details = {"step": step, "what": what, "module": watch.module or None, "split": split, "samples": samples}
    details |= {"not_finite": watch.samples, "source_rows": rows}
    return Diverged(
        f"{what} not finite {when} (samples {_first(blamed)} of the {split} split, rows {_first(rows)} of the data); "
        f"{REMEDY}",
        details,
    )


def _first(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
