"""The transforms of `data.transform` in a row: built for the data, fitted on the training samples, saved and taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dlrun.data._base import Samples
from dlrun.data._entries import Node, check_entries, entries
from dlrun.data._memory import free_memory
from dlrun.data._statistics import vector_statistics
from dlrun.data._transform import TRANSFORMS, Transform, flat_size, from_text, to_text
from dlrun.registry import ConfigError

MOST_FEATURES = 100_000
VALUES = 1 << 21  # float64 values that are in work at a time
SHARE = 0.5  # of the free memory that the transformed samples may take
FLOAT32 = torch.finfo(torch.float32).max


class Pipeline:
    """The transforms in the order written; their fitted state is that of the training samples.

    Args:
        node: name to settings.
        input_shape: shape of one input as the source gives it.
        names: of the features; may be empty.

    Raises:
        ConfigError: a wrong setting, inputs that a transform does not take, or too many features.
    """

    def __init__(self, node: Node, input_shape: Sequence[int], names: Sequence[str] = ()) -> None:
        check_entries(TRANSFORMS, node)
        self.settings = {name: dict(settings) for name, settings in entries(node).items()}
        self.input_shape = tuple(input_shape)
        self.fill = torch.zeros(flat_size(input_shape), dtype=torch.float64)  # in place of missing values
        self.stages: list[tuple[str, Transform]] = []
        known = len(names) == flat_size(input_shape)
        self._names = [list(names) if known else []]  # before the first transform, after it, ...
        shape = self.input_shape
        for name, settings in self.settings.items():
            key = f"data.transform.{name}"
            stage: Transform = TRANSFORMS.build({**settings, "name": name}, key, input_shape=shape)
            if stage.size > MOST_FEATURES:
                raise ConfigError(
                    f"{key}: makes {stage.size:,} features of {flat_size(shape):,}; at most {MOST_FEATURES:,}"
                )
            shape = (stage.size,)
            self.stages.append((name, stage))
            self._names.append(list(stage.names(self._names[-1])) if known else [])

    @property
    def size(self) -> int:
        """Number of features after the last transform."""
        return self.stages[-1][1].size

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features after the last transform; empty where the inputs have none."""
        return tuple(self._names[-1])

    def fit(self, train: Samples) -> None:
        """Learns from the training samples, each transform from what those before it give."""
        inputs = _in_memory(train)
        if inputs.is_floating_point():
            self.fill = torch.tensor(vector_statistics(inputs.flatten(1)).mean, dtype=torch.float64)
            for i, mean in enumerate(self.fill.tolist()):
                if not abs(mean) <= FLOAT32:
                    raise ConfigError(f"data: feature {self._names[0][i] if self._names[0] else i} has infinite values")
        for number, (_, stage) in enumerate(self.stages):
            if type(stage).fit is not Transform.fit:
                stage.fit(_Chunks(self, train, number))

    def samples(self, samples: Samples) -> Samples:
        """The samples with their inputs transformed, float32 (N, size)."""
        inputs = _in_memory(samples)
        needed, free = 4 * len(samples) * self.size, free_memory(torch.device("cpu"))
        if needed > SHARE * free:
            raise ConfigError(
                f"data.transform: {len(samples):,} samples of {self.size:,} features take {needed / (1 << 30):.3g} GiB, and "
                f"{free / (1 << 30):.3g} GiB of memory are free; transform to fewer features, or set data.limit_train"
            )
        found = torch.empty(len(samples), self.size)
        start = 0
        for chunk in self.chunks(inputs, samples.rows, len(self.stages)):
            found[start : start + len(chunk)] = chunk
            start += len(chunk)
        return Samples(found, samples.targets)

    def __call__(self, raw: Tensor) -> Tensor:
        """Inputs of the source (n, *input_shape) -> float32 (n, size)."""
        return torch.cat([chunk.float() for chunk in self.chunks(raw, None, len(self.stages))])

    def chunks(self, inputs: Tensor, rows: Tensor | None, stages: int) -> Iterator[Tensor]:
        """What the first `stages` transforms give for `inputs[rows]`, float64, a few samples at a time."""
        widest = max([len(self.fill), *(stage.size for _, stage in self.stages)])
        count = len(inputs) if rows is None else len(rows)
        for part in torch.arange(count).split(max(1, VALUES // widest)):
            values = self._raw(inputs[part if rows is None else rows[part]])
            for number in range(stages):
                before, values = values, self.stages[number][1](values)
                self._check_finite(number, before, values)
            yield values

    def state_dict(self) -> dict[str, Any]:
        """Plain containers, equal after a trip through a checkpoint or JSON."""
        return {
            "settings": _plain(self.settings),
            "input_shape": list(self.input_shape),
            "names": list(self._names[0]),
            "fill": to_text(self.fill),
            "stages": {name: stage.state_dict() for name, stage in self.stages},
        }

    @classmethod
    def restore(cls, node: Node, state: dict[str, Any]) -> Pipeline | None:
        """From what `state_dict` gave ({}: no transform). Raises ConfigError where the settings are no longer the same."""
        settings, saved = _plain(dict(entries(node))), state.get("settings", {})
        if settings != saved or list(settings) != list(saved):
            raise ConfigError(
                f"data.transform: got {settings}; the model was trained with {saved}, which must stay as it is"
            )
        if not state:
            return None
        try:
            pipeline = cls(node, state["input_shape"], state["names"])
            pipeline.fill = from_text(state["fill"])
            for name, stage in pipeline.stages:
                stage.load_state_dict(state["stages"][name])
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"data: the checkpoint's description of the data is damaged ({error!r})") from None
        return pipeline

    def _raw(self, inputs: Tensor) -> Tensor:
        """Float64 (n, D): pixels in [0, 1], or vectors in original units without missing values."""
        values = inputs.flatten(1).double()
        return torch.where(values.isnan(), self.fill, values) if inputs.is_floating_point() else values / 255

    def _check_finite(self, number: int, before: Tensor, after: Tensor) -> None:
        wrong = ~(after.abs() <= FLOAT32)  # NaN too
        if not wrong.any():
            return
        row, column = (int(i) for i in wrong.nonzero()[0])
        name, names = self.stages[number][0], self._names[number + 1]
        shown = ", ".join(f"{value:.4g}" for value in before[row, :4].tolist())
        raise ConfigError(
            f"data.transform.{name}: feature {names[column] if names else column} is {float(after[row, column]):.3g} for a "
            f"sample with the values {shown}{', ...' if before.shape[1] > 4 else ''}; expected finite numbers"
        )


class _Chunks:
    """What the first transforms of a pipeline give for the training samples, to be iterated over more than once."""

    def __init__(self, pipeline: Pipeline, train: Samples, stages: int) -> None:
        self.pipeline, self.train, self.stages = pipeline, train, stages

    def __iter__(self) -> Iterator[Tensor]:
        return self.pipeline.chunks(_in_memory(self.train), self.train.rows, self.stages)


def _in_memory(samples: Samples) -> Tensor:
    if not isinstance(samples.inputs, Tensor):
        raise ConfigError(
            "data.transform: needs the samples in memory, not streamed from files; data.loader=resident reads them all, or "
            "leave data.transform out"
        )
    return samples.inputs


def _plain(value: Any) -> Any:
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))
