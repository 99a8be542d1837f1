"""The mixture of what several trained networks predict, as a loss: metrics of an ensemble are those of one network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from dlrun.losses._base import Loss
from dlrun.losses._labels import class_index, decide, zero_one
from dlrun.metrics._collection import MetricCollection
from dlrun.registry import ConfigError
from dlrun.spec import CLASS_KINDS, TargetSpec

_LEAST = torch.finfo(torch.float64).tiny  # a probability that underflowed to 0 has a finite logarithm


class Mixture(Loss):
    """Equal parts of the distributions that several losses give: p(y) = Σ_m p_m(y) / M.

    Classes: the mean of the probabilities, of independent labels for each label. Numbers: the mixture; its mean is the mean of
    the means. Source: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles"
    (2017), section 2.4.

    Args:
        members: the loss of each network, all of one target.

    Shapes: outputs (N, Σ num_outputs of the members), side by side.

    Raises:
        ConfigError: a loss that gives no probabilities of classes.
    """

    name = "mixture"

    def __init__(self, members: Sequence[Loss]) -> None:
        self.members = list(members)
        self.kinds = members[0].kinds  # type: ignore[misc]
        super().__init__(members[0].target)
        self.of_classes = self.target.kind in CLASS_KINDS
        for loss in members if self.of_classes else ():
            if loss.probabilities(torch.zeros(1, loss.num_outputs)) is None:
                raise ConfigError(
                    f"loss.name: {loss.name} gives no probabilities of classes to average; train the members with ce or bce"
                )

    def count_outputs(self, target: TargetSpec) -> int:
        return sum(loss.num_outputs for loss in self.members)

    def _parts(self, outputs: Tensor) -> list[tuple[Loss, Tensor]]:
        sizes = [loss.num_outputs for loss in self.members]
        return list(zip(self.members, outputs.split(sizes, 1), strict=True))

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """-log p(y), of several labels summed over them: (N,). Only for kinds with classes."""
        probabilities = self.probabilities(outputs)
        assert probabilities is not None, "numbers have `distribution`"
        if self.target.kind == "class":
            hit = probabilities.gather(1, class_index(targets, self.target)[:, None])
        else:
            labels = zero_one(targets, self.target).to(probabilities)
            hit = labels * probabilities + (1 - labels) * (1 - probabilities)
        return -hit.clamp_min(_LEAST).log().sum(1)

    def predict(self, outputs: Tensor) -> Tensor:
        probabilities = self.probabilities(outputs)
        if probabilities is None:
            return torch.stack([loss.predict(part) for loss, part in self._parts(outputs)]).mean(0)
        return probabilities.argmax(1) if self.target.kind == "class" else decide(probabilities - 0.5, self.target)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        if not self.of_classes:
            return None
        found = [loss.probabilities(part) for loss, part in self._parts(outputs)]
        return torch.stack([p for p in found if p is not None]).mean(0)

    def distribution(self, outputs: Tensor) -> Distribution | None:
        """The mixture, of which only `log_prob` is defined; None for classes, and where a member gives none."""
        found = [] if self.of_classes else self._distributions(outputs)
        return MixtureOf(found) if found else None

    def gaussian(self, outputs: Tensor) -> Distribution | None:
        """The Gaussian with the mean and the variance of the mixture; None unless all members are Gaussian."""
        found = [d for d in self._distributions(outputs) if _is_gaussian(d)]
        if len(found) < len(self.members):
            return None
        means, variances = torch.stack([d.mean for d in found]), torch.stack([d.variance for d in found])
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        return Independent(Normal(mean, variance.sqrt(), validate_args=False), 1, validate_args=False)

    def _distributions(self, outputs: Tensor) -> list[Distribution]:
        """Of every member; nothing where one gives none."""
        found = [loss.distribution(part) for loss, part in self._parts(outputs)]
        given = [distribution for distribution in found if distribution is not None]
        return given if len(given) == len(found) else []


class MixtureOf(Distribution):
    """Equal parts of `members`."""

    def __init__(self, members: Sequence[Distribution]) -> None:
        self.members = members
        super().__init__(members[0].batch_shape, members[0].event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        densities = torch.stack([member.log_prob(value) for member in self.members])
        return densities.logsumexp(0) - math.log(len(self.members))


def measure(losses: Sequence[Loss], outputs: Sequence[Tensor], targets: Tensor) -> dict[str, float]:
    """The metrics of the mixture of some networks, in float64: those of a run, for classes also `nll`, and for Gaussian members
    `nll_gaussian`, the negative log-likelihood of the Gaussian with the mixture's mean and variance, in original units.

    Args:
        losses: of each network.
        outputs: its raw outputs, (N, num_outputs).
        targets: see `TargetKind`.
    """
    mixture, side_by_side = Mixture(losses), torch.cat(list(outputs), 1).double()
    metrics = MetricCollection(mixture, mixture.target)
    metrics.update(side_by_side, targets)
    values = metrics.compute()
    if mixture.of_classes:
        return {**values, "nll": float(mixture.per_sample(side_by_side, targets).mean())}
    if "nll" in values and (gaussian := mixture.gaussian(side_by_side)):
        scale = sum(math.log(std) for std in mixture.target.std)
        values["nll_gaussian"] = scale - float(gaussian.log_prob(targets.double()).mean())
    return values


def _is_gaussian(distribution: Distribution) -> bool:
    return isinstance(getattr(distribution, "base_dist", distribution), Normal)
