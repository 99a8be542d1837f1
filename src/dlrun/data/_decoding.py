"""Samples that lie in files: decoding all of them, and keeping what that tells for later runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from dlrun.data._base import Samples
from dlrun.data._cache import cached

CHUNK = 256  # images decoded or gathered at a time


def decode_chunks(paths: Sequence[Path], decode: Callable[[Path], Tensor]) -> Iterator[Tensor]:
    """All files in order, decoded by threads, in chunks: uint8 (n, C, H, W)."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i in range(0, len(paths), CHUNK):
            yield torch.stack(list(pool.map(decode, paths[i : i + CHUNK])))


def check_files(samples: Samples | None) -> None:
    """Raises ConfigError for the first file that cannot be decoded: all are known to be sound before training."""
    if samples is None or isinstance(samples.inputs, Tensor):
        return

    def read_all() -> tuple[Tensor, ...]:
        for _ in chunks_of(samples):
            pass
        return (torch.zeros(1, dtype=torch.uint8),)

    of_files(samples, "sound", read_all)


def chunks_of(samples: Samples) -> Iterator[Tensor]:
    """All samples in order, uint8 (n, C, H, W) each, decoded where they are files."""
    inputs = samples.inputs
    if not isinstance(inputs, Tensor):
        assert samples.decode is not None, "file paths need a decode function"
        yield from decode_chunks(inputs, samples.decode)
    elif samples.rows is None:
        yield from inputs.split(CHUNK)
    else:
        pixels = inputs.numpy()  # copies in one thread: waiting for a second one costs more than it gains
        yield from (torch.from_numpy(pixels[rows]) for rows in map(Tensor.numpy, samples.rows.split(CHUNK)))


def of_files(samples: Samples, what: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `make` finds by decoding all files of the samples, kept for later runs where they allow it."""
    assert not isinstance(samples.inputs, Tensor)
    return cached(samples.inputs, make, samples.decoded_as is not None, f"{what} {samples.decoded_as}")


def decode_all(samples: Samples) -> Tensor:
    """All files in order as one uint8 tensor (N, C, H, W)."""
    inputs, decode = samples.inputs, samples.decode
    assert decode is not None, "file paths need a decode function"
    assert not isinstance(inputs, Tensor)

    def read_all() -> tuple[Tensor, ...]:
        whole = torch.empty((len(inputs), *decode(inputs[0]).shape), dtype=torch.uint8)
        for chunk, place in zip(chunks_of(samples), whole.split(CHUNK), strict=True):
            place.copy_(chunk)
        return (whole,)

    return of_files(samples, "pixels", read_all)[0]
