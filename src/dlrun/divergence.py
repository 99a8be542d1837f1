"""Finding where training stopped being finite.

RuntimeError
  Diverged       the loss or a weight is no longer finite: exit code 3
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

REMEDY = "try a smaller optimizer.lr or trainer.clip_norm"


class Diverged(RuntimeError):
    """The loss or a weight is no longer finite. The message says at which step and in which layer."""


def non_finite_weights(model: nn.Module) -> list[str]:
    """Names of the trainable parameters that hold a NaN or an infinity; waits for the device once."""
    finite = {n: torch.isfinite(p).all() for n, p in model.named_parameters() if p.requires_grad}
    if not finite or bool(torch.stack(list(finite.values())).all()):
        return []
    return [name for name, value in finite.items() if not value]


def first_non_finite(model: nn.Module, forward: Callable[[], None]) -> str:
    """What is first not finite, as the beginning of a sentence: weights, else the output of a layer in `forward()`, else
    the loss itself."""
    if bad := non_finite_weights(model):
        return f"the weights '{bad[0]}' are"
    found: list[str] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    layers = [(name, module) for name, module in model.named_modules() if name and not any(module.children())]
    hooks = [module.register_forward_hook(note(name)) for name, module in layers]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return f"the output of layer '{found[0]}' is" if found else "the loss itself is"
