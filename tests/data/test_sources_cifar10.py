"""CIFAR-10: the published files where they are, and archives and pickles of every kind of soundness."""

import hashlib
import os
import pickle
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.data import _download, cifar10
from dlrun.data._download import RemoteFile
from dlrun.data.cifar10 import BATCHES, CIFAR10, FOLDER, read_plain_pickle
from dlrun.registry import ConfigError

real = pytest.mark.skipif("DLRUN_DATA_DIR" not in os.environ, reason="DLRUN_DATA_DIR is not set")
LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(_download, "_download", lambda url, target, md5: "no network in tests")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The published folder, unpacked from the strips it is kept as below the data root, if it is not there itself."""
    from dlrun.settings import data_root

    if (data_root() / FOLDER).is_dir():
        return data_root()
    script = data_root() / "cifar10.py"
    if not script.is_file():
        pytest.skip("no CIFAR-10 below DLRUN_DATA_DIR")
    root = tmp_path_factory.mktemp("cifar")
    runpy.run_path(str(script))["unpack"](root)
    return root


def make_batches(folder):
    """Six small batches in the published form; returns their MD5s."""
    folder.mkdir(parents=True)
    md5s, generator = {}, np.random.default_rng(0)
    for name in BATCHES:
        data = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        raw = pickle.dumps({b"data": data, b"labels": [0, 9, 3, 3]}, protocol=4)
        (folder / name).write_bytes(raw)
        md5s[name] = hashlib.md5(raw).hexdigest()
    return md5s


def make_archive(root, folder, monkeypatch, extra=None):
    """The archive of `folder` below `root`, taken for the published one."""
    path = root / cifar10.ARCHIVE.name
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(folder.iterdir()):
            tar.add(file, f"{FOLDER}/{file.name}")
        if extra:
            tar.add(folder / "test_batch", extra)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE", RemoteFile(path.name, md5, ()))


@real
@pytest.mark.curriculum("T19", "T20")
def test_published_files(published):
    """50,000 + 10,000 images in the ten classes of the course, with the well-known channel statistics."""
    samples, spec = CIFAR10(published).train()
    test = CIFAR10(published).test()
    assert (samples.inputs.shape, test.inputs.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert list(spec.names) == LABELS
    assert samples.targets.bincount().tolist() == [5000] * 10
    assert test.targets.bincount().tolist() == [1000] * 10
    counts = torch.stack([samples.inputs[:, channel].flatten().bincount(minlength=256) for channel in range(3)])
    values, shares = torch.arange(256) / 255, counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values.double()
    std = (shares @ values.double().square() - mean**2).sqrt()
    assert [round(v, 4) for v in mean.tolist()] == [0.4914, 0.4822, 0.4465]
    assert [round(v, 4) for v in std.tolist()] == [0.2470, 0.2435, 0.2616]


@real
def test_order_as_torchvision(published):
    """Images, channels, rows and labels stand as torchvision reads them."""
    from torchvision.datasets import CIFAR10 as Reference

    reference = Reference(str(published), train=False, download=False)
    test = CIFAR10(published).test()
    assert np.array_equal(test.inputs.permute(0, 2, 3, 1).numpy(), reference.data)
    assert test.targets.tolist() == reference.targets


def test_train_leaves_the_test_batch_alone(tmp_path, monkeypatch):
    """`train` works without the test batch and `test` without the training batches."""
    monkeypatch.setattr(cifar10, "BATCHES", make_batches(tmp_path / FOLDER))
    (tmp_path / FOLDER / "test_batch").rename(tmp_path / "away")
    samples, _ = CIFAR10(tmp_path).train()
    assert tuple(samples.inputs.shape) == (20, 3, 32, 32)
    assert samples.targets.tolist() == [0, 9, 3, 3] * 5
    with pytest.raises(ConfigError, match=r"test_batch: is missing"):
        CIFAR10(tmp_path).test()


def test_checksum_of_batches(tmp_path, monkeypatch):
    """A batch with one other byte is refused by name."""
    monkeypatch.setattr(cifar10, "BATCHES", make_batches(tmp_path / FOLDER))
    path = tmp_path / FOLDER / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigError, match="data_batch_3: does not have the published MD5"):
        CIFAR10(tmp_path).train()


def test_archive_is_unpacked(tmp_path, monkeypatch):
    """An archive put below the root is unpacked once; members outside its folder are not written."""
    monkeypatch.setattr(cifar10, "BATCHES", make_batches(tmp_path / "made"))
    root = tmp_path / "root"
    root.mkdir()
    make_archive(root, tmp_path / "made", monkeypatch, extra="../evil")
    assert len(CIFAR10(root).train()[0]) == 20
    assert sorted(p.name for p in root.iterdir()) == [FOLDER, cifar10.ARCHIVE.name]
    assert not (tmp_path / "evil").exists()
    (root / cifar10.ARCHIVE.name).unlink()
    assert len(CIFAR10(root).test()) == 4


def test_bad_archives(tmp_path, monkeypatch):
    """An archive with another MD5, or without a batch, leaves no folder behind."""
    monkeypatch.setattr(cifar10, "BATCHES", make_batches(tmp_path / "made"))
    root = tmp_path / "root"
    root.mkdir()
    (root / cifar10.ARCHIVE.name).write_bytes(b"something else")
    with pytest.raises(ConfigError, match="does not have the published MD5"):
        CIFAR10(root).train()
    (tmp_path / "made" / "data_batch_2").unlink()
    make_archive(root, tmp_path / "made", monkeypatch)
    with pytest.raises(ConfigError, match="cannot be unpacked"):
        CIFAR10(root).train()
    assert [p.name for p in root.iterdir()] == [cifar10.ARCHIVE.name]


def test_absent(tmp_path):
    """Without files or network the error names the archive, its MD5 and the folder."""
    with pytest.raises(
        ConfigError, match=rf"put into {tmp_path}: cifar-10-python.tar.gz \(md5 c58f30108f718f92721af3b9"
    ):
        CIFAR10(tmp_path).train()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_run_no_code(tmp_path, protocol):
    """A pickle that calls anything is refused before it does."""
    (tmp_path / "evil").write_bytes(pickle.dumps({b"data": Evil(tmp_path / "touched")}, protocol=protocol))
    with pytest.raises(ConfigError, match="not a CIFAR batch"):
        read_plain_pickle(tmp_path / "evil")
    assert not (tmp_path / "touched").exists()
    for content in (b"", b"\x80\x02garbage", pickle.dumps([1], protocol=2)):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ConfigError, match="bad: not a CIFAR batch"):
            read_plain_pickle(tmp_path / "bad")


def test_read_inputs(tmp_path):
    """A new batch file gives its images; one with other arrays is refused."""
    data = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    (tmp_path / "new").write_bytes(pickle.dumps({b"data": data}, protocol=4))
    images = CIFAR10(tmp_path).read_inputs(tmp_path / "new")
    assert torch.equal(images[1, 2, 0], torch.from_numpy(data[1, 2048:2080]))
    (tmp_path / "bad").write_bytes(pickle.dumps({b"data": data[:, :100]}, protocol=4))
    with pytest.raises(ConfigError, match="no uint8 `data`"):
        CIFAR10(tmp_path).read_inputs(tmp_path / "bad")
