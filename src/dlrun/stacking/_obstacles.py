"""Why runs cannot be trained as one stacked model, as far as it is seen without a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlrun.data._resident import ResidentSplit
from dlrun.stacking._optimizers import STATES
from dlrun.stacking._stack import size_of_member
from dlrun.trainer import Trainer
from dlrun.trainer.loop import COPIED


class NotStackable(Exception):
    """These runs cannot be trained as one stacked model, though each may be trained alone; the message says why, in a line."""


def check_trainers(trainers: Sequence[Trainer]) -> None:
    """Raises NotStackable for the first obstacle."""
    for trainer in trainers:
        if reason := _obstacle(trainer):
            raise NotStackable(reason)
    first, *others = (_shape(trainer) for trainer in trainers)
    for other in others:
        for what, value in first.items():
            if other[what] != value:
                raise NotStackable(f"{what} differs")


def _obstacle(trainer: Trainer) -> str:
    """Why a run cannot be part of any stacked model; "" if it may be."""
    run = trainer.run
    found = {
        "a component draws, or may draw, from PyTorch's global generators": trainer.reseed,
        "trainer.accumulate is not 1": trainer.accumulate != 1 or trainer.halves,
        f"trainer.precision is {trainer.precision}": trainer.precision != "fp32",
        "the model is compiled": trainer.forward is not run.model,
        "trainer.cuda_graph is true": trainer.graph is not None,
        "an average of the weights is kept": trainer.average is not None,
        "trainer.memory_format is channels_last": trainer.channels_last,
        f"{type(run.optimizer).__name__} has no stacked update": type(run.optimizer) not in STATES,
        "a regularization takes a proximal step": bool(trainer.proximals),
        "the losses of a minibatch add up": trainer.adds_up,
        "trainer.min_grad_norm is set": trainer.min_grad_norm is not None,
        "the data are streamed": not isinstance(run.data._store.get("train"), ResidentSplit),
        f"the state of a run is larger than {COPIED >> 30} GiB": 3 * size_of_member(run.model) > COPIED,
        "the model has frozen parameters": any(not p.requires_grad for p in run.model.parameters()),
        "the learning rate differs from layer to layer": len({group["lr"] for group in trainer.built_settings}) > 1,
    }
    return next((reason for reason, holds in found.items() if holds), "")


def _shape(trainer: Trainer) -> dict[str, Any]:
    """What must be the same in all members."""
    run, model = trainer.run, trainer.run.model
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {
        "the device": run.device,
        "the order of the model's layers": [(name, type(module)) for name, module in model.named_modules()],
        "the shape of a parameter": [(name, tensor.shape, tensor.dtype) for name, tensor in tensors],
        "the optimizer": (type(run.optimizer), run.optimizer.param_groups[0].get("nesterov")),
        "the number of steps": (run.epochs, run.total_steps, run.steps_per_epoch, run.data.batch_size),
        "the loss": (type(run.loss), run.loss.num_outputs),
        "the regularization": [(name, type(regularizer)) for name, regularizer in trainer.regularizers.items()],
    }
