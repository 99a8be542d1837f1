"""What a regularizer in code is: a penalty added to the loss, a projection after the update, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.modules.normalization.LocalResponseNorm)


class Regularizer:
    """Penalties touch weights, never biases, positions or norm layers (see `weights`)."""

    def check_model(self, model: nn.Module) -> None:
        """Raises ConfigError, before training, if the model lacks what is regularized."""

    def penalty(self, model: nn.Module, outputs: Tensor) -> Tensor | None:
        """A scalar added to the mean loss, or None if this regularizer only projects."""
        return None

    def project(self, model: nn.Module) -> None:
        """Changes the weights in place after the optimizer's update, without gradient."""

    def proximal(self, model: nn.Module, rates: Mapping[int, float | Tensor]) -> None:
        """Likewise, before `project`, by the learning rates of the update; `rates`: by `id` of the trainable parameters."""


def weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The named trainable weights: parameters of two or more axes outside norm layers, each shared tensor once, without
    those that their module names in `not_weights` (what is added to values, as biases are: a transformer's positions)."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        if isinstance(module, NORM_LAYERS):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            mapped = not isinstance(
                parameter, nn.Parameter
            )  # in a stacked model: it does not know that it wants a gradient
            if parameter.ndim < 2 or name in getattr(module, "not_weights", ()):
                continue
            if (parameter.requires_grad or mapped) and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{module_name}.{name}".lstrip("."), parameter
