"""What there is to see of each layer: weights, gradients, activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from dlrun.callbacks._base import Run
from dlrun.callbacks._histograms import Histogram, histogram
from dlrun.callbacks._observe import observing, unwrapped
from dlrun.regularization._base import weights
from dlrun.spec import Batch
from dlrun.streams import Stream

LAYER_TYPES = (nn.Linear, nn.modules.conv._ConvNd)


class LayerViews(NamedTuple):
    """Histograms and scalars by tag."""

    histograms: dict[str, Histogram]
    scalars: dict[str, float]


def gradients(model: nn.Module) -> LayerViews:
    """Histogram and norm of the gradient of each weight: `gradients/<weight>`, `gradient_norm/<weight>`."""
    views = LayerViews({}, {})
    for name, weight in weights(unwrapped(model)):
        if weight.grad is None:
            continue
        if (counted := histogram(weight.grad)) is not None:
            views.histograms[f"gradients/{name}"] = counted
        views.scalars[f"gradient_norm/{name}"] = float(weight.grad.norm())
    return views


def weights_and_activations(run: Run, samples: Batch) -> LayerViews:
    """Histograms of each weight and of each layer's outputs for the given samples in evaluation mode, and the share of
    saturated units: `weights/<weight>`, `activations/<layer>`, `saturation/<layer>`."""
    found = {f"weights/{name}": histogram(weight) for name, weight in weights(unwrapped(run.model))}
    saturation: dict[str, float] = {}

    def observe(name: str, layer: nn.Module, output: Tensor) -> None:
        found[f"activations/{name}"] = histogram(output)
        if (share := saturated_share(layer, output)) is not None:
            saturation[f"saturation/{name}"] = share

    model = unwrapped(run.model)  # a compiled model would be compiled again for its hooks
    with observing(run), observed_layers(model, observe):
        run.task(model, samples, Stream(0, "task"))
    return LayerViews({tag: h for tag, h in found.items() if h is not None}, saturation)


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named layers with weights, and activation functions that are modules."""
    for name, module in model.named_modules():
        if isinstance(module, LAYER_TYPES) or type(module).__module__ == nn.ReLU.__module__:
            yield name or type(module).__name__.lower(), module


@contextmanager
def observed_layers(model: nn.Module, observe: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """Calls `observe(name, layer, output)` in every forward pass within the block.

    At once, not afterwards: an activation that works in place overwrites the output of the layer before it.
    """

    def hook_of(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                observe(name, layer, output)

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def saturated_share(layer: nn.Module, output: Tensor) -> float | None:
    """Share of units at the flat end of their activation function: exactly 0 (ReLU), |tanh| > 0.99, or a sigmoid
    within 0.005 of 0 or 1 (as 2 sigmoid(x) - 1 = tanh(x / 2)); None for other layers."""
    if isinstance(layer, nn.ReLU):
        flat_end = output == 0
    elif isinstance(layer, nn.Tanh):
        flat_end = output.abs() > 0.99
    elif isinstance(layer, nn.Sigmoid):
        flat_end = (2 * output - 1).abs() > 0.99
    else:
        return None
    return flat_end.float().mean().item()
