"""What the perceptron criterion and the hinge loss share: by how much a sample is on the right side."""

from __future__ import annotations

from torch import Tensor

from dlrun.losses._base import Loss, full_precision
from dlrun.losses._labels import class_index, decide


class MarginLoss(Loss):
    """Base of losses of the margin; not likelihoods, so they give no probabilities."""

    kinds = frozenset({"sign", "binary", "class"})

    def margin(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N,): d s for two classes with label d in {-1, +1} and score s; for K classes the score of the true class
        less the highest of the others. Positive where the sample is classified correctly."""
        outputs, index = full_precision(outputs), class_index(targets, self.target)
        if self.target.kind != "class":
            return (2 * index - 1) * outputs[:, 0]
        own = outputs.gather(1, index[:, None])
        others = outputs.scatter(1, index[:, None], float("-inf"))
        return own.squeeze(1) - others.amax(1)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1) if self.target.kind == "class" else decide(outputs, self.target)
