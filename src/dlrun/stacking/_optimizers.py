"""The updates of M members at once, on rows of (M, D): each row by its own learning rate, momentum, betas and weight decay.

They are the updates of `torch.optim.SGD`, `Adam`, `AdamW` and `RMSprop`, whose states the rows are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrun.optimizers import _lean
from dlrun.stacking._stack import Stack
from dlrun.trainer import Trainer

STATES: dict[type, tuple[str, ...]] = {
    _lean.SGD: (),
    _lean.MomentumSGD: ("momentum_buffer",),
    _lean.Adam: ("exp_avg", "exp_avg_sq"),
    _lean.AdamW: ("exp_avg", "exp_avg_sq"),
    _lean.RMSprop: ("square_avg", "momentum_buffer"),
}
"""Of each optimizer that can be stacked, what it keeps of a parameter besides the count of updates."""

BLOCK = 256  # steps whose learning rates are computed, and taken to the device, at once


class StackedOptimizer:
    """Updates `stack.flat`.

    Args:
        trainers: of the members; their optimizers, of one type, give the settings, their schedulers the learning rates.
        stack: the parameters.
    """

    def __init__(self, trainers: Sequence[Trainer], stack: Stack) -> None:
        self.trainers, self.stack = list(trainers), stack
        self.type = type(trainers[0].run.optimizer)
        self.states = {name: torch.zeros_like(stack.flat) for name in STATES[self.type]}
        self._update: Callable[[Tensor, list[Tensor]], None] = {
            _lean.SGD: self._sgd,
            _lean.MomentumSGD: self._momentum,
            _lean.Adam: self._adam,
            _lean.AdamW: self._adam,
            _lean.RMSprop: self._rmsprop,
        }[self.type]
        self._take_settings()

    def _take_settings(self) -> None:
        groups = [trainer.built_settings for trainer in self.trainers]  # (M, groups)
        self.first = [group[0] for group in groups]
        self.nesterov = bool(self.first[0].get("nesterov"))
        self.decays = [
            (slice(start, end), decay)
            for number, (start, end) in enumerate(zip([0, *self.stack.group_ends], self.stack.group_ends, strict=False))
            if any(decay := [group[number]["weight_decay"] for group in groups])
        ]
        self._decays = [(columns, self._column(decay)) for columns, decay in self.decays]
        self.has_momentum = any(settings.get("momentum") for settings in self.first)
        if self.type is _lean.RMSprop and not self.has_momentum:
            self.states.pop("momentum_buffer", None)
        betas = [settings.get("betas", (0.0, 0.0)) for settings in self.first]
        self._rest1 = self._column([1 - beta1 for beta1, _ in betas])
        square = [settings.get("alpha", beta2) for settings, (_, beta2) in zip(self.first, betas, strict=True)]
        self._square, self._rest2 = self._column(square), self._column([1 - share for share in square])
        self._eps = self._column([settings.get("eps", 0.0) for settings in self.first])
        self._share = self._column([settings.get("momentum", 0.0) for settings in self.first])
        limits = [np.inf if trainer.clip_norm is None else trainer.clip_norm for trainer in self.trainers]
        self._limits = self._column(limits) if min(limits) < np.inf else None
        self._rates: tuple[range, Tensor] = (range(0), self.stack.flat)

    def _column(self, values: Sequence[float]) -> Tensor:
        """(M, 1), a value for each member."""
        flat = self.stack.flat
        return torch.tensor(values, dtype=torch.float64).to(flat.device, flat.dtype)[:, None]

    def prepare(self, steps: range) -> None:
        """Computes the learning rates of these steps, between whose first and last no validation may lie."""
        same: dict[str, list[float]] = {}  # schedules of equal settings and state
        factors = []
        for trainer in self.trainers:
            key = repr((type(trainer.scheduler), vars(trainer.scheduler)))
            if key not in same:
                same[key] = [trainer.scheduler.factor(step) for step in steps]
            factors.append(same[key])
        rates = np.array(factors).T * np.array([settings["lr"] for settings in self.first])  # (steps, M)
        kinds = [rates]
        if self.type in (_lean.Adam, _lean.AdamW):
            counts = np.array(steps, dtype=np.float64)[:, None] + 1
            beta1, beta2 = np.array([settings["betas"] for settings in self.first]).T
            kinds = [rates / (1 - beta1**counts), np.sqrt(1 - beta2**counts), rates]
        table = torch.from_numpy(np.stack(kinds, 1))  # (steps, kinds, M)
        flat = self.stack.flat
        self._rates = steps, table.to(flat.device, flat.dtype)[..., None]

    def step(self, step: int, gradient: Tensor) -> Tensor | None:
        """One update by the gradient (M, D), which is used up; `prepare` knows the step. Returns the norms of the gradients,
        (M,), before they were clipped, if they are."""
        steps, table = self._rates
        norms = None
        if self._limits is not None:
            norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient.mul_((self._limits / (norms + 1e-6)).clamp(max=1.0))
        self._update(gradient, list(table[step - steps.start].unbind()))
        return None if norms is None else norms[:, 0]

    def knows(self, step: int) -> bool:
        """Whether `prepare` has computed the learning rates of this step."""
        return step in self._rates[0]

    def _decay(self, gradient: Tensor) -> None:
        for columns, decay in self._decays:
            gradient[:, columns].addcmul_(self.stack.flat[:, columns], decay)

    def _sgd(self, gradient: Tensor, rates: list[Tensor]) -> None:
        self._decay(gradient)
        self.stack.flat.addcmul_(gradient, rates[0], value=-1)

    def _momentum(self, gradient: Tensor, rates: list[Tensor]) -> None:
        self._decay(gradient)
        velocity = self.states["momentum_buffer"].mul_(self._share).add_(gradient)
        update = gradient.addcmul_(velocity, self._share) if self.nesterov else velocity
        self.stack.flat.addcmul_(update, rates[0], value=-1)

    def _adam(self, gradient: Tensor, rates: list[Tensor]) -> None:
        flat, (size, root, rate) = self.stack.flat, rates
        if self.type is _lean.AdamW:
            for columns, decay in self._decays:
                flat[:, columns].mul_(1 - rate * decay)
        else:
            self._decay(gradient)
        mean = self.states["exp_avg"].lerp_(gradient, self._rest1)
        square = self.states["exp_avg_sq"].mul_(self._square).addcmul_(gradient * self._rest2, gradient)
        denominator = square.sqrt().div_(root).add_(self._eps)
        flat.addcmul_(torch.div(mean, denominator, out=denominator), size, value=-1)

    def _rmsprop(self, gradient: Tensor, rates: list[Tensor]) -> None:
        self._decay(gradient)
        square = self.states["square_avg"].mul_(self._square).addcmul_(gradient * self._rest2, gradient)
        root = square.sqrt().add_(self._eps)
        if self.has_momentum:
            update = self.states["momentum_buffer"].mul_(self._share).addcdiv_(gradient, root)
        else:
            update = torch.div(gradient, root, out=root)
        self.stack.flat.addcmul_(update, rates[0], value=-1)

    # ---- the members' own optimizers ------------------------------------------------------------------------------

    def show(self, row: int) -> None:
        """Gives the optimizer of a member its state, views of the stacked one, and its latest learning rate."""
        trainer = self.trainers[row]
        optimizer, count = trainer.run.optimizer, trainer.run.step
        kept = [name for name in self.states if name != "momentum_buffer" or self.first[row]["momentum"] > 0]
        if count == 0:
            return
        named = dict(trainer.run.model.named_parameters())
        factor = trainer.scheduler.factor(count - 1)
        for group, built in zip(optimizer.param_groups, trainer.built_settings, strict=True):
            group["lr"] = built["lr"] * factor
        on_device = bool(optimizer.param_groups[0].get("fused"))
        for name in self.stack.columns if kept else ():
            state: dict[str, Any] = {key: self.stack.view(self.states[key], name)[row] for key in kept}
            if not isinstance(optimizer, _lean.SGD):
                where = self.stack.flat.device if on_device else "cpu"
                state = {"step": torch.tensor(float(count), dtype=torch.float32, device=where), **state}
            optimizer.state[named[name]] = state
