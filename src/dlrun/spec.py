"""What flows between the rooms: what data is, what a batch is, what a step gives back. Plain values and tensors only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

TargetKind = Literal["class", "binary", "sign", "multi_hot", "real", "non_negative", "unit", "none"]
"""
| kind           | target tensor              | meaning                                                   |
| `class`        | int64 (N,)                 | index of one of `size` classes                            |
| `binary`       | float (N, 1) in {0, 1}     | detection; `size` is 1                                    |
| `sign`         | float (N, 1) in {-1, +1}   | the perceptron's labels; `size` is 1                      |
| `multi_hot`    | float (N, size) in {0, 1}  | several labels at once                                    |
| `real`         | float (N, size)            | regression; standardised with training statistics         |
| `non_negative` | float (N, size), >= 0      | waiting times, counts; never standardised                 |
| `unit`         | float (N, size) in [0, 1]  | pixels to reconstruct, flattened                          |
| `none`         | float (N, 0)               | no target                                                 |
"""

CLASS_KINDS = frozenset({"class", "binary", "sign", "multi_hot"})
REAL_KINDS = frozenset({"real", "non_negative", "unit"})


@dataclass(frozen=True)
class TargetSpec:
    """What is predicted.

    Attributes:
        kind: see `TargetKind`.
        size: number of classes (`class`), of labels (`multi_hot`) or of dimensions (real kinds); 1 for binary and sign.
        names: class names, label names or target column names; may be empty.
        mean: training mean of each dimension, in original units; empty unless the targets are standardised.
        std: training standard deviation of each dimension, in original units; empty likewise.
    """

    kind: TargetKind
    size: int
    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def class_names(self) -> tuple[str, ...]:
        """Names of the classes a prediction chooses from (two for binary and sign), made up where the data has none."""
        if self.kind in ("binary", "sign") and len(self.names) != 2:
            return ("0", "1") if self.kind == "binary" else ("-1", "+1")
        return self.names or tuple(str(i) for i in range(self.size))


@dataclass(frozen=True)
class DataSpec:
    """What a model and a loss need to know of the data.

    Attributes:
        input_shape: shape of one input without the batch axis: (C, H, W) for images, (C, L) for sequences, (D,) for vectors.
        target: what is predicted.
        num_train, num_val, num_test: sizes of the splits; `num_test` is None until the test set has been opened
            where only opening it tells.
        mean, std: per channel (images, sequences) or per feature (vectors): network input = (value - mean) / std, where value
            is in [0, 1] for images and in original units for the others, after `data.transform`.
        split_hashes: SHA-256 (first 16 hex digits) of the sample indices of each split.
        feature_names: names of the input features, empty for images.
    """

    input_shape: tuple[int, ...]
    target: TargetSpec
    num_train: int
    num_val: int
    num_test: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    split_hashes: dict[str, str] = field(default_factory=dict)
    feature_names: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        return len(self.input_shape) == 3


class Batch(NamedTuple):
    """A minibatch on the device: `inputs` (N, *input_shape) normalised, `targets` (see `TargetKind`), `indices` (N,) int64
    row numbers within the split."""

    inputs: Tensor
    targets: Tensor
    indices: Tensor


class StepResult(NamedTuple):
    """What a task makes of a batch: `loss` (scalar, mean over samples), raw `outputs` (N, num_outputs), the `targets` the
    loss was computed on, and further scalars to log by name."""

    loss: Tensor
    outputs: Tensor
    targets: Tensor
    parts: dict[str, Any]
