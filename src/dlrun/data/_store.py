"""The splits of a source: read, split and normalised when first asked for, the test set last."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from dlrun.data._base import Samples, Source
from dlrun.data._describe import Description, describe
from dlrun.data._resident import ResidentSplit, decoded, is_resident
from dlrun.data._settings import DataSettings
from dlrun.data._split import limit_rows, rows_hash, split_rows, strata_of
from dlrun.data._statistics import Normalizer, standardize_targets
from dlrun.data._streaming import StreamingSplit, check_files

Split = ResidentSplit | StreamingSplit


class SplitStore:
    """Holds what has been read of a source.

    Args:
        source: the data set.
        settings: how to split, normalise and load it.
        device: where batches are made.
    """

    def __init__(self, source: Source, settings: DataSettings, device: torch.device) -> None:
        self.source, self.settings, self.device = source, settings, device
        self._description: Description | None = None
        self._waiting: dict[str, Samples] | None = None  # read, but not yet asked for; None: nothing has been read
        self._open: dict[str, Split] = {}
        self._rows: dict[str, Tensor] = {}

    @property
    def description(self) -> Description:
        """What is known of the data; reads them if nothing is."""
        if self._description is None:
            self._read()
        assert self._description is not None
        return self._description

    def restore(self, description: Description) -> None:
        """Takes the description of an earlier run in place of this training split's own."""
        if description == self._description:
            return
        self.close()
        self._description = description

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

    def close(self) -> None:
        """Frees the data and ends worker processes; what is asked for later is read again."""
        for split in self._open.values():
            split.close()
        self._open, self._waiting = {}, None

    def _read(self) -> None:
        samples, target = self.source.train()
        published, fixed = self.source.published_split, self.source.fixed_split()
        rows = split_rows(samples.targets, target.kind, self.settings, published=published, fixed=fixed)
        parts = {name: take(samples, index) for name, index in rows.items()}
        if is_resident(parts["train"], self.settings.loader, self.device):
            parts["train"] = decoded(parts["train"])  # files are read once, for the statistics and for training
        if self._description is None:
            if published:
                self.source.check_test()
            for part in (parts["val"], parts.get("test")):
                check_files(part)
            self._description = describe(parts["train"], target, self.source.feature_names, self.settings.normalize)
        self._record(rows)
        self._waiting = parts

    def _read_test(self) -> Samples:
        samples = self.source.test()
        target = self.description.spec.target
        rows = torch.arange(len(samples))
        strata = strata_of(samples.targets, target.kind)
        rows = limit_rows(rows, strata, "test", self.settings.limit_test, self.settings.split_seed)
        self._record({"test": rows})
        return take(samples, rows)

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
        resident = is_resident(samples, self.settings.loader, self.device)
        samples = decoded(samples) if resident else samples
        inputs, targets = samples.inputs, standardize_targets(samples.targets, spec.target.mean, spec.target.std)
        if isinstance(inputs, Tensor) and not spec.is_image:
            inputs = Normalizer(self.description.statistics, False, torch.device("cpu"))(inputs)
        if resident:
            assert isinstance(inputs, Tensor)
            return ResidentSplit(inputs, targets, self.device)
        return StreamingSplit(Samples(inputs, targets, samples.decode), self.device, self.settings.workers)


def take(samples: Samples, rows: Tensor) -> Samples:
    """The samples of the given rows."""
    inputs = samples.inputs
    chosen = inputs[rows] if isinstance(inputs, Tensor) else [inputs[row] for row in rows.tolist()]
    return Samples(chosen, samples.targets[rows], samples.decode)
