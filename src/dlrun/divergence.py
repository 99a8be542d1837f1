"""Finding where training stopped being finite.

RuntimeError
  Diverged       the loss, a gradient or a weight is no longer finite: exit code 3
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

REMEDY = "try a smaller optimizer.lr or trainer.clip_norm"


class Diverged(RuntimeError):
    """The loss, a gradient or a weight is no longer finite. The message says at which step and in which layer.

    Attributes:
        details: for results.json: `step`, `what`, `module` (None if it is no layer's), `samples` of the minibatch (numbers
            of rows of the `split`), those of them that were `not_finite`, and the `source_rows` of those (of all, if
            none can be told apart).
    """

    def __init__(self, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


class GradientCheck:
    """Whether any gradient since `clear` was not finite. Nothing is waited for before `failed` is asked for.

    Uses the kernel of PyTorch's GradScaler, one pass over all gradients, with a scale of 1, which changes no bit.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.device, parameter.dtype].append(parameter)
        self._groups = [
            (group, torch.zeros(1, device=device), torch.ones(1, device=device))
            for (device, _), group in groups.items()
        ]

    def add(self) -> None:
        """Looks at the gradients as they are now; without synchronising."""
        for parameters, found, one in self._groups:
            gradients = [p.grad for p in parameters if p.grad is not None]
            if not gradients:
                continue
            try:
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, one)
            except NotImplementedError:  # sparse or complex ones
                torch._amp_foreach_non_finite_check_and_unscale_(list(map(_dense, gradients)), found, one)

    def failed(self) -> bool:
        """Waits for the device."""
        for _, found, _ in self._groups:  # noqa: SIM110 - a loop costs half of any(): this runs at each step
            if found.item():
                return True
        return False

    def clear(self) -> None:
        for _, found, _ in self._groups:
            found.zero_()


def _dense(gradient: Tensor) -> Tensor:
    """A real, dense view of a gradient's values."""
    values = gradient._values() if gradient.is_sparse else gradient
    return torch.view_as_real(values) if values.is_complex() else values


def non_finite_weights(model: nn.Module) -> list[str]:
    """Names of the trainable parameters that hold a NaN or an infinity; waits for the device once."""
    finite = {n: torch.isfinite(p).all() for n, p in model.named_parameters() if p.requires_grad}
    if not finite or bool(torch.stack(list(finite.values())).all()):
        return []
    return [name for name, value in finite.items() if not value]


class Watch:
    """What was first seen not to be finite: `what` as the beginning of a sentence ("" while all is finite), `module` its
    layer, `samples` those of the minibatch in which it was not finite, where it has a row for each of them.

    Args:
        indices: numbers of the samples of the minibatch.
    """

    def __init__(self, indices: Tensor) -> None:
        self.indices = indices
        self.what, self.module, self.samples = "", "", list[int]()

    def see(self, value: Any, what: str, module: str = "", of_samples: bool = True) -> None:
        """Notes `what` unless all of `value` is finite or something was noted already. `of_samples`: whether its rows may
        be those of the minibatch."""
        if self.what or not isinstance(value, Tensor) or not value.is_floating_point():
            return
        finite = torch.isfinite(value.detach())
        if finite.all():
            return
        self.what, self.module = what, module
        if of_samples and value.dim() and len(value) == len(self.indices):
            self.samples = self.indices[~finite.reshape(len(value), -1).all(1)].tolist()


@contextmanager
def watching(model: nn.Module, indices: Tensor) -> Iterator[Watch]:
    """Watches the weights, the forward and the backward passes of the samples with these numbers within the block for what is
    first not finite.

    A layer is blamed for its output; what was computed between layers shows as the input of the next one.
    """
    watch = Watch(indices)
    for name, parameter in model.named_parameters():
        watch.see(parameter, f"the weights '{name}' are", name.rpartition(".")[0], of_samples=False)
    handles = []
    for name, module in model.named_modules():
        layer = f"layer '{name}'" if name else "the model"

        def before(_: nn.Module, inputs: Any, name: str = name, layer: str = layer) -> None:
            for value in inputs:
                watch.see(value, f"the input of {layer} is", name)

        def after(_: nn.Module, inputs: Any, output: Any, name: str = name, layer: str = layer) -> None:
            watch.see(output, f"the output of {layer} is", name)
            if isinstance(output, Tensor) and output.requires_grad:
                what = f"the gradient of the output of {layer} is"
                output.register_hook(lambda gradient: watch.see(gradient, what, name))

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
