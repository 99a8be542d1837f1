"""Training by an optimizer that sees the whole training set at once, such as `closed_form`.

The minibatches of an epoch are put together, and the epoch is one update. All else is as in any run: validation, checkpoints,
the best so far, metrics, resuming.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlrun.losses._labels import class_index
from dlrun.models import MODELS
from dlrun.optimizers._whole_set import WholeSet
from dlrun.registry import ConfigError
from dlrun.regularization.l2 import L2
from dlrun.spec import Batch, StepResult
from dlrun.tasks._base import Task
from dlrun.trainer._diagnosis import diverged_in_step

if TYPE_CHECKING:
    from dlrun.trainer.loop import Trainer

log = logging.getLogger(__name__)
INDEXED = ("class", "binary", "sign")  # kinds of target that models get as numbers of classes


class WholeSetUpdate:
    """What takes the place of `Trainer._update` and of the minibatches; made by `whole_set`.

    Args:
        trainer: its `run` is told that an epoch is one step and, where there is nothing to repeat, the only one.
        optimizer: of the run.
    """

    def __init__(self, trainer: Trainer, optimizer: WholeSet) -> None:
        run = trainer.run
        self.trainer, self.optimizer = trainer, optimizer
        self.minibatches = run.steps_per_epoch
        run.steps_per_epoch = 1
        run.epochs = run.total_steps = 1 if optimizer.once else run.epochs
        if optimizer.once:
            log.info(
                "%s: one update on all training samples%s; trainer.epochs and the schedule do not matter",
                optimizer.name,
                " of the first epoch's minibatches" if self.minibatches < run.data.steps_per_epoch else "",
            )

    def batches(self) -> Iterator[Batch]:
        """The one batch of an epoch: every training sample once, in the order of the source; where
        `trainer.limit_train_batches` leaves some out, the samples of the minibatches that any optimizer would see."""
        run, data = self.trainer.run, self.trainer.run.data
        limited = self.minibatches < data.steps_per_epoch
        batches = data.epoch(run.epoch) if limited else data.split("train", data.batch_size)
        parts = list(islice(batches, self.minibatches))
        yield Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def update(self, batch: Batch) -> tuple[StepResult, Tensor]:
        """Solves; then loss and gradients at the solution, as `Trainer._update` returns and leaves them."""
        trainer, run = self.trainer, self.trainer.run
        target = run.task.target()
        targets = class_index(batch.targets, target) if target.kind in INDEXED else batch.targets
        self.optimizer.update_model(run.model, batch.inputs, targets, self._decay(len(targets)))
        for parameter in trainer.trainable:
            parameter.grad = None
        result, objective = trainer._gradients_of(batch)
        if trainer.gradients:
            trainer.gradients.add()
        if not trainer._all_finite(objective):
            raise diverged_in_step(trainer, batch)
        return result, objective

    def _decay(self, samples: int) -> float:
        """The factor of the squared weights in the mean objective."""
        strengths = (float(r.strength) for r in self.trainer.regularizers.values() if isinstance(r, L2))
        decay = sum(strengths) + self.trainer.built_settings[0]["weight_decay"] / 2
        return decay / samples if self.trainer.run.loss.reduction == "sum" else decay


def whole_set(trainer: Trainer) -> WholeSetUpdate | None:
    """What updates in place of the trainer where its optimizer sees the whole set at once; None for all other optimizers.
    Raises ConfigError for a model that has no such update, and for what it cannot take into account."""
    run, optimizer = trainer.run, trainer.run.optimizer
    if not isinstance(optimizer, WholeSet):
        return None
    name, model = optimizer.name, type(run.model).__name__
    if not hasattr(run.model, optimizer.method):
        raise ConfigError(
            f"optimizer.name: {name} needs a model with `{optimizer.method}`, {model} has none; these have: "
            f"{', '.join(n for n in MODELS.names() if hasattr(MODELS.get(n), optimizer.method))}"
        )
    solves = sorted(getattr(run.model, "solves", ()))
    if run.loss.name not in solves:
        raise ConfigError(
            f"optimizer.name: {name} fits {model} by loss={' or loss='.join(solves)} only, not by {run.loss.name}; choose "
            "another loss, or train by gradients (optimizer=adam)"
        )
    if key := _obstacle(trainer):
        raise ConfigError(
            f"{key}: cannot be combined with optimizer={name}; leave it out, or train by gradients (optimizer=adam)"
        )
    return WholeSetUpdate(trainer, optimizer)


def _obstacle(trainer: Trainer) -> str:
    """The dotted key of what a whole-set optimizer cannot take into account; "" if there is nothing."""
    run = trainer.run
    for name, regularizer in trainer.regularizers.items():
        penalty = (name, regularizer) in trainer.penalties and not isinstance(regularizer, L2)
        if penalty or regularizer in trainer.projections:
            return f"regularization.{name}"
    found = {
        "task.name": type(run.task).target is not Task.target,
        "loss.label_smoothing": getattr(run.loss, "smoothed", False),
        "data.augmentation": any(settings is not None for settings in (run.data.settings.augmentation or {}).values()),
        "trainer.clip_norm": trainer.clip_norm is not None,
        "trainer.ema_decay, trainer.swa_start": trainer.average is not None,
        f"trainer.precision={trainer.precision}": trainer.precision != "fp32",
        "trainer.compile": trainer.forward is not run.model,
        "trainer.cuda_graph": trainer.graph is not None,
        "model: a frozen parameter": any(not parameter.requires_grad for parameter in run.model.parameters()),
    }
    return next((key for key, holds in found.items() if holds), "")
