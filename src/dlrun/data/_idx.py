"""The IDX files of MNIST and of the sets made in its image, read where they lie, compressed or not."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dlrun.data._base import Samples, Source
from dlrun.data._cache import cached
from dlrun.data._download import RemoteFile, fetch, reason
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

LOOK_AHEAD = 64 << 20
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
    return _read(path, dimensions)


def _read(path: Path, dimensions: int) -> Tensor:
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is {'a folder' if path.is_dir() else 'a pipe or a device'}; expected an IDX file")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(file, path, dimensions)
    except (EOFError, zlib.error, OSError) as error:
        advice = "; remove it to download it again" if path.exists() else ""
        raise ConfigError(f"{path}: truncated or unreadable ({reason(error)}){advice}") from None


def _parse(file: io.BufferedIOBase, path: Path, dimensions: int) -> Tensor:
    """Reads no more than one byte beyond what the header says, however much a small compressed file would unpack to."""
    head = file.read(4 + 4 * dimensions)
    magic = int.from_bytes(head[:4], "big")
    if len(head) < 4 + 4 * dimensions or magic != 0x0800 + dimensions:
        raise _misfit(file, f"{path}: not an IDX file of {dimensions}-dimensional bytes (magic number {magic:#010x})")
    sizes = [int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4)]
    raw, wanted = bytearray(), math.prod(sizes)
    while chunk := file.read(min(1 << 20, wanted + 1 - len(raw))):
        raw += chunk
    if len(raw) != wanted or not wanted:
        found = f"more than {wanted}" if len(raw) > wanted else len(raw)
        raise _misfit(file, f"{path}: has {found} bytes of data, but its header says {sizes}")
    return torch.frombuffer(raw, dtype=torch.uint8).view(sizes)


def _misfit(file: io.BufferedIOBase, message: str) -> ConfigError:
    """The error of a file with an unfit header or length. Reading on raises that of damaged compressed bytes instead."""
    file.read(LOOK_AHEAD)
    return ConfigError(message)


class IdxSource(Source):
    """A set of square grey images in four IDX files, with a published test set."""

    published_split = True
    folders: ClassVar[
        tuple[str, ...]
    ]  # below the root; `raw` in the first is where downloads go, as torchvision has it
    class_names: ClassVar[tuple[str, ...]]
    remote: ClassVar[tuple[RemoteFile, ...]]
    side: ClassVar[int] = 28

    def __init__(self, root: Path, cache: bool = True) -> None:
        self.root, self.cache = root, cache

    def train(self) -> tuple[Samples, TargetSpec]:
        self._pair("t10k", _read)  # damaged test files are to be known before training; what they hold is dropped
        return self._samples("train"), TargetSpec("class", len(self.class_names), self.class_names)

    def test(self) -> Samples:
        return self._samples("t10k")

    def read_inputs(self, path: Path) -> Tensor:
        """(N, 1, 28, 28) uint8 from an IDX file of images, compressed or not."""
        images = read_idx(path, 3)
        self._check_side(images, path)
        return images.unsqueeze(1)

    def _samples(self, part: str) -> Samples:
        images, labels = self._pair(part, read_idx)
        return Samples(images.unsqueeze(1), labels.long())

    def _pair(self, part: str, read: Callable[[Path, int], Tensor]) -> tuple[Tensor, ...]:
        """Images (N, 28, 28) and labels (N,), both uint8 and checked."""
        files = [self._find(name) for name in FILES if name.startswith(part)]

        def make() -> tuple[Tensor, Tensor]:
            images, labels = (read(file, axes) for file, axes in zip(files, (3, 1), strict=True))
            self._check_side(images, files[0])
            self._check_pair(images, labels, *files)
            return images, labels

        compressed = any(file.suffix == ".gz" for file in files)
        return cached(files, make, self.cache and compressed, f"{len(self.class_names)} classes")

    def _check_side(self, images: Tensor, path: Path) -> None:
        if images.shape[1:] != (self.side, self.side):
            raise ConfigError(
                f"{path}: images are {images.shape[1]}x{images.shape[2]}; expected {self.side}x{self.side}"
            )

    def _check_pair(self, images: Tensor, labels: Tensor, images_file: Path, labels_file: Path) -> None:
        if len(images) != len(labels):
            raise ConfigError(f"{labels_file}: {len(labels)} labels for {len(images)} images of {images_file.name}")
        if int(labels.max()) >= len(self.class_names):
            raise ConfigError(f"{labels_file}: label {int(labels.max())}; allowed: 0 to {len(self.class_names) - 1}")

    def _find(self, name: str) -> Path:
        """The file below the root, compressed or not; downloaded if it is nowhere."""
        for folder in self.folders:
            for place in (self.root / folder / "raw", self.root / folder):
                for spelling in (f"{name}.gz", name, name.replace("-idx", ".idx")):
                    if (place / spelling).is_file():
                        return place / spelling
        wanted = next(file for file in self.remote if file.name == f"{name}.gz")
        return fetch(wanted, self.root / self.folders[0] / "raw", self.remote)
