"""What a data set is before it is split, normalised and batched: tensors (or files) with targets of a known kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from dlrun.spec import TargetSpec


@dataclass(frozen=True)
class Samples:
    """Samples with their targets.

    Attributes:
        inputs: uint8 (N, C, H, W) images, or float32 (N, D) vectors in original units; or, for data that streams, a
            sequence of N file paths.
        targets: as in `TargetKind`; real targets in original units (standardisation comes later).
        decode: for file paths: path -> uint8 (C, H, W), all of one shape.
        decoded_as: what the decoded values depend on besides the files; None: nothing of them is kept from run to run.
        rows: int64 (N,): the samples are these rows of `inputs`, which are shared with other splits; None: all in order.
    """

    inputs: Tensor | Sequence[Path]
    targets: Tensor
    decode: Callable[[Path], Tensor] | None = None
    decoded_as: str | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)


class Source:
    """A data set. The constructor only takes settings (and the context `root: Path`, `seed: int`,
    `cache: bool` where it names them) and
    reads nothing; files are read, and ConfigError raised for what is wrong with them, in `train` and `test`.

    `target.mean` and `target.std` are left empty here: the pipeline fills them from the training split.
    """

    published_split: ClassVar[bool] = False  # True: `train` and `test` are published apart
    feature_names: tuple[str, ...] = ()

    def train(self) -> tuple[Samples, TargetSpec]:
        """All samples but the published test set."""
        raise NotImplementedError

    def test(self) -> Samples:
        """The published test set (sealed: called once, after training). Only where `published_split`."""
        raise NotImplementedError

    def check_test(self) -> None:
        """Raises ConfigError if the published test set is damaged: called before a new run trains, so that hours later is not
        the first time to hear of it. Nothing that it holds is kept."""

    def fixed_split(self) -> tuple[Tensor, Tensor] | None:
        """(training and validation, test) row indices where the data set prescribes them (`uci`), else None."""
        return None

    def read_inputs(self, path: Path) -> Tensor:
        """Inputs of a new file of the same form, for `action=predict`: (N, D) in original units or (N, C, H, W) uint8.
        ConfigError where the file does not fit what the model was trained on."""
        from dlrun.registry import ConfigError

        raise ConfigError(
            f"action.input: {type(self).__name__} cannot read new files; leave it null to predict a split"
        )

    def state_dict(self) -> dict[str, object]:
        """What `read_inputs` needs to encode new rows as in training (column order, category levels, imputation values):
        plain containers, saved in the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Takes back what `state_dict` gave, without reading the training data."""
