"""A split that does not fit on the device: worker processes read and decode its batches ahead of use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from dlrun.data._base import Samples
from dlrun.registry import ConfigError
from dlrun.signals import NUMBERS

RawBatch = tuple[Tensor, Tensor, Tensor]
"""Inputs as stored, targets, row numbers; all on the device."""


class StreamingSplit:
    """Samples read through a DataLoader; batches equal those of `ResidentSplit` for any number of workers, because
    order and augmentation are made outside the workers.

    Args:
        samples: tensors or files.
        device: where batches go.
        workers: worker processes, kept from epoch to epoch; 0 reads in this process.
    """

    def __init__(self, samples: Samples, device: torch.device, workers: int) -> None:
        self.targets = samples.targets.to(device)
        self.device = device
        self.reader = _Reader(samples)
        self.workers = workers
        self._plan: list[list[int]] = []
        self._loader: DataLoader[Tensor] | None = None
        self._busy = False

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, order: Tensor | None, batch_size: int, start: int = 0) -> Iterator[RawBatch]:
        """Minibatches in `order` (int64 (N,); None: as they lie) from batch number `start` on."""
        order = torch.arange(len(self)) if order is None else order
        plan = [rows.tolist() for rows in order.split(batch_size)[start:]]
        chunks = order.to(self.device).split(batch_size)[start:]
        for inputs, rows in zip(self._read(plan), chunks, strict=True):
            yield inputs.to(self.device, non_blocking=True), self.targets.index_select(0, rows), rows

    def close(self) -> None:
        """Ends the worker processes; at a second Ctrl-C without waiting for those in the middle of a read."""
        # by hand: an iterator kept alive by an exception's traceback ends its workers late, after a timeout of 5 s
        iterator, self._loader = getattr(self._loader, "_iterator", None), None
        if iterator is None:
            return
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            iterator._shutdown_workers()
        _kill(iterator)

    def _read(self, plan: list[list[int]]) -> Iterator[Tensor]:
        if self._busy:  # somebody looks at a batch in mid-epoch: workers serve one reader at a time
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
            persistent_workers=self.workers > 0,
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
    """Reads a batch of rows; errors come back as values, since a DataLoader would wrap them in a traceback."""

    def __init__(self, samples: Samples) -> None:
        self.inputs, self.decode = samples.inputs, samples.decode

    def __getitems__(self, rows: list[int]) -> Tensor | ConfigError:
        if isinstance(self.inputs, Tensor):
            return self.inputs[rows]
        assert self.decode is not None, "file paths need a decode function"
        try:
            return torch.stack([self.decode(self.inputs[row]) for row in rows])
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


def decode_chunks(paths: Sequence[Path], decode: Callable[[Path], Tensor], size: int = 256) -> Iterator[Tensor]:
    """All files in order, decoded by threads, in chunks of at most `size`: uint8 (n, C, H, W)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i in range(0, len(paths), size):
            yield torch.stack(list(pool.map(decode, paths[i : i + size])))


def check_files(samples: Samples | None) -> None:
    """Raises ConfigError for the first file that cannot be decoded: all are known to be sound before training."""
    if samples is not None and not isinstance(samples.inputs, Tensor):
        assert samples.decode is not None, "file paths need a decode function"
        for _ in decode_chunks(samples.inputs, samples.decode):
            pass


def decode_all(paths: Sequence[Path], decode: Callable[[Path], Tensor]) -> Tensor:
    """All files in order as one uint8 tensor (N, C, H, W)."""
    whole = torch.empty((len(paths), *decode(paths[0]).shape), dtype=torch.uint8)
    i = 0
    for chunk in decode_chunks(paths, decode):
        whole[i : i + len(chunk)] = chunk
        i += len(chunk)
    return whole
