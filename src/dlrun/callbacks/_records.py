"""The records of an event file: length, content, and a checksum of each (CRC-32C), as in TensorFlow's record files."""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = np.uint32(0x82F63B78)  # of CRC-32C, lowest bit first
BLOCK = 512  # bytes whose parts of a checksum are looked up at once
BLOCKS = 128  # looked up together
SHORT = 256  # bytes, below which one after the other is as fast
CHECKED = 1 << 20  # bytes at the end of a file whose checksums are compared


def record(content: bytes) -> bytes:
    """A record of an event file."""
    header = struct.pack("<Q", len(content))
    return b"".join((header, _checksum(header), content, _checksum(content)))


def whole_records(content: bytes) -> int:
    """Length of the beginning of an event file in which every record is whole: TensorBoard reads no further. The checksums of
    the content are looked at near the end only, where a power failure does its damage."""
    end = 0
    while len(header := content[end : end + 12]) == 12:
        size = int.from_bytes(header[:8], "little")
        following = end + 16 + size
        if _checksum(header[:8]) != header[8:] or following > len(content):
            break
        data, check = content[end + 12 : following - 4], content[following - 4 : following]
        if following > len(content) - CHECKED and _checksum(data) != check:
            break
        end = following
    return end


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes.

    A checksum is the exclusive or of what each byte adds to it, which depends on the number of bytes that follow: in a
    block all are looked up at once, as TensorBoard's own loop over bytes takes 90 ns for each.
    """
    state, done = 0xFFFFFFFF, 0
    if len(data) >= SHORT:
        tables, first = _tables()
        values = np.frombuffer(data, np.uint8)
        done = len(data) // BLOCK * BLOCK
        for start in range(0, done, BLOCK * BLOCKS):
            blocks = values[start : min(done, start + BLOCK * BLOCKS)].reshape(-1, BLOCK)
            for added in _looked_up(tables, blocks).tolist():
                state = added ^ _shifted(state, first)
        if len(data) - done >= SHORT:
            rows = tables[done - len(data) :]
            state = int(_looked_up(rows, values[None, done:])[0]) ^ _shifted(state, rows[:4].tolist())
            done = len(data)
    table = _table()
    for byte in data[done:]:
        state = table[(state ^ byte) & 255] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _checksum(data: bytes) -> bytes:
    """The CRC-32C as it is stored: rotated by 15 bits, plus a constant."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _looked_up(tables: NDArray[np.uint32], blocks: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """What blocks of bytes add to a checksum: (length, 256), (blocks, length) -> (blocks,)."""
    return np.bitwise_xor.reduce(tables[np.arange(len(tables)), blocks], axis=1)


def _shifted(state: int, first: list[list[int]]) -> int:
    """A checksum after as many zeros as a block has bytes; `first`: the tables of its first four bytes."""
    return first[0][state & 255] ^ first[1][state >> 8 & 255] ^ first[2][state >> 16 & 255] ^ first[3][state >> 24]


@lru_cache(maxsize=1)
def _table() -> list[int]:
    """What a byte adds to a checksum, if it is the last."""
    row = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = np.where(row & 1, row >> 1 ^ POLYNOMIAL, row >> 1)
    return row.tolist()


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.uint32], list[list[int]]]:
    """What a byte adds to a checksum by its place in a block (BLOCK, 256), and the first four rows as lists."""
    last = row = np.array(_table(), dtype=np.uint32)
    rows = [row]
    for _ in range(BLOCK - 1):
        row = last[row & 255] ^ row >> 8
        rows.append(row)
    tables = np.stack(rows[::-1])
    return tables, tables[:4].tolist()
