"""A split that does not fit on the device: worker processes read and decode its batches ahead of use."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from dlrun.data._base import Samples
from dlrun.data._resident import move
from dlrun.registry import ConfigError
from dlrun.signals import NUMBERS
from dlrun.spec import Batch


class StreamingSplit:
    """Samples that lie in ordinary memory, gathered there, or in files, read through a DataLoader; batches equal those of
    `ResidentSplit` for any number of workers, because order and augmentation are made outside the workers.

    Args:
        samples: tensors or files.
        device: where batches go.
        workers: processes that read files, kept from epoch to epoch; 0 reads in this process.
        prefetch_factor: batches that each of them reads ahead.
    """

    def __init__(self, samples: Samples, device: torch.device, workers: int, prefetch_factor: int = 2) -> None:
        self.targets = samples.targets.to(device)
        self.device = device
        self.reader = _Reader(samples, pinned=device.type == "cuda")
        self.workers = 0 if isinstance(samples.inputs, Tensor) else workers
        self.prefetch_factor = prefetch_factor
        self.wait_s = 0.0  # seconds that epochs waited for their next batch
        self._plan: list[Any] = []  # rows of each batch, int64
        self._loader: DataLoader[Tensor] | None = None
        self._busy = False

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self,
        order: Tensor | None,
        batch_size: int,
        start: int = 0,
        transform: Callable[[Tensor], Tensor] | None = None,
        timed: bool = False,
    ) -> Iterator[Batch]:
        """See `ResidentSplit.batches`. `timed`: waiting counts in `wait_s`."""
        rows_of_all = torch.arange(len(self)) if order is None else order
        plan: list[Any] = list(rows_of_all.split(batch_size)[start:])
        if self.reader.samples.decode is not None:
            plan = [rows.tolist() for rows in plan]  # a tensor would travel to its worker through shared memory
        chunks = move(rows_of_all, self.device).unsafe_split(batch_size)[start:]
        inputs_of_all = self._read(plan)
        if timed:
            inputs_of_all = self._timed(inputs_of_all)
        for inputs, rows in zip(inputs_of_all, chunks, strict=True):
            inputs = inputs.to(self.device, non_blocking=True)
            yield Batch(inputs if transform is None else transform(inputs), self.targets.index_select(0, rows), rows)

    def close(self) -> None:
        """Ends the worker processes; at a second Ctrl-C without waiting for those in the middle of a read."""
        # by hand: an iterator kept alive by an exception's traceback ends its workers late, after a timeout of 5 s
        iterator, self._loader = getattr(self._loader, "_iterator", None), None
        if iterator is None:
            return
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            iterator._shutdown_workers()
        _kill(iterator)

    def _timed(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.wait_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _read(self, plan: list[Any]) -> Iterator[Tensor]:
        if self._busy or not self.workers:  # somebody looks at a batch in mid-epoch: workers serve one reader at a time
            yield from _raise_errors(map(self.reader.__getitems__, plan))
            return
        self._busy, self._plan[:] = True, plan
        self._loader = self._loader or self._make_loader()
        try:
            yield from _raise_errors(self._loader)
        except ConfigError:
            self.close()
            raise
        finally:
            self._busy = False

    def _make_loader(self) -> DataLoader[Tensor]:
        return DataLoader(
            self.reader,
            batch_sampler=self._plan,
            num_workers=self.workers,
            collate_fn=_as_is,
            pin_memory=self.device.type == "cuda",
            persistent_workers=True,
            prefetch_factor=self.prefetch_factor,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # else each epoch would draw from the global generator
        )


def _kill(iterator: Any) -> None:
    """Ends those workers that are still there: they hold nothing, and they ignore a polite SIGTERM."""
    iterator._shutdown = True
    if iterator._worker_pids_set:  # else PyTorch raises an error for a worker that was killed
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
        worker.join()


class _Reader(Dataset[Tensor]):
    """Reads a batch: rows of tensors, given as a tensor, or of files, given as a list; errors come back as values, since a
    DataLoader would wrap them in a traceback."""

    def __init__(self, samples: Samples, pinned: bool) -> None:
        self.samples, self.pinned = samples, pinned

    def __getitems__(self, rows: Any) -> Tensor | ConfigError:
        inputs, decode = self.samples.inputs, self.samples.decode
        if isinstance(inputs, Tensor):
            places = rows if self.samples.rows is None else self.samples.rows.index_select(0, rows)
            if not self.pinned:
                return inputs.index_select(0, places)
            batch = torch.empty((len(rows), *inputs.shape[1:]), dtype=inputs.dtype, pin_memory=True)
            return torch.index_select(inputs, 0, places, out=batch)
        assert decode is not None, "file paths need a decode function"
        try:
            return torch.stack([decode(inputs[row]) for row in rows])
        except ConfigError as error:
            return error


def _raise_errors(batches: Iterable[Tensor | ConfigError]) -> Iterator[Tensor]:
    for batch in batches:
        if isinstance(batch, ConfigError):
            raise batch
        yield batch


def _as_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_parent(worker: int) -> None:
    """A signal often reaches the whole process group (Ctrl-C, a cluster's SIGTERM), but the parent decides."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
