"""All metrics of an evaluation at once, and the direction in which each improves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dlrun.losses._base import Loss, full_precision
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.registry import ConfigError, did_you_mean
from dlrun.spec import TargetSpec

_BUFFER = 1 << 22  # outputs kept before the metrics see them: 16 MiB in float32


class MetricCollection:
    """The metrics that are defined for a loss and a target; the loss itself is not among them.

    A new one is made for each evaluation. `update` only keeps references, so that it may be called in a training loop;
    the metrics see many batches at once. Whoever reuses the memory of outputs or targets (a CUDA graph) passes copies.

    Args:
        loss: gives predictions, probabilities and distributions from raw outputs.
        target: what is predicted.
    """

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        classes = [METRICS.get(name) for name in METRICS.names()]
        self._metrics: list[Metric] = [c(loss, target) for c in classes if c.applies(loss, target)]  # type: ignore[attr-defined]
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._kept = 0

    @property
    def names(self) -> list[str]:
        """The metrics that `compute` can give."""
        return [metric.name for metric in self._metrics]

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch: raw outputs (N, num_outputs), targets as in `TargetKind`. Does not synchronise the device."""
        self._outputs.append(outputs.detach())
        self._targets.append(targets.detach())
        self._kept += outputs.numel()
        if self._kept >= _BUFFER:
            self._flush()

    def compute(self) -> dict[str, float]:
        """The value of each metric over everything seen; undefined ones are left out."""
        self._flush()
        values = {metric.name: metric.compute() for metric in self._metrics}
        return {name: value for name, value in values.items() if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """Everything seen so far, as plain containers of tensors: an epoch that is resumed in its middle reports the same."""
        own = ("loss", "target")
        return {
            "outputs": list(self._outputs),
            "targets": list(self._targets),
            "metrics": [{k: v for k, v in vars(metric).items() if k not in own} for metric in self._metrics],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._outputs, self._targets = list(state["outputs"]), list(state["targets"])
        self._kept = sum(outputs.numel() for outputs in self._outputs)
        for metric, saved in zip(self._metrics, state["metrics"], strict=True):
            vars(metric).update(saved)

    def _flush(self) -> None:
        if not self._outputs:
            return
        outputs, targets = full_precision(torch.cat(self._outputs)), torch.cat(self._targets)
        self._outputs, self._targets, self._kept = [], [], 0
        for metric in self._metrics:
            metric.update(outputs, targets)


def direction(name: str, key: str = "trainer.monitor") -> Literal["min", "max"]:
    """Whether a smaller or a larger value of a metric is better; `name` with or without its split (`val/accuracy`).
    `key` is the dotted key to blame. Raises ConfigError for a metric that does not exist."""
    plain = name.split("/", 1)[-1]
    if plain == "loss":
        return "min"
    known = ["loss", *METRICS.names()]
    if plain not in known:
        near = did_you_mean(plain, known)
        raise ConfigError(f"{key}: unknown metric '{plain}'; allowed: {', '.join(known)}{near}")
    return "max" if METRICS.get(plain).higher_is_better else "min"  # type: ignore[attr-defined]
