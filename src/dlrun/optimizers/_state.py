"""The state of an optimizer in a checkpoint: what it has gathered is kept, what was changed on resuming counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The settings of every parameter group, as they are now."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def state_of(optimizer: Optimizer, built: list[dict[str, Any]]) -> dict[str, Any]:
    """What a checkpoint keeps. `built`: `settings_of` the optimizer as it was built; its learning rates are kept in place of
    those of the last update, which follow from them and the step."""
    state = optimizer.state_dict()
    groups = [{**group, "lr": first["lr"]} for group, first in zip(state["param_groups"], built, strict=True)]
    return {"state": state["state"], "param_groups": groups, "built": built}


def load_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Takes back what `state_of` gave. A setting that was overridden on resuming (`optimizer.weight_decay`) is the one that
    differs between the two as they were built; all others, and what an optimizer keeps among them, are the saved ones."""
    groups = []
    for now, then, built in zip(settings_of(optimizer), saved["param_groups"], saved["built"], strict=True):
        changed = {key: value for key, value in now.items() if key not in built or not _equal(value, built[key])}
        groups.append({**then, **changed})
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    _lie_like_parameters(optimizer)
    for group in optimizer.param_groups:
        if not (
            group.get("fused") or group.get("capturable")
        ):  # those that read their count of steps want it on the CPU
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].cpu()


def _lie_like_parameters(optimizer: Optimizer) -> None:
    """Gives state tensors the memory format of their parameters, which may be another one than in the saved run: fused
    kernels walk through both side by side."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                like = isinstance(value, Tensor) and value.shape == parameter.shape
                if like and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)
