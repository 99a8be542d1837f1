"""Decoded copies of slow files: mapped when sound, made anew when stale or damaged, done without when they cannot be kept."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dlrun.data import _cache, _decoding, _idx, cifar10
from dlrun.data._cache import cached
from dlrun.data._idx import FILES
from dlrun.data._module import build_data
from dlrun.data.cifar10 import CIFAR10
from dlrun.data.mnist import MNIST
from dlrun.registry import ConfigError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the copies of this test go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dlrun" / "decoded"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.gz"
    path.write_bytes(b"abc")
    os.utime(path, ns=(10**18, 10**18))
    return path


class Make:
    """Makes two tensors from the first byte of a file, and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path, self.calls = path, 0

    def __call__(self):
        self.calls += 1
        first = self.path.read_bytes()[0]
        return torch.arange(6, dtype=torch.uint8).view(2, 3) + first, torch.full((0, 4), first, dtype=torch.uint8)


def check(make: Make, first: int, calls: int, enabled: bool = True, how: str = "") -> None:
    wide, empty = cached([make.path], make, enabled, how)
    assert torch.equal(wide, torch.arange(6, dtype=torch.uint8).view(2, 3) + first)
    assert tuple(empty.shape) == (0, 4)
    assert make.calls == calls


def test_made_once(folder, source):
    """The second reading maps the copy; a change in place reaches neither the copy nor a later reading."""
    make = Make(source)
    check(make, 97, 1)
    check(make, 97, 1)
    cached([source], make)[0].zero_()
    check(make, 97, 1)
    check(make, 97, 2, how="otherwise")
    assert len(list(folder.iterdir())) == 2
    assert not list(folder.glob("*.tmp"))


def test_switched_off(folder, source):
    """Without the cache everything is read anew and nothing is written."""
    make = Make(source)
    check(make, 97, 1, enabled=False)
    check(make, 97, 2, enabled=False)
    assert not folder.exists()


@pytest.mark.parametrize("change", ["size", "time", "content with the old size and time"])
def test_stale(folder, source, change):
    """A source of another size or time, or replaced by one that bears the old time, is read anew and its copy replaced."""
    make = Make(source)
    check(make, 97, 1)
    if change == "time":
        os.utime(source, ns=(10**18, 10**18 + 1))
    else:
        source.write_bytes(b"xbc" if "content" in change else b"xbcd")
        os.utime(source, ns=(10**18, 10**18))
    check(make, 97 if change == "time" else 120, 2)
    check(make, 97 if change == "time" else 120, 2)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: b"",
        lambda raw: raw[:100],
        lambda raw: b"[1]\n" + raw[4:],
        lambda raw: b"\xff" * len(raw),
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: raw.replace(b"[2, 3]", b"[3, 3]"),
        lambda raw: raw.replace(b"[2, 3]", b"[2,-3]"),
        lambda raw: raw.replace(b"[[2, 3], [0, 4]]", b'"' + b"x" * 14 + b'"'),
    ],
)
def test_damaged(folder, source, damage):
    """A copy with another length, header or content is made anew, silently."""
    make = Make(source)
    check(make, 97, 1)
    (copy,) = folder.iterdir()
    sound = copy.read_bytes()
    assert damage(sound) != sound
    copy.write_bytes(damage(sound))
    check(make, 97, 2)
    assert copy.read_bytes() == sound


def test_the_longest_unused_go(folder, tmp_path, monkeypatch):
    """All copies together stay below a limit; what is used counts as new."""
    sources = [tmp_path / f"{name}.gz" for name in "abc"]
    for path in sources:
        path.write_bytes(b"a")
    for age, path in zip((30, 20), sources, strict=False):
        check(Make(path), 97, 1)
        (copy,) = folder.glob(f"{path.name}*")
        os.utime(copy, ns=(10**18 - age, 10**18 - age))
    check(Make(sources[0]), 97, 0)
    monkeypatch.setattr(_cache, "KEPT", 2 * copy.stat().st_size)
    check(Make(sources[2]), 97, 1)
    assert sorted(path.name[0] for path in folder.iterdir()) == ["a", "c"]


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_copies_are_the_users_own(folder, source):
    """Nobody else can read what may come from files that nobody else can read."""
    check(Make(source), 97, 1)
    (copy,) = folder.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert copy.stat().st_mode & 0o077 == 0


def test_unwritable(tmp_path, source, monkeypatch):
    """A cache folder that cannot be made, an unknown home folder and a copy too large to keep are no errors."""
    make = Make(source)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check(make, 97, 1)
    check(make, 97, 2)

    def homeless():
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(_cache.Path, "home", homeless)
    check(make, 97, 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "small"))
    monkeypatch.setattr(_cache, "LARGEST", 5)
    check(make, 97, 4)
    assert not (tmp_path / "small").exists()


def test_a_failed_write_leaves_nothing(folder, source, monkeypatch):
    """When the disk is full the values are still right, and no partial file stays."""

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_cache.os, "fsync", full)
    check(Make(source), 97, 1)
    assert list(folder.iterdir()) == []


def test_absent_sources_are_reported_by_their_reader(folder, source):
    """A missing file reaches the user as the reader's own error, also where a copy is left of it."""
    make = Make(source)
    check(make, 97, 1)
    source.unlink()
    with pytest.raises(FileNotFoundError):
        cached([source], make)


def _read(path: Path, results) -> None:
    results.put(cached([path], Make(path))[0].tolist())


def test_processes_at_once(folder, source):
    """Processes that make the same copy at the same time all get the right values, and leave one sound copy."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_read, args=(source, results)) for _ in range(8)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert found == [[[97, 98, 99], [100, 101, 102]]] * 8
    assert len(list(folder.iterdir())) == 1
    check(Make(source), 97, 0)


def write_mnist(folder: Path, compress: bool = True) -> None:
    folder.mkdir(parents=True)
    for name in FILES:
        shape = (20, 28, 28) if "images" in name else (20,)
        values = torch.randint(0, 256 if "images" in name else 10, shape, dtype=torch.uint8)
        head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        raw = head + bytes(values.flatten().tolist())
        (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(raw) if compress else raw)


def test_compressed_files_are_unpacked_once(folder, tmp_path, monkeypatch):
    """A second run of MNIST decodes nothing and has the same batches; `data.cache=false` decodes again."""
    write_mnist(tmp_path / "MNIST")
    node = {"name": "mnist", "root": str(tmp_path), "batch_size": 4}

    def batches(**settings):
        data = build_data({**node, **settings}, seed=0, device=CPU)
        return [*data.epoch(0), *data.split("val"), *data.split("test")]

    first = batches()
    assert len(list(folder.iterdir())) == 2
    decoded = []
    monkeypatch.setattr(_idx, "_parse", lambda *args, parse=_idx._parse: decoded.append(args[1].name) or parse(*args))
    for settings, files in (({}, 0), ({"cache": False}, 6)):
        for ours, theirs in zip(batches(**settings), first, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert len(decoded) == files


def test_damaged_files_are_not_kept(folder, tmp_path):
    """Files that contradict each other are refused in the second run as in the first."""
    write_mnist(tmp_path / "MNIST")
    path = tmp_path / "MNIST" / f"{FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-100])
    for _ in range(2):
        with pytest.raises(ConfigError, match="truncated or unreadable"):
            MNIST(tmp_path).train()


def test_plain_files_are_not_copied(folder, tmp_path):
    """Files that are not compressed are read where they lie."""
    write_mnist(tmp_path / "MNIST", compress=False)
    MNIST(tmp_path).train()
    assert not folder.exists()


def test_checksums_are_compared_when_the_copy_is_made(folder, tmp_path, monkeypatch):
    """CIFAR-10's MD5s are computed by the first run only, but again as soon as a file is touched."""
    md5s = {}
    (tmp_path / cifar10.FOLDER).mkdir()
    for name in cifar10.BATCHES:
        content = {b"data": np.full((4, 3072), len(md5s), dtype=np.uint8), b"labels": [0, 9, 3, 3]}
        (tmp_path / cifar10.FOLDER / name).write_bytes(pickle.dumps(content, protocol=4))
        md5s[name] = cifar10.md5_of(tmp_path / cifar10.FOLDER / name)
    monkeypatch.setattr(cifar10, "BATCHES", md5s)
    hashed = []
    monkeypatch.setattr(cifar10, "md5_of", lambda path, md5=cifar10.md5_of: hashed.append(path.name) or md5(path))
    samples = [CIFAR10(tmp_path).train()[0] for _ in range(2)]
    assert len(hashed) == 5
    assert torch.equal(samples[0].inputs, samples[1].inputs)
    assert torch.equal(samples[0].targets, samples[1].targets)
    path = tmp_path / cifar10.FOLDER / "data_batch_2"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="data_batch_2: does not have the published MD5"):
        CIFAR10(tmp_path).train()


@pytest.mark.parametrize("loader", ["auto", "streaming"])
def test_images_are_decoded_once(folder, tmp_path, monkeypatch, loader):
    """A second run of an image folder decodes no file before its first batch, and has the same statistics and batches; a
    changed image, another size and `data.cache=false` are decoded."""
    generator = torch.Generator().manual_seed(0)
    for i in range(40):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=generator).numpy()).save(path)
    node = {"name": "image_folder", "path": str(tmp_path / "photos"), "image_size": 4, "root": str(tmp_path)}
    decoded = []
    monkeypatch.setattr(
        _decoding,
        "decode_chunks",
        lambda paths, *rest, real=_decoding.decode_chunks: decoded.extend(paths) or real(paths, *rest),
    )

    def run(**settings):
        decoded.clear()
        data = build_data({**node, "loader": loader, "workers": 0, **settings}, seed=0, device=CPU)
        count = len(decoded)
        return count, data.spec, [*data.epoch(0), *data.split("val"), *data.split("test")]

    count, spec, batches = run()
    assert count == 40
    for settings, files in (({}, 0), ({"cache": False}, 40)):
        again, same_spec, same = run(**settings)
        assert (again, same_spec) == (files, spec)
        for ours, theirs in zip(same, batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert run(image_size=5)[0] == 40
    os.utime(tmp_path / "photos" / "a" / "0.png", ns=(0, 0))
    assert 0 < run()[0] < 40
    (tmp_path / "photos" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"0\.png: not a readable image"):
        run()
