"""Every random stream has a name and is a pure function of (seed, name, counter): nothing is carried from step to step.

So the random state of a run is its seed and its counters; resuming in mid-epoch is exact, and a run trained beside others
sees the same order and the same masks as alone. Two kinds of stream:

- `generator` / `seeded`: a fresh PyTorch generator on the CPU, for permutations, splits and initialisation;
- `bits`, `uniform`, `normal`: stateless hashes of the element index with a two-word key, equal on every device, for masks
  and augmentation drawn at each step.

Source of the hash: the lowbias32 constants of C. Wellons, "Prospecting for Hash Functions" (2018), here on index * golden
ratio with a second key word added between the multiplications.
"""

from __future__ import annotations

import contextlib
import functools
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M1, _M2 = 0x7FEB352D, 0x846CA68B
_GOLDEN = 0x9E3779B9
_OFFSET = 0x6A09E667


def _signed(word: int) -> int:
    return word - (1 << 32) if word & 0x80000000 else word


Word = TypeVar("Word", int, np.ndarray)


def _mix(word: Word) -> Word:
    """lowbias32 on Python integers below 2^32, or on an array of uint32, whose products wrap."""
    word = ((word ^ (word >> 16)) * _M1) & _MASK
    word = ((word ^ (word >> 15)) * _M2) & _MASK
    return word ^ (word >> 16)


@functools.lru_cache(maxsize=1024)
def _chains(seed: int, name: str) -> tuple[int, int]:
    """Two independent chains after seed and name, which stay the same from step to step."""
    words = []
    for word in (0x243F6A88, 0x85A308D3):  # digits of pi
        for part in (seed & _MASK, (seed >> 32) & _MASK, zlib.crc32(name.encode())):
            word = _mix((word + part * _GOLDEN + _OFFSET) & _MASK)
        words.append(word)
    return words[0], words[1]


def key(seed: int, name: str, counter: int = 0, micro: int = 0) -> tuple[int, int]:
    """The two signed 32-bit key words of stream `name` at `counter` (an epoch or a step).

    `micro` tells several forward passes of one step apart (accumulated micro-batches).
    """
    first, second = _chains(seed, name)
    for part in (counter & _MASK, counter >> 32, micro):
        part = part * _GOLDEN + _OFFSET
        first, second = _mix((first + part) & _MASK), _mix((second + part) & _MASK)
    return _signed(first), _signed(second)


def keys(seed: int, name: str, counters: range, micro: int = 0) -> Tensor:
    """The keys of many counters (below 2^63) at once: int32 (len(counters), 2) on the CPU, row i that of counters[i]."""
    counter = np.arange(counters.start, counters.stop, counters.step, dtype=np.int64)[:, None]
    words = np.array(_chains(seed, name), dtype=np.uint32)
    for part in (counter & _MASK, counter >> 32, np.full((1, 1), micro)):
        words = _mix(words + ((part * _GOLDEN + _OFFSET) & _MASK).astype(np.uint32))
    return torch.from_numpy(words.view(np.int32))


class Stream(NamedTuple):
    """A stream at one step, for whoever may or may not draw from it: the key is computed when it is asked for."""

    seed: int
    name: str
    counter: int = 0
    micro: int = 0

    def key(self) -> tuple[int, int]:
        """See `streams.key`."""
        return key(*self)


def key_tensor(words: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """The key as an int32 tensor of shape (2,)."""
    return torch.tensor(words, dtype=torch.int32, device=device)


def _shift(x: Tensor, k: int) -> Tensor:
    """Logical right shift of int32 (PyTorch's is arithmetic)."""
    return (x >> k) & ((1 << (32 - k)) - 1)


def bits(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Random int32 words of the given shape on the key's device. `key`: int32 (2,)."""
    count = math.prod(shape)
    x = torch.arange(count, dtype=torch.int32, device=key.device).view(tuple(shape)) * _signed(_GOLDEN) + key[0]
    x = (x ^ _shift(x, 16)) * _M1
    x = ((x ^ _shift(x, 15)) + key[1]) * _signed(_M2)
    return x ^ _shift(x, 16)


def uniform(key: Tensor, shape: Sequence[int]) -> Tensor:
    """float32 in [0, 1) of the given shape, 24 random bits each."""
    return _shift(bits(key, shape), 8).to(torch.float32) * (1.0 / (1 << 24))


def normal(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal float32 of the given shape (Box-Muller on adjacent words of one stream)."""
    pairs = uniform(key, (math.prod(shape), 2))
    radius = torch.sqrt(-2.0 * torch.log(1.0 - pairs[:, 0]))
    return (radius * torch.cos(2.0 * math.pi * pairs[:, 1])).view(tuple(shape))


def seed_of(seed: int, name: str, counter: int = 0) -> int:
    """A 63-bit seed for a PyTorch, NumPy or scikit-learn generator (those that take 32 bits: `% 2**32`)."""
    high, low = key(seed, name, counter)
    return ((high & 0x7FFFFFFF) << 32) | (low & _MASK)


def generator(seed: int, name: str, counter: int = 0) -> torch.Generator:
    """A fresh CPU generator for stream `name` at `counter`."""
    return torch.Generator().manual_seed(seed_of(seed, name, counter))


@contextlib.contextmanager
def seeded(seed: int, name: str, counter: int = 0) -> Iterator[None]:
    """Runs a block with PyTorch's global CPU generator set from the stream, and puts the old state back afterwards.

    For code that draws from the global generator: initialisation in `nn.Module` constructors.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed_of(seed, name, counter))
        yield
