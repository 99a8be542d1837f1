"""The data of a run: reads, splits, transforms, normalises, augments and batches a source.

data = build_data(node, seed=0, device=device)
for epoch in range(epochs):
    for batch in data.epoch(epoch): ...      # training order, augmented
    for batch in data.split("val"): ...      # evaluation order
for batch in data.split("test"): ...         # the first time, this opens the sealed test set
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dlrun import streams
from dlrun.data import DATASETS
from dlrun.data._augmentation import AUGMENTATIONS, build_augmentations
from dlrun.data._base import Source
from dlrun.data._describe import Description
from dlrun.data._entries import check_entries
from dlrun.data._files import expand
from dlrun.data._resident import move
from dlrun.data._settings import DataSettings
from dlrun.data._statistics import Normalizer
from dlrun.data._store import SplitStore
from dlrun.data._transform import TRANSFORMS
from dlrun.registry import ConfigError
from dlrun.settings import data_root
from dlrun.spec import Batch, DataSpec

SplitName = Literal["train", "val", "test"]
EVALUATION_BATCH = 1024
EVALUATION_BYTES = 16 << 20  # large images are evaluated in smaller batches, for the activations' sake


def check_data(node: Mapping[str, Any]) -> None:
    """Checks all of a `data` node that can be checked without reading data. Raises ConfigError."""
    settings: DataSettings = DATASETS.build_common(node)
    check_entries(TRANSFORMS, settings.transform)
    check_entries(AUGMENTATIONS, settings.augmentation)


def build_data(
    node: Mapping[str, Any], *, seed: int, device: torch.device, state: Mapping[str, Any] | None = None
) -> DataModule:
    """The data of a plain `data` node.

    Args:
        node: name, settings of the data set and those of `DataSettings`.
        seed: of order and augmentation; the split has `data.split_seed`.
        device: where batches are made.
        state: of an earlier `DataModule.state_dict`; data are then read only when first asked for.
    """
    check_data(node)
    settings: DataSettings = DATASETS.build_common(node)
    context: dict[str, Any] = {"seed": settings.split_seed, "cache": settings.cache}
    if (
        "root" in inspect.signature(DATASETS.get(node["name"])).parameters
    ):  # a generated set needs no folder, nor a home folder to find it in
        context["root"] = _root(settings.root)
    source: Source = DATASETS.build(node, **context)
    return DataModule(source, settings, seed=seed, device=device, state=state)


def _root(given: str | None) -> Path:
    if given is not None:
        return expand(given, "data.root")
    try:
        return data_root()
    except RuntimeError:
        raise ConfigError("data.root: the home folder is unknown; set data.root or DLRUN_DATA_DIR") from None


class DataModule:
    """See the top of this file; made by `build_data`.

    Args:
        source: the data set.
        settings: how to split, transform, normalise, augment and batch it.
        seed: of order and augmentation.
        device: where batches are made.
        state: see `build_data`.

    Attributes:
        evaluation_batch: what `data.evaluation_batch_size=auto` stands for (None: `EVALUATION_BATCH`), but fewer of large
            inputs, and never fewer than `batch_size`.
    """

    def __init__(
        self,
        source: Source,
        settings: DataSettings,
        *,
        seed: int,
        device: torch.device,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.settings, self.seed, self.device = source, settings, seed, device
        self.batch_size = settings.batch_size
        self.evaluation_batch: int | None = None
        self._store = SplitStore(source, settings, device)
        if state is not None:
            self.load_state_dict(state)
        spec = self.spec
        self._augmentations = build_augmentations(
            settings.augmentation, spec.input_shape, spec.target, self.why_vectors
        )
        self._normalizer = self._make_normalizer()

    @property
    def spec(self) -> DataSpec:
        """What models and losses need to know; `num_test` and its hash come once a published test set is opened."""
        return self._store.description.spec

    @property
    def why_vectors(self) -> str:
        """Of inputs that are vectors only because of `data.transform`, a clause that says so; "" of others."""
        return self._store.why_vectors

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches of a training epoch."""
        return math.ceil(self.spec.num_train / self.batch_size)

    @property
    def wait_s(self) -> float:
        """Seconds that `epoch` has waited for its next batch so far; 0 where the data are resident."""
        return self._store.wait_s

    def reserve(self, size: int) -> None:
        """Leaves `size` bytes of the device to the model and its training, so that data which do not fit beside them stream.
        To be called before the first batch; changes no number."""
        self._store.reserve(size)

    def epoch(self, epoch: int, start: int = 0, timed: bool = True) -> Iterator[Batch]:
        """Training minibatches from number `start` on, in an order drawn from (seed, epoch); see `data.sampling`. `timed`:
        waiting for them counts in `wait_s`."""
        train = self._store.get("train")
        order = self._order(epoch, len(train))
        if not self._augmentations:
            return train.batches(order, self.batch_size, start, self._normalize, timed)
        to_unit = _to_unit if self.spec.is_image else None
        return self._augmented(train.batches(order, self.batch_size, start, to_unit, timed), self._keys(epoch, start))

    def _order(self, epoch: int, count: int) -> Tensor:
        """Which training samples the minibatches of an epoch hold, int64 (count,)."""
        if self.settings.sampling == "with_replacement":
            return torch.randint(count, (count,), generator=streams.generator(self.seed, "sampling", epoch))
        return torch.randperm(count, generator=streams.generator(self.seed, "order", epoch))

    def split(self, name: SplitName, batch_size: int | None = None) -> Iterator[Batch]:
        """The samples of a split in the order of the source, never augmented, in larger batches by default."""
        return self._store.get(name).batches(None, batch_size or self.evaluation_batch_size, 0, self._normalize)

    @property
    def evaluation_batch_size(self) -> int:
        """Samples of a batch of an evaluation."""
        if self.settings.evaluation_batch_size != "auto":
            return self.settings.evaluation_batch_size
        fitting = EVALUATION_BYTES // (4 * max(1, math.prod(self.spec.input_shape)))
        return max(self.batch_size, min(self.evaluation_batch or EVALUATION_BATCH, fitting))

    def transform(self, inputs: Tensor) -> Tensor:
        """Inputs of the source (uint8 images, or vectors in original units, NaN where missing) as the model takes them."""
        return self._normalizer(self._store.transform(inputs).to(self.device))

    def source_rows(self, name: SplitName, samples: list[int]) -> list[int]:
        """Which rows of the source (counted from 0, in the order of its files) the samples of a split are."""
        return self._store.source_rows(name, samples)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that inputs are treated as in this run: plain containers."""
        return {**self._store.description.state_dict(), "source": self.source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave. Data already read under another state are read again when next needed."""
        description = Description.restore(state)
        try:
            self.source.load_state_dict(dict(state["source"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"data: the checkpoint's description of the data is damaged ({error!r})") from None
        self._store.restore(description)
        self._normalizer = self._make_normalizer()

    def close(self) -> None:
        """Frees the data and ends worker processes; what is asked for later is read again."""
        self._store.close()

    def _make_normalizer(self) -> Normalizer:
        return Normalizer(self._store.description.statistics, len(self.spec.input_shape), self.device)

    @property
    def _normalize(self) -> Normalizer | None:
        return self._normalizer if self.spec.is_image else None  # vectors are stored normalised

    def _augmented(self, batches: Iterator[Batch], keys: Tensor) -> Iterator[Batch]:
        normalize = self._normalizer.unit if self.spec.is_image else None
        for batch, keys_of_step in zip(batches, keys, strict=False):
            inputs, targets = batch.inputs, batch.targets
            for (_, augmentation), key in zip(self._augmentations, keys_of_step, strict=True):
                inputs, targets = augmentation.with_targets(inputs, targets, key)
            yield batch._replace(inputs=inputs if normalize is None else normalize(inputs), targets=targets)

    def _keys(self, epoch: int, start: int) -> Tensor:
        """Keys of all remaining steps of an epoch, int32 (steps, augmentations, 2): one transfer to the device."""
        steps = range(epoch * self.steps_per_epoch + start, (epoch + 1) * self.steps_per_epoch)
        keys = [streams.keys(self.seed, f"augmentation/{name}", steps) for name, _ in self._augmentations]
        return move(torch.stack(keys, 1), self.device)


def _to_unit(images: Tensor) -> Tensor:
    return images.float().div_(255)
