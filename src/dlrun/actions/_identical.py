"""Whether two runs ended bit for bit alike; only what is time may differ (see `_contents`)."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from dlrun.actions._contents import HEALTHY, METRICS, SEQUENCES, Entries


@dataclass(frozen=True)
class Difference:
    """One value that is not the same.

    Attributes:
        file: relative to the run's folder.
        key: where in the file, such as `model.0.weight [3, 4]` or `train/loss at step 50`.
        whole, resumed: the two values as text.
    """

    file: str
    key: str
    whole: str
    resumed: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.whole} in the whole run, {self.resumed} in the resumed one"


def compare(whole: Mapping[str, Entries | None], resumed: Mapping[str, Entries | None]) -> list[Difference]:
    """All differences between what `read_run` gave for two runs, file by file in the order of the files."""
    found: list[Difference] = []
    for file in whole:
        a, b = whole[file], resumed[file]
        if a is None or b is None:
            if a is not b:
                found.append(
                    Difference(file, "the file", *("is there" if x is not None else "missing" for x in (a, b)))
                )
            continue
        found += _compare_keyed(file, a, b) if file not in SEQUENCES else _compare_sequences(file, a, b)
    return found


def _compare_keyed(file: str, whole: Entries, resumed: Entries) -> Iterator[Difference]:
    a, b = dict(whole), dict(resumed)
    for key in dict.fromkeys([*a, *b]):
        if key not in a or key not in b:
            yield Difference(file, key, *(_shown(x[key]) if key in x else "missing" for x in (a, b)))
        elif not same(a[key], b[key]):
            yield _difference(file, key, a[key], b[key])


def _compare_sequences(file: str, whole: Entries, resumed: Entries) -> Iterator[Difference]:
    """By position; ends at the first entry that stands elsewhere, since all that follow do too."""
    if whole[0][0] == HEALTHY[0][0]:  # a damaged file is not excused by another damaged one
        for (key, sound), *found in zip(HEALTHY, whole, resumed, strict=False):
            if any(value != sound for _, value in found):
                yield Difference(file, key, *(str(value) for _, value in found))
                return
    for number, (a, b) in enumerate(zip_longest(whole, resumed), start=1):
        if a is None or b is None or a[0] != b[0]:
            yield Difference(file, f"entry {number}", *("missing" if x is None else x[0] for x in (a, b)))
            return
        if not same(a[1], b[1]):
            yield _difference(file, a[0], a[1], b[1])


def same(a: Any, b: Any) -> bool:
    """Whether two values are of one type and have the same bits: NaN equals the same NaN, and 0.0 is not -0.0."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return type(a) is type(b) and bool(a == b)


def _difference(file: str, key: str, a: Any, b: Any) -> Difference:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape:
        unlike = (_bytes(a) != _bytes(b)).any(1).nonzero().flatten()
        at = [int(index) for index in torch.unravel_index(unlike[0], a.shape)]
        values = [f"{x.flatten()[unlike[0]].item():.9g}" for x in (a, b)]
        return Difference(file, f"{key} {at} (first of {len(unlike)} of {a.numel()})", *values)
    if file == METRICS and isinstance(a, bytes) and isinstance(b, bytes):
        return _difference_of_lines(file, key, a, b)
    return Difference(file, key, _shown(a), _shown(b))


def _difference_of_lines(file: str, key: str, a: bytes, b: bytes) -> Difference:
    try:
        one, other = json.loads(a), json.loads(b)
        name = next(name for name in [*one, *other] if one.get(name, "missing") != other.get(name, "missing"))
    except (ValueError, AttributeError, TypeError, StopIteration):  # not what dlrun writes
        return Difference(file, key, _shown(a), _shown(b))
    return Difference(file, f"{key} '{name}'", *(repr(line.get(name, "missing")) for line in (one, other)))


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, float):
        return f"{value:.17g}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... (checksum {zlib.crc32(text.encode()):08x})"


def _bytes(tensor: Tensor) -> Tensor:
    """(elements, bytes of one) uint8 on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(len(flat), -1) if len(flat) else torch.empty(0, 1, dtype=torch.uint8)
