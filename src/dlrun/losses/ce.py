"""Cross-entropy on logits."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent
from torch.nn import functional as F

from dlrun.losses import LOSSES
from dlrun.losses._base import Loss, full_precision
from dlrun.losses._labels import class_index, decide
from dlrun.spec import TargetSpec


@LOSSES.register("ce")
class CE(Loss):
    """Cross-entropy on logits: log Σ_k exp(z_k) - z_y, the negative log-likelihood of a categorical variable with
    p = softmax(z).

    Label smoothing ε replaces the one-hot target by (1 - ε) one-hot + ε / K; a smoothed loss is no likelihood.
    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016), section 7.

    Args:
        target: what is predicted; kinds class (K outputs) and binary (2 outputs).
        label_smoothing: share ε of the target spread evenly over all classes; 0 for none.

    Shapes: outputs (N, K), targets int64 (N,), or float (N, 1) for binary -> scalar.
    """

    name = "ce"
    kinds = frozenset({"class", "binary"})

    def __init__(self, target: TargetSpec, *, label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0) -> None:
        super().__init__(target)
        self.label_smoothing: float | Tensor = label_smoothing  # a tensor where runs with different values are stacked

    def count_outputs(self, target: TargetSpec) -> int:
        return 2 if target.kind == "binary" else target.size

    @property
    def smoothed(self) -> bool:
        return isinstance(self.label_smoothing, Tensor) or self.label_smoothing != 0

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs, index = full_precision(outputs), class_index(targets, self.target)
        if not self.smoothed:
            return F.cross_entropy(outputs, index, reduction="none")
        hit = outputs.gather(1, index[:, None]).squeeze(1)
        smooth = self.label_smoothing  # F.cross_entropy takes no tensor here
        return outputs.logsumexp(1) - (1 - smooth) * hit - smooth * outputs.mean(1)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.smoothed:
            return self.per_sample(outputs, targets).mean()
        return F.cross_entropy(full_precision(outputs), class_index(targets, self.target))

    def predict(self, outputs: Tensor) -> Tensor:
        if self.target.kind == "binary":
            return decide(outputs[:, 1:] - outputs[:, :1], self.target)
        return outputs.argmax(1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        probabilities = torch.softmax(outputs, 1)
        return probabilities[:, 1:] if self.target.kind == "binary" else probabilities

    def distribution(self, outputs: Tensor) -> Distribution | None:
        if self.smoothed:
            return None
        if self.target.kind == "binary":  # softmax over two classes is the sigmoid of their difference
            logits = outputs[:, 1:] - outputs[:, :1]
            return Independent(Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)
        return Categorical(logits=outputs, validate_args=False)
