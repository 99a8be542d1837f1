"""What a model consists of: layers, output shapes, parameters and multiplications."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class LayerSummary:
    """One layer.

    Attributes:
        name: of the module inside the model.
        type: class of the module.
        output_shape: without the batch axis.
        parameters: weights and biases that it owns; a shared tensor counts where it comes first.
        macs: multiply-accumulate operations for one sample in its matrix products and convolutions; those of its parts left
            out.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """The layers of a model in the order they run, and the totals.

    Attributes:
        layers: those that have no parts, own parameters, or multiply themselves. Their operations add up to the total.
        parameters: of the whole model, each shared tensor once.
        trainable: those of them that are not frozen.
        macs: multiply-accumulate operations for one sample.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    trainable: int
    macs: int


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of weights and biases, each shared tensor once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def summarize(model: nn.Module, input_shape: tuple[int, ...]) -> Summary:
    """Runs a copy of `model` on the meta device, so that size costs nothing; the model itself is not touched.

    A layer that runs several times in a forward pass is listed once, with all its operations.
    """
    twin = copy.deepcopy(model).to("meta").eval()
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output  # recurrent layers also give their last state
            shapes[name] = tuple(first.shape[1:]) if isinstance(first, Tensor) else ()

        return hook

    for name, module in twin.named_modules():
        if not isinstance(module, nn.Identity):
            module.register_forward_hook(note(name))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, *input_shape, device="meta"))
    layers = []
    for name, parameters in _own_parameters(twin, shapes).items():
        module = twin.get_submodule(name)
        macs = _own_macs(counter, twin, name)
        if macs or not any(module.children()) or any(True for _ in module.parameters(recurse=False)):
            layers.append(LayerSummary(name, type(module).__name__, shapes[name], parameters, macs))
    return Summary(
        tuple(layers), count_parameters(model), count_parameters(model, True), counter.get_total_flops() // 2
    )


def _own_parameters(model: nn.Module, names: dict[str, Any]) -> dict[str, int]:
    """Parameters of each named module itself, a shared tensor only with the module that runs first."""
    seen: set[int] = set()
    counts = {}
    for name in names:
        fresh = [p for p in model.get_submodule(name).parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, fresh))
        counts[name] = sum(p.numel() for p in fresh)
    return counts


def _own_macs(counter: FlopCounterMode, model: nn.Module, name: str) -> int:
    """Of a module without its parts."""
    return _macs(counter, type(model).__name__, name) - _macs_of_parts(counter, model, name)


def _macs_of_parts(counter: FlopCounterMode, model: nn.Module, name: str) -> int:
    """Those of a container that is never called itself, such as a list, are those of what it contains."""
    root, total = type(model).__name__, 0
    for part, _ in model.get_submodule(name).named_children():
        full = f"{name}.{part}" if name else part
        called = f"{root}.{full}" in counter.get_flop_counts()
        total += _macs(counter, root, full) if called else _macs_of_parts(counter, model, full)
    return total


def _macs(counter: FlopCounterMode, root: str, name: str) -> int:
    counts = counter.get_flop_counts().get(f"{root}.{name}" if name else root, {})
    return sum(counts.values()) // 2  # the counter takes a multiplication and an addition as two
