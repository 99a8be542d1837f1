"""The records of event files against the checksums of TensorBoard and of the standard."""

from __future__ import annotations

import random

import pytest
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from tensorboard.summary.writer.record_writer import RecordWriter

from dlrun.callbacks._records import BLOCK, BLOCKS, SHORT, crc32c, record


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_of_the_standard(data: bytes, expected: int) -> None:
    """The check value of CRC-32C and the examples of RFC 3720, B.4."""
    assert crc32c(data) == expected


def test_checksums_of_every_length() -> None:
    """Around the ends of blocks and of groups of blocks they are those that TensorBoard computes byte by byte."""
    draw = random.Random(0)
    around = (0, SHORT, BLOCK, BLOCK + SHORT, 2 * BLOCK, BLOCK * BLOCKS, BLOCK * BLOCKS + SHORT)
    for length in (middle + near for middle in around for near in range(-5, 6) if middle + near >= 0):
        data = draw.randbytes(length)
        assert crc32c(data) == pywrap_tensorflow.crc32c(data), length


@pytest.mark.parametrize("length", [0, 1, 100, 5000])
def test_a_record_is_the_one_tensorboard_writes(length: int) -> None:
    """Byte for byte."""
    content, written = random.Random(length).randbytes(length), []

    class File:
        write = written.append

    RecordWriter(File()).write(content)
    assert record(content) == b"".join(written)
