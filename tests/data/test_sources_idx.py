"""MNIST and Fashion-MNIST: IDX files of every kind of soundness, and the published files where they are."""

import gzip
import os
import struct

import pytest
import torch

from dlrun.data import _download, _idx
from dlrun.data._idx import FILES, read_idx
from dlrun.data.fashion_mnist import FashionMNIST
from dlrun.data.mnist import MNIST
from dlrun.registry import ConfigError

real = pytest.mark.skipif("DLRUN_DATA_DIR" not in os.environ, reason="DLRUN_DATA_DIR is not set")


def idx(tensor):
    return struct.pack(f">I{tensor.dim()}I", 0x0800 + tensor.dim(), *tensor.shape) + bytes(
        tensor.flatten().int().tolist()
    )


def write_set(folder, *, compress, count=20):
    """Four sound files below `folder`; returns the tensors by file name."""
    folder.mkdir(parents=True)
    content = {}
    for name in FILES:
        shape = (count, 28, 28) if "images" in name else (count,)
        content[name] = torch.randint(0, 256 if "images" in name else 10, shape, dtype=torch.uint8)
        raw = idx(content[name])
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)
    return content


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(_download, "_download", lambda url, target, md5: "no network in tests")


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "mnist/raw", "mnist"])
@pytest.mark.parametrize("compress", [True, False])
def test_places(tmp_path, place, compress):
    """Files are found in the usual folders, compressed or not, and come back as written."""
    content = write_set(tmp_path / place, compress=compress)
    samples, spec = MNIST(tmp_path).train()
    assert torch.equal(samples.inputs, content[FILES[0]].unsqueeze(1))
    assert torch.equal(samples.targets, content[FILES[1]].long())
    assert (spec.kind, spec.size, spec.names) == ("class", 10, tuple("0123456789"))
    test = MNIST(tmp_path).test()
    assert torch.equal(test.inputs, content[FILES[2]].unsqueeze(1))
    assert torch.equal(test.targets, content[FILES[3]].long())


def test_read_only_folder(tmp_path):
    """Reading writes nothing beside the files."""
    write_set(tmp_path / "MNIST/raw", compress=True)
    folder = tmp_path / "MNIST/raw"
    before = sorted(folder.iterdir())
    folder.chmod(0o555)
    try:
        MNIST(tmp_path).train()
    finally:
        folder.chmod(0o755)
    assert sorted(folder.iterdir()) == before


def test_train_opens_only_the_training_files(tmp_path, monkeypatch):
    """`train` decodes no test file and `test` no training file."""
    write_set(tmp_path / "MNIST", compress=False)
    opened = []
    read = _idx.read_idx
    monkeypatch.setattr(_idx, "read_idx", lambda path, dimensions: opened.append(path.name) or read(path, dimensions))
    MNIST(tmp_path).train()
    assert opened == list(FILES[:2])
    opened.clear()
    MNIST(tmp_path).test()
    assert opened == list(FILES[2:])


def truncate(raw):
    return raw[: len(raw) // 2]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (f"{FILES[0]}.gz", truncate, "truncated or unreadable"),
        (f"{FILES[0]}.gz", lambda raw: b"not gzip", "truncated or unreadable"),
        (f"{FILES[0]}.gz", lambda raw: raw[:20] + bytes(20) + raw[40:], "truncated or unreadable"),
        (f"{FILES[0]}.gz", lambda raw: gzip.compress(truncate(gzip.decompress(raw))), "its header says"),
        (f"{FILES[0]}.gz", lambda raw: gzip.compress(gzip.decompress(raw) + b"\0"), "its header says"),
        (f"{FILES[0]}.gz", lambda raw: gzip.compress(b""), "not an IDX file"),
        (f"{FILES[1]}.gz", lambda raw: gzip.compress(idx(torch.zeros(3, 2))), "not an IDX file"),
        (f"{FILES[1]}.gz", lambda raw: gzip.compress(idx(torch.zeros(3))), "3 labels for 20 images"),
        (f"{FILES[1]}.gz", lambda raw: gzip.compress(idx(torch.full((20,), 10))), "label 10; allowed: 0 to 9"),
        (f"{FILES[0]}.gz", lambda raw: gzip.compress(idx(torch.zeros(20, 8, 8))), "8x8; expected 28x28"),
    ],
)
def test_damage(tmp_path, name, change, message):
    """Every kind of damage is one line that names the file."""
    write_set(tmp_path / "MNIST/raw", compress=True)
    path = tmp_path / "MNIST/raw" / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ConfigError, match=message) as caught:
        MNIST(tmp_path).train()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_test_files_stop_before_training(tmp_path):
    """A truncated or missing test file is found when the training files are read."""
    write_set(tmp_path / "MNIST/raw", compress=True)
    path = tmp_path / "MNIST/raw" / f"{FILES[2]}.gz"
    path.write_bytes(truncate(path.read_bytes()))
    with pytest.raises(ConfigError, match=r"t10k-images-idx3-ubyte\.gz: truncated or unreadable"):
        MNIST(tmp_path).train()
    path.unlink()
    with pytest.raises(ConfigError, match=r"t10k-images-idx3-ubyte\.gz is missing"):
        MNIST(tmp_path).train()


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_absent(tmp_path, source):
    """Without files or network the error names all four files with their MD5 and the folder."""
    with pytest.raises(ConfigError) as caught:
        source(tmp_path).train()
    assert list(tmp_path.iterdir()) == [], "the folder made for the download stayed"
    for file in source.remote:
        assert f"{file.name} (md5 {file.md5})" in str(caught.value)
    assert str(tmp_path / source.folders[0] / "raw") in str(caught.value)
    assert len(source.remote) == 4
    assert all(url.endswith(file.name) for file in source.remote for url in file.urls)


def test_read_inputs(tmp_path):
    """A new file of images in the same form gives (N, 1, 28, 28) bytes."""
    images = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    (tmp_path / "new").write_bytes(idx(images))
    assert torch.equal(MNIST(tmp_path).read_inputs(tmp_path / "new"), images.unsqueeze(1))
    with pytest.raises(ConfigError, match="absent: truncated or unreadable"):
        read_idx(tmp_path / "absent", 3)


@real
@pytest.mark.curriculum("T27", "T19")
@pytest.mark.parametrize(("source", "mean", "std"), [(MNIST, 0.1307, 0.3081), (FashionMNIST, 0.2860, 0.3530)])
def test_published_files(source, mean, std):
    """The published files hold 60,000 and 10,000 images of 28x28 in 10 classes with the well-known mean and deviation."""
    from dlrun.settings import data_root

    samples, spec = source(data_root()).train()
    test = source(data_root()).test()
    assert (samples.inputs.shape, test.inputs.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    values = samples.inputs.to(torch.float64) / 255
    assert (round(float(values.mean()), 4), round(float(values.std()), 4)) == (mean, std)
    counts = samples.targets.bincount().tolist()
    if source is MNIST:
        assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    else:
        assert counts == [6000] * 10
        assert spec.names[0] == "T-shirt/top"
        assert spec.names[9] == "Ankle boot"
    assert len(test.targets.unique()) == 10


@real
@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_md5_of_published_files(source):
    """The MD5s that downloads are checked against are those of the published files."""
    from dlrun.settings import data_root

    for file in source.remote:
        assert _download.md5_of(data_root() / source.folders[0] / "raw" / file.name) == file.md5
