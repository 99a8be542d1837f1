"""The splits of a source: read, split, transformed and normalised when first asked for, the test set last."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import torch
from torch import Tensor

from dlrun.data._base import Samples, Source
from dlrun.data._decoding import check_files
from dlrun.data._describe import Description, describe
from dlrun.data._entries import entries
from dlrun.data._memory import Room
from dlrun.data._pipeline import Pipeline
from dlrun.data._resident import ResidentSplit, decoded, input_shape, is_resident
from dlrun.data._settings import DataSettings
from dlrun.data._split import limit_rows, rows_hash, split_rows, strata_of
from dlrun.data._statistics import Normalizer, standardize_targets
from dlrun.data._streaming import StreamingSplit
from dlrun.registry import ConfigError

Split = ResidentSplit | StreamingSplit


class SplitStore:
    """Holds what has been read of a source.

    Args:
        source: the data set.
        settings: how to split, transform, normalise and load it.
        device: where batches are made.
    """

    def __init__(self, source: Source, settings: DataSettings, device: torch.device) -> None:
        self.source, self.settings, self.device = source, settings, device
        self._description: Description | None = None
        self._pipeline: Pipeline | None = None  # what `data.transform` does; known once the data are
        self._waiting: dict[str, Samples] | None = None  # read, but not yet asked for; None: nothing has been read
        self._open: dict[str, Split] = {}
        self._rows: dict[str, Tensor] = {}
        self._moved: tuple[Tensor, Tensor] | None = (
            None  # images that several splits share, and where they are on the device
        )
        self._waited_s = 0.0  # of splits that are closed
        self._memory = Room(torch.device("cpu"))
        self._room = self._memory if device.type == "cpu" else Room(device)

    @property
    def description(self) -> Description:
        """What is known of the data; reads them if nothing is."""
        if self._description is None:
            self._read()
        assert self._description is not None
        return self._description

    @property
    def why_vectors(self) -> str:
        """See `DataModule.why_vectors`."""
        pipeline = self._pipeline
        if pipeline is None or len(pipeline.input_shape) == 1:
            return ""
        before = "x".join(map(str, pipeline.input_shape))
        return f" (because of data.transform.{pipeline.stages[0][0]}, which flattens inputs of {before})"

    def restore(self, description: Description) -> None:
        """Takes the description of an earlier run in place of this training split's own."""
        if description == self._description:
            return
        pipeline = Pipeline.restore(self.settings.transform, description.transform)
        self.close()
        self._description, self._pipeline = description, pipeline

    def transform(self, inputs: Tensor) -> Tensor:
        """Inputs as the source gives them -> those that are normalised. Raises ConfigError for another shape."""
        expected = self._pipeline.input_shape if self._pipeline else self.description.spec.input_shape
        if tuple(inputs.shape[1:]) != expected:
            raise ConfigError(f"data: inputs of shape {tuple(inputs.shape[1:])} do not fit; expected {expected}")
        return self._pipeline(inputs) if self._pipeline else inputs

    def get(self, name: str) -> Split:
        """A split, its vectors normalised and its real targets standardised. `test` is opened here, and only here."""
        if name not in self._open:
            if self._waiting is None:
                self._read()
            assert self._waiting is not None
            self._open[name] = self._place(self._waiting.pop(name) if name in self._waiting else self._read_test())
        return self._open[name]

    def source_rows(self, name: str, samples: list[int]) -> list[int]:
        """Which rows of the source (counted from 0, in the order of its files) the samples of a split are."""
        return self._rows[name][samples].tolist()

    def reserve(self, size: int) -> None:
        """Leaves `size` bytes of the device to the model; has an effect before the first split is placed there."""
        self._room.reserved = size

    @property
    def wait_s(self) -> float:
        """Seconds that epochs have waited for their next batch."""
        return self._waited_s + sum(split.wait_s for split in self._open.values())

    def close(self) -> None:
        """Frees the data and ends worker processes; what is asked for later is read again."""
        self._waited_s = self.wait_s
        for split in self._open.values():
            split.close()
        self._open, self._waiting, self._moved = {}, None, None
        for room in (self._memory, self._room):
            room.forget()

    def _read(self) -> None:
        samples, target = self.source.train()
        published, fixed = self.source.published_split, self.source.fixed_split()
        rows = split_rows(samples.targets, target.kind, self.settings, published=published, fixed=fixed)
        parts = {name: take(samples, index) for name, index in rows.items()}
        first = self._description is None
        if first:
            parts["train"] = self._in_memory(parts["train"])  # read once, for the statistics and for training
            if published:
                self.source.check_test()
            for name in [name for name in parts if name != "train"]:
                parts[name] = self._in_memory(parts[name])
                check_files(parts[name])
            self._pipeline = self._fitted(parts["train"])
        parts = {name: self._transformed(part) for name, part in parts.items()}
        if first:
            names = self._pipeline.names if self._pipeline else self.source.feature_names
            self._description = describe(parts["train"], target, names, self.settings.normalize, self._pipeline)
        self._record(rows)
        self._waiting = parts

    def _fitted(self, train: Samples) -> Pipeline | None:
        if not entries(self.settings.transform):
            return None
        pipeline = Pipeline(self.settings.transform, input_shape(train), self.source.feature_names)
        pipeline.fit(train)
        return pipeline

    def _transformed(self, samples: Samples) -> Samples:
        """The samples as `data.transform` makes them; unchanged where it is off."""
        return self._pipeline.samples(self._in_memory(samples)) if self._pipeline else samples

    def _read_test(self) -> Samples:
        samples = self.source.test()
        target = self.description.spec.target
        rows = torch.arange(len(samples))
        strata = strata_of(samples.targets, target.kind)
        rows = limit_rows(rows, strata, "test", self.settings.limit_test, self.settings.split_seed)
        self._record({"test": rows})
        return self._transformed(take(samples, rows))

    def _record(self, rows: dict[str, Tensor]) -> None:
        self._rows |= rows
        hashes = {name: rows_hash(index) for name, index in rows.items()}
        known = self.description.spec.split_hashes
        for name in hashes:
            if known.get(name, hashes[name]) != hashes[name]:
                logging.getLogger("dlrun").warning("data: the %s split is not that of the saved run", name)
        self._description = self.description.with_sizes({name: len(index) for name, index in rows.items()}, hashes)

    def _place(self, samples: Samples) -> Split:
        spec = self.description.spec
        samples = self._in_memory(samples)
        inputs, targets = samples.inputs, standardize_targets(samples.targets, spec.target.mean, spec.target.std)
        if isinstance(inputs, Tensor) and not spec.is_image:
            inputs = Normalizer(self.description.statistics, inputs.dim() - 1, torch.device("cpu"))(inputs)
        rows = samples.rows
        if (
            isinstance(inputs, Tensor)
            and rows is not None
            and self.device.type != "cpu"
            and 2 * len(rows) < len(inputs)
        ):
            inputs, rows = inputs[rows], None  # not worth moving all for
        samples = replace(samples, inputs=inputs, targets=targets, rows=rows)
        if not isinstance(inputs, Tensor) or not self._fits(samples):
            return StreamingSplit(samples, self.device, count_workers(self.settings), self.settings.prefetch_factor)
        return ResidentSplit(self._on_device(inputs), targets, samples.rows)

    def _in_memory(self, samples: Samples) -> Samples:
        """The samples, decoded where they are files whose pixels fit into the machine's memory."""
        if isinstance(samples.inputs, Tensor) or not is_resident(samples, self.settings.loader, self._memory):
            return samples
        return decoded(samples)

    def _fits(self, samples: Samples) -> bool:
        moved = self._moved is not None and self._moved[0] is samples.inputs
        return (moved and self.settings.loader == "auto") or is_resident(samples, self.settings.loader, self._room)

    def _on_device(self, inputs: Tensor) -> Tensor:
        if self._moved is None or self._moved[0] is not inputs:
            self._moved = inputs, inputs.to(self.device)
        return self._moved[1]


def count_workers(settings: DataSettings) -> int:
    """Worker processes of a split that streams from files: as set, or one per CPU core of this process, at most 16."""
    if settings.workers != "auto":
        return settings.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)


def take(samples: Samples, rows: Tensor) -> Samples:
    """The samples of the given rows; images are shared rather than copied."""
    inputs, targets = samples.inputs, samples.targets[rows]
    if not isinstance(inputs, Tensor):
        return replace(samples, inputs=[inputs[row] for row in rows.tolist()], targets=targets)
    if inputs.dim() != 4:
        return Samples(inputs[rows], targets)
    return Samples(inputs, targets, rows=None if len(rows) == len(inputs) else rows)
