"""How flat the objective is: the gradient over the whole training set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dlrun import streams
from dlrun.device import autocast

if TYPE_CHECKING:
    from dlrun.trainer.loop import Trainer


def full_gradient_norm(trainer: Trainer) -> float:
    """Norm of the gradient of the mean objective, penalties included, over all training samples, at the weights as they are.

    The model is in evaluation mode and samples are not augmented, so that the value is a function of the weights alone. Costs a
    forward and a backward pass of the training set; changes nothing but the model's mode, which is training mode afterwards.
    """
    run, samples = trainer.run, 0
    totals = [torch.zeros_like(parameter) for parameter in trainer.trainable]
    minibatch = run.spec.num_train if trainer.whole_set else min(run.data.batch_size, run.spec.num_train)
    per_penalty = minibatch if run.loss.reduction == "sum" else 1
    stream = streams.Stream(trainer.seed, "task/gradient")
    run.model.eval()
    for batch in trainer._batches("train"):
        # cuDNN's recurrent kernels have no gradient in evaluation mode
        with autocast(trainer.precision, run.device), torch.backends.cudnn.flags(enabled=False):
            result = run.task(run.model, batch, stream)
        objective = result.loss
        for _, regularizer in trainer.penalties:
            if (penalty := regularizer.penalty(run.model, result.outputs)) is not None:
                objective = objective + penalty / per_penalty
        gradients = torch.autograd.grad(objective, trainer.trainable, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient, alpha=len(batch.indices))
        samples += len(batch.indices)
    run.model.train()
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(totals)))
    return float(norm) / max(1, samples)
