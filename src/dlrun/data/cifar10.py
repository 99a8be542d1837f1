"""CIFAR-10."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._base import Samples, Source
from dlrun.data._cache import cached
from dlrun.data._download import RemoteFile, fetch, locked, md5_of, reason
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

FOLDER = "cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ARCHIVE = RemoteFile(
    "cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
)
BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


@DATASETS.register("cifar10")
class CIFAR10(Source):
    """Small colour photographs: 50,000 + 10,000 images of 32x32, 10 classes.

    Read from `<root>/cifar-10-batches-py` (the "python version"), or from `<root>/cifar-10-python.tar.gz`, which is
    downloaded when absent and unpacked beside itself. Every file's MD5 is checked, and nothing is unpickled but arrays
    and plain containers.

    Source: Krizhevsky (2009), "Learning Multiple Layers of Features from Tiny Images".

    Args:
        root: folder that holds the data sets; given by dlrun.
        cache: keep decoded copies of the batches, whose MD5s were right when the copies were made; given by dlrun.

    Shapes: inputs uint8 (N, 3, 32, 32), targets int64 (N,).

    Raises:
        ConfigError: a file is damaged, or absent and cannot be downloaded.
    """

    published_split = True

    def __init__(self, root: Path, cache: bool = True) -> None:
        self.root, self.cache = root, cache

    def train(self) -> tuple[Samples, TargetSpec]:
        return self._samples([name for name in BATCHES if name != "test_batch"]), TargetSpec(
            "class", len(CLASSES), CLASSES
        )

    def test(self) -> Samples:
        return self._samples(["test_batch"])

    def check_test(self) -> None:
        self._samples(["test_batch"])

    def read_inputs(self, path: Path) -> Tensor:
        """(N, 3, 32, 32) uint8 from a batch file of the published form."""
        return _images(read_plain_pickle(path), path)

    def _samples(self, names: list[str]) -> Samples:
        def make() -> tuple[Tensor, Tensor]:
            parts = [self._batch(name) for name in names]
            return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])

        folder = self._folder()
        images, labels = cached([folder / name for name in names], make, self.cache, str([BATCHES[n] for n in names]))
        return Samples(images, labels.long())

    def _batch(self, name: str) -> tuple[Tensor, Tensor]:
        """Images and labels of one file, both uint8."""
        path = self._verified(name)
        content = read_plain_pickle(path)
        return _images(content, path), torch.tensor(content[b"labels"], dtype=torch.uint8)

    def _verified(self, name: str) -> Path:
        path = self._folder() / name
        if not path.is_file() or md5_of(path) != BATCHES[name]:
            problem = "does not have the published MD5" if path.exists() else "is missing"
            raise ConfigError(f"{path}: {problem} {BATCHES[name]}; remove the folder to unpack or download it again")
        return path

    def _folder(self) -> Path:
        folder = self.root / FOLDER
        if not folder.is_dir():
            unpack(fetch(ARCHIVE, self.root, [ARCHIVE]), folder)
        return folder


def unpack(archive: Path, folder: Path) -> None:
    """Writes the batches of an archive with the published MD5 to `folder`, which appears complete or not at all."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with locked(archive.parent):
            if folder.is_dir():  # another process was quicker
                return
            if md5_of(archive) != ARCHIVE.md5:
                raise ConfigError(
                    f"{archive}: does not have the published MD5 {ARCHIVE.md5}; remove it to download it again"
                )
            part.mkdir(exist_ok=True)
            with tarfile.open(archive) as tar:
                for name in BATCHES:  # only these names are written, whatever the archive holds
                    member = tar.extractfile(f"{FOLDER}/{name}")
                    assert member is not None, name
                    with member, (part / name).open("wb") as out:
                        shutil.copyfileobj(member, out)
            os.replace(part, folder)
    except (OSError, KeyError, tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{archive}: cannot be unpacked into {folder.parent} ({reason(error)})") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and numeric arrays; anything else would let a file run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module.split(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        raise pickle.UnpicklingError(f"holds a {module}.{name}, not just arrays")


def read_plain_pickle(path: Path) -> dict[bytes, Any]:
    """A pickled mapping of arrays and plain containers. Raises ConfigError for a file that holds anything else."""
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ConfigError(f"{path}: not a CIFAR batch ({reason(error)})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a CIFAR batch (holds a {type(content).__name__})")
    return content


def _images(content: dict[bytes, Any], path: Path) -> Tensor:
    pixels = content.get(b"data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise ConfigError(f"{path}: not a CIFAR batch (no uint8 `data` of shape (N, 3072))")
    return torch.from_numpy(np.ascontiguousarray(pixels)).view(-1, 3, 32, 32)
