"""Binary cross-entropy on logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent
from torch.nn import functional as F

from dlrun.losses import LOSSES
from dlrun.losses._base import Loss, as_float, full_precision
from dlrun.losses._labels import decide, zero_one


@LOSSES.register("bce")
class BCE(Loss):
    """Binary cross-entropy on logits, stable for any logit: y log(1 + e^-z) + (1 - y) log(1 + e^z).

    The negative log-likelihood of independent Bernoulli variables with p = sigmoid(z): one detection (kinds binary,
    sign), or `size` labels (multi_hot), summed over the labels and averaged over the samples. For pixels in [0, 1]
    (unit) it is the cross-entropy of an autoencoder, summed over the pixels: no likelihood, and its minimum is above 0.

    Args:
        target: what is predicted; kinds binary, sign, multi_hot, unit.

    Shapes: outputs (N, size), targets (N, size) -> scalar.
    """

    name = "bce"
    kinds = frozenset({"binary", "sign", "multi_hot", "unit"})

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = full_precision(outputs)
        labels = zero_one(as_float(targets, outputs), self.target)
        return F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").sum(1)

    def predict(self, outputs: Tensor) -> Tensor:
        return torch.sigmoid(outputs) if self.target.kind == "unit" else decide(outputs, self.target)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        return None if self.target.kind == "unit" else torch.sigmoid(outputs)

    def distribution(self, outputs: Tensor) -> Distribution | None:
        if self.target.kind == "unit":
            return None
        family = SignBernoulli if self.target.kind == "sign" else Bernoulli
        return Independent(family(logits=outputs, validate_args=False), 1, validate_args=False)


class SignBernoulli(Bernoulli):
    """A Bernoulli variable with values {-1, +1}; `probs` is the probability of +1."""

    @property
    def mean(self) -> Tensor:
        return 2 * self.probs - 1

    @property
    def variance(self) -> Tensor:
        return 4 * self.probs * (1 - self.probs)

    def sample(self, sample_shape: torch.Size | None = None) -> Tensor:  # type: ignore[override]
        return 2 * super().sample(sample_shape or torch.Size()) - 1

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob((value + 1) / 2)
