"""What the trainers of single members do with what the stack has computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from dlrun.callbacks.tensorboard import TensorBoard
from dlrun.divergence import REMEDY, Diverged
from dlrun.spec import Batch
from dlrun.stacking._step import StackedResult
from dlrun.trainer import Trainer
from dlrun.trainer._diagnosis import diverged_in_step


def update(trainer: Trainer, gradients: Sequence[Tensor], objective: Tensor, batch: Batch) -> None:
    """The update of a lone run, by the gradients of its parameters in the order of its optimizer. Raises Diverged before it if
    they are not finite."""
    places = iter(gradients)
    for group in trainer.run.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = next(places).contiguous()  # fused kernels walk through both side by side
    trainer._set_rates()
    trainer._apply(batch, objective)


def count_step(trainer: Trainer, samples: int) -> None:
    """Counts an update by so many samples."""
    trainer.batch += 1
    trainer.run.step += 1
    trainer.run.samples += samples


def show_gradients(trainer: Trainer, result: StackedResult, norms: Tensor | None, row: int) -> None:
    """Gives a member its gradients. `norms`: before clipping, of all members."""
    clip = trainer.clip_norm
    trainer.clipped_norm = None if norms is None or clip is None else norms[row]
    named = dict(trainer.run.model.named_parameters())
    for name, gradient in result.gradients.items():
        named[name].grad = gradient[row]
        if trainer.clipped_norm is not None and clip is not None:
            named[name].grad = gradient[row] * (clip / (trainer.clipped_norm + 1e-6)).clamp(max=1.0)


def show_step(
    result: StackedResult, row: int, hooks: Sequence[Callable[..., None]], rate: float | None, trainer: Trainer
) -> None:
    """Calls the hooks of a step, and logs it if there is a `rate`, in samples per second."""
    own = result.of(row)
    for hook in hooks:
        hook(trainer.run, own)
    if rate is not None:
        trainer._log(own, result.objective[row], rate)


def of_every_step(hooks: Sequence[Callable[..., None]]) -> list[Callable[..., None]]:
    """The hooks to be called after every step: all but that of TensorBoard, which looks at the last step of an epoch only."""
    return [hook for hook in hooks if not isinstance(getattr(hook, "__self__", None), TensorBoard)]


def raise_divergence(batch: Batch, trainer: Trainer) -> None:
    """Raises Diverged: the member's step was not finite."""
    raise diverged_in_step(trainer, batch)


def find_divergence(trainer: Trainer) -> None:
    """Raises Diverged, with the step and the layer if training again from the last checkpoint shows them."""
    trainer._check_finite()
    step = trainer.run.step
    raise Diverged(f"the loss or a gradient was not finite up to step {step}; {REMEDY}", {"step": step})
