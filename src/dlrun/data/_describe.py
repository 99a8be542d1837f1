"""What the training split says about the data: shapes, statistics, sizes; saved in checkpoints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dlrun.data._base import Samples
from dlrun.data._decoding import chunks_of, of_files
from dlrun.data._pipeline import Pipeline
from dlrun.data._resident import input_shape
from dlrun.data._statistics import Statistics, image_statistics, vector_statistics
from dlrun.registry import ConfigError
from dlrun.spec import DataSpec, TargetSpec


@dataclass(frozen=True)
class Description:
    """The specification of the data, what stands in for missing values (see `Statistics.fill`), and the state of
    `data.transform` (see `Pipeline.state_dict`; empty without), whose outputs the specification describes."""

    spec: DataSpec
    fill: tuple[float, ...]
    transform: dict[str, Any] = field(default_factory=dict)

    @property
    def statistics(self) -> Statistics:
        return Statistics(self.spec.mean, self.spec.std, self.fill)

    def with_sizes(self, sizes: Mapping[str, int], hashes: Mapping[str, str]) -> Description:
        """The same with the sizes and hashes of the splits that are given."""
        numbers = {f"num_{name}": size for name, size in sizes.items()}
        spec = replace(self.spec, **numbers, split_hashes={**self.spec.split_hashes, **hashes})  # type: ignore[arg-type]
        return replace(self, spec=spec)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers."""
        state = {"spec": dataclasses.asdict(self.spec), "fill": self.fill}
        return {**state, "transform": self.transform} if self.transform else state

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Description:
        """From what `state_dict` gave, also after a trip through JSON, which makes lists of tuples."""
        try:
            spec = _tuples(state["spec"])
            found = DataSpec(**{**spec, "target": TargetSpec(**_tuples(spec["target"]))})
            return cls(found, tuple(state["fill"]), dict(state.get("transform", {})))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"data: the checkpoint's description of the data is damaged ({error!r})") from None


def describe(
    train: Samples,
    target: TargetSpec,
    feature_names: tuple[str, ...],
    normalize: str,
    pipeline: Pipeline | None = None,
) -> Description:
    """The description of the data from the training samples, which `pipeline` has made; sizes are left at 0."""
    shape = input_shape(train)
    statistics = _statistics(train, shape)
    if normalize == "unit":
        statistics = statistics.unit()
    for i, mean in enumerate(statistics.fill):
        if not math.isfinite(mean):
            raise ConfigError(f"data: feature {feature_names[i] if feature_names else i} has infinite values")
    if pipeline:
        statistics = replace(statistics, mean=_without_ones(train.inputs, statistics.mean))
    if target.kind == "real":
        of_targets = vector_statistics(train.targets)
        if not all(map(math.isfinite, of_targets.mean)):
            raise ConfigError("data: a target has infinite values")
        target = replace(target, mean=of_targets.mean, std=of_targets.std)
    spec = DataSpec(shape, target, 0, 0, None, statistics.mean, statistics.std, feature_names=tuple(feature_names))
    return Description(spec, statistics.fill, pipeline.state_dict() if pipeline else {})


def _without_ones(inputs: Any, mean: tuple[float, ...]) -> tuple[float, ...]:
    """The means to subtract: none from a feature that is 1 in all training samples, the constant that a transform made, which
    must stay 1 (its standard deviation is replaced by 1 anyway)."""
    constant = (inputs == 1).all(0).tolist()
    return tuple(0.0 if one else value for one, value in zip(constant, mean, strict=True))


def _statistics(train: Samples, shape: tuple[int, ...]) -> Statistics:
    if isinstance(train.inputs, Tensor):
        if len(shape) == 3:
            return image_statistics(chunks_of(train))
        channels_last = train.inputs.movedim(1, -1)  # a sequence (C, L) is normalised per channel
        return vector_statistics(channels_last.reshape(-1, shape[0]))

    def read_all() -> tuple[Tensor, ...]:
        found = image_statistics(chunks_of(train))
        return (torch.tensor([found.mean, found.std], dtype=torch.float64).view(torch.uint8),)

    mean, std = of_files(train, "statistics", read_all)[0].clone().view(torch.float64).tolist()
    return Statistics(tuple(mean), tuple(std), tuple(mean))


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
