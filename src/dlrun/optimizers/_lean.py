"""PyTorch's optimizers with a step that costs little more than its kernel.

Settings, state and numbers are PyTorch's own. What differs is the way to the kernel: tensors are gathered once instead of at
each step, groups of equal settings are updated in one call, parameters share one count of updates, and `torch._dynamo`,
which takes a second to import, is not loaded for decorators that say "do not compile this".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SETTINGS = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "nesterov", "amsgrad", "maximize")


def undecorated(function: Any) -> Callable[..., Any]:
    """The function that PyTorch's decorators wrap."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


class Part:
    """Parameters that are updated in one call, all of one device, dtype and group settings.

    Args:
        groups: the optimizer's groups they are of.
        params: themselves.
        states: of each its state.
        names: keys of the state's tensors, in the order of the kernel's arguments.
    """

    def __init__(
        self, groups: list[dict[str, Any]], params: list[Tensor], states: list[dict[str, Any]], names: tuple[str, ...]
    ) -> None:
        self.group, self.others, self.params = groups[0], groups[1:], params
        self.tensors = [[state[name] for state in states] for name in names]
        self.steps: list[Tensor] = []
        if states and "step" in states[0]:
            shared = states[0]["step"].clone()
            for state in states:
                state["step"] = shared
            self.steps = [shared] * len(states)

    def agrees(self) -> bool:
        """Whether the groups' settings are still the same."""
        first = self.group
        return all(other.get(name) == first.get(name) for other in self.others for name in SETTINGS)


class Lean(Optimizer):
    """To be inherited before an optimizer of PyTorch's.

    The first step after building, loading or a change of the groups is PyTorch's own, and so is every step that is not of
    the usual kind: with hooks, a closure, loss scaling, a parameter without a gradient, an implementation that is not fused.
    """

    tensors: tuple[str, ...] = ()  # keys of the state's tensors, in the order of the kernel's arguments
    _parts: list[Part] | None = None

    def kernel(self, part: Part, grads: list[Tensor]) -> None:
        """Updates the part by PyTorch's fused kernel."""
        raise NotImplementedError

    def step(self, closure: Any = None) -> Any:
        """One update from the gradients as they are."""
        if self._parts and closure is None and self._usual():
            gradients = [[p.grad for p in part.params] for part in self._parts]
            if not any(g is None for grads in gradients for g in grads):
                with torch.no_grad():
                    for part, grads in zip(self._parts, gradients, strict=True):
                        if part.steps:
                            part.steps[0].add_(1)
                        self.kernel(part, grads)  # type: ignore[arg-type]
                return None
        return self._own_step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # PyTorch would wrap it in a profiler's record at each step

    def _usual(self) -> bool:
        hooked = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        scaled = getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None
        return not hooked and not scaled and all(part.agrees() for part in self._parts or ())

    def _own_step(self, closure: Any) -> Any:
        """PyTorch's own step."""
        counts: set[int] = set()
        for state in self.state.values():
            if isinstance(step := state.get("step"), Tensor):
                if id(step) in counts:
                    state["step"] = step.clone()  # shared so far; PyTorch counts each one
                counts.add(id(step))
        with torch.no_grad():
            result = Optimizer.profile_hook_step(undecorated(super().step))(self, closure)
        self._parts = self._gather() if closure is None and self._usual() else None
        return result

    def _gather(self) -> list[Part] | None:
        """What `step` updates by kernel; None if it cannot."""
        found: dict[tuple[Any, ...], tuple[list[dict[str, Any]], list[Tensor]]] = {}
        for group in self.param_groups:
            if not group.get("fused") or group.get("amsgrad") or any(p.grad is None for p in group["params"]):
                return None
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if any(not isinstance(state.get(name), Tensor) for name in self.tensors):
                    return None
                count = float(state["step"]) if "step" in state else 0.0
                settings = tuple(str(group.get(name)) for name in SETTINGS)
                key = (settings, count, parameter.device, parameter.dtype)
                groups, params = found.setdefault(key, ([], []))
                params.append(parameter)
                if not any(group is other for other in groups):
                    groups.append(group)
        return [Part(g, p, [self.state.get(q, {}) for q in p], self.tensors) for g, p in found.values()]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients, or fills them with zeros."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if set_to_none:
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad.detach_().zero_()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._parts = None
        undecorated(Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's own, each parameter with a count of its own."""
        saved = undecorated(Optimizer.state_dict)(self)
        counted = {
            key: {**state, "step": state["step"].clone()} for key, state in saved["state"].items() if "step" in state
        }
        return {**saved, "state": {**saved["state"], **counted}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._parts = None
        undecorated(Optimizer.load_state_dict)(self, state_dict)


class Adam(Lean, torch.optim.Adam):
    """`torch.optim.Adam`."""

    tensors = ("exp_avg", "exp_avg_sq")
    function: Any = staticmethod(torch._fused_adam_)

    def kernel(self, part: Part, grads: list[Tensor]) -> None:
        group = part.group
        beta1, beta2 = group["betas"]
        self.function(
            part.params,
            grads,
            *part.tensors,
            [],
            part.steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
            grad_scale=None,
            found_inf=None,
        )


class AdamW(Adam, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    function: Any = staticmethod(torch._fused_adamw_)


class SGD(Lean, torch.optim.SGD):
    """`torch.optim.SGD`."""

    def kernel(self, part: Part, grads: list[Tensor]) -> None:
        group = part.group
        torch._fused_sgd_(
            part.params,
            grads,
            part.tensors[0] if part.tensors else [],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
            grad_scale=None,
            found_inf=None,
        )


class MomentumSGD(SGD):
    """`torch.optim.SGD` with momentum, whose state is the velocity."""

    tensors = ("momentum_buffer",)


class RMSprop(Lean, torch.optim.RMSprop):
    """`torch.optim.RMSprop`, of which there is no fused kernel."""
