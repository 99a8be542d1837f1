"""The IDX files of MNIST and of the sets made in its image, read where they lie, compressed or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dlrun.data._base import Samples, Source
from dlrun.data._download import RemoteFile, fetch, reason
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def remote_files(md5s: tuple[str, str, str, str], mirrors: tuple[str, ...]) -> tuple[RemoteFile, ...]:
    """The four compressed files, given their MD5s in the order of `FILES` and the folders that serve them."""
    names = [f"{name}.gz" for name in FILES]
    return tuple(
        RemoteFile(name, md5, tuple(f"{mirror}/{name}" for mirror in mirrors))
        for name, md5 in zip(names, md5s, strict=True)
    )


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Reads a file of unsigned bytes with `dimensions` axes. Raises ConfigError naming the file if it is not one.

    Layout: big-endian; the magic number 0x0800 + dimensions, each size as a 32-bit integer, then the bytes.
    """
    raw = _read(path)
    start = 4 + 4 * dimensions
    magic = int.from_bytes(raw[:4], "big")
    if len(raw) < start or magic != 0x0800 + dimensions:
        raise ConfigError(f"{path}: not an IDX file of {dimensions}-dimensional bytes (magic number {magic:#010x})")
    sizes = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if len(raw) - start != math.prod(sizes) or 0 in sizes:
        raise ConfigError(f"{path}: has {len(raw) - start} bytes of data, but its header says {sizes}")
    return torch.frombuffer(raw, dtype=torch.uint8, offset=start).view(sizes)


def check_whole(path: Path) -> None:
    """Raises ConfigError unless the file can be read to its end: that of a test set is to be known before training. What it
    holds is dropped."""
    _read(path)


def _read(path: Path) -> bytearray:
    try:
        if path.suffix != ".gz":
            return bytearray(path.read_bytes())
        with gzip.open(path) as file:
            return bytearray(file.read())
    except (EOFError, zlib.error, OSError) as error:
        advice = "; remove it to download it again" if path.exists() else ""
        raise ConfigError(f"{path}: truncated or unreadable ({reason(error)}){advice}") from None


class IdxSource(Source):
    """A set of square grey images in four IDX files, with a published test set."""

    published_split = True
    folders: ClassVar[
        tuple[str, ...]
    ]  # below the root; `raw` in the first is where downloads go, as torchvision has it
    class_names: ClassVar[tuple[str, ...]]
    remote: ClassVar[tuple[RemoteFile, ...]]
    side: ClassVar[int] = 28

    def __init__(self, root: Path) -> None:
        self.root = root

    def train(self) -> tuple[Samples, TargetSpec]:
        for name in FILES[2:]:
            check_whole(self._find(name))
        return self._samples("train"), TargetSpec("class", len(self.class_names), self.class_names)

    def test(self) -> Samples:
        return self._samples("t10k")

    def read_inputs(self, path: Path) -> Tensor:
        """(N, 1, 28, 28) uint8 from an IDX file of images, compressed or not."""
        images = read_idx(path, 3)
        if images.shape[1:] != (self.side, self.side):
            raise ConfigError(
                f"{path}: images are {images.shape[1]}x{images.shape[2]}; expected {self.side}x{self.side}"
            )
        return images.unsqueeze(1)

    def _samples(self, part: str) -> Samples:
        images_file, labels_file = (self._find(name) for name in FILES if name.startswith(part))
        images, labels = self.read_inputs(images_file), read_idx(labels_file, 1)
        if len(images) != len(labels):
            raise ConfigError(f"{labels_file}: {len(labels)} labels for {len(images)} images of {images_file.name}")
        if int(labels.max()) >= len(self.class_names):
            raise ConfigError(f"{labels_file}: label {int(labels.max())}; allowed: 0 to {len(self.class_names) - 1}")
        return Samples(images, labels.long())

    def _find(self, name: str) -> Path:
        """The file below the root, compressed or not; downloaded if it is nowhere."""
        for folder in self.folders:
            for place in (self.root / folder / "raw", self.root / folder):
                for spelling in (f"{name}.gz", name, name.replace("-idx", ".idx")):
                    if (place / spelling).is_file():
                        return place / spelling
        wanted = next(file for file in self.remote if file.name == f"{name}.gz")
        return fetch(wanted, self.root / self.folders[0] / "raw", self.remote)
