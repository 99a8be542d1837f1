"""Damaged, misshapen and misleading data files: each with its one line, known before anything is trained."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dlrun.data._idx import FILES

QUICK = ("model=mlp", "model.hidden=[4]", "model.dropout=0", "device=cpu", "trainer.epochs=1", "callbacks=none")
Content = bytes | str | Callable[[Path], Any] | None


class Row(NamedTuple):
    """Files (path to content; a function makes the file itself; None is a folder), words, and what is said about them."""

    name: str
    files: dict[str, Content]
    words: tuple[str, ...]
    expected: list[str]


def write(folder: Path, files: dict[str, Content]) -> None:
    """Makes the files of a row."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def image(width: int = 8, height: int = 8, mode: str = "RGB") -> Callable[[Path], None]:
    """A sound image of the size and Pillow's mode."""

    def make(path: Path) -> None:
        from PIL import Image

        Image.new(mode, (width, height), 7).save(path)

    return make


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG file whose header may promise more than its pixels keep."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def folder(**extra: Content) -> dict[str, Content]:
    """A folder `photos` of two classes with four sound images each, and further files (`__` stands for a slash)."""
    sound: dict[str, Content] = {f"photos/{name}/{i}.png": image() for name in "ab" for i in range(4)}
    return {**sound, **{f"photos/{name.replace('__', '/')}.png": content for name, content in extra.items()}}


def idx(*sizes: int, value: int = 1, magic: int | None = None) -> bytes:
    """An IDX file of bytes of one value."""
    count = 1
    for size in sizes:
        count *= size
    head = struct.pack(">I", 0x0800 + len(sizes) if magic is None else magic)
    return head + b"".join(struct.pack(">I", size) for size in sizes) + bytes([value]) * count


def digits(**changed: bytes) -> dict[str, Content]:
    """The four files of a small MNIST with some of them (train_x, train_y, test_x, test_y) exchanged."""
    sound = {"train_x": idx(20, 28, 28), "train_y": idx(20), "test_x": idx(6, 28, 28), "test_y": idx(6)}
    contents = {**sound, **changed}.values()
    return {f"MNIST/raw/{name}": content for name, content in zip(FILES, contents, strict=True)}


def uci(**changed: str) -> dict[str, Content]:
    """A small folder of the form of the UCI splits with some of its files exchanged."""
    sound = {
        "data": "".join(f"{i} {i % 3} {2 * i}\n" for i in range(12)),
        "index_features": "0\n1\n",
        "index_target": "2\n",
        "index_train_0": "\n".join(map(str, range(10))),
        "index_test_0": "10\n11\n",
    }
    return {f"uci/small/{name}.txt": text for name, text in {**sound, **changed}.items()}


def table(count: int = 20, **changed: str) -> str:
    """`a,b,y` with `count` rows of numbers and a class; `row3="..."` exchanges the third."""
    rows = [f"{i},{i * i / 7:.3f},{'uv'[i % 2]}" for i in range(count)]
    for name, text in changed.items():
        rows[int(name.removeprefix("row"))] = text
    return "a,b,y\n" + "\n".join(rows) + "\n"


CSV = ("data=csv", "data.path=t.csv", "data.target=y")
IMAGES = ("data=image_folder", "data.path=photos", "data.image_size=8")
MNIST = ("data=mnist", "data.root=.")
UCI = ("data=uci", "data.root=.", "data.dataset=small")

ROWS = [
    # tables
    Row("csv absent", {}, CSV, ["data.path: no such file or folder", "t.csv"]),
    Row("csv empty", {"t.csv": ""}, CSV, ["t.csv: holds no rows"]),
    Row("csv of blank lines", {"t.csv": "\n \n,,\n"}, CSV, ["t.csv: holds no rows"]),
    Row("csv of a header alone", {"t.csv": "a,b,y\n"}, CSV, ["t.csv: holds a header but no rows"]),
    Row("csv is a folder", {"t.csv": None}, CSV, ["t.csv: is a folder; expected a text file"]),
    Row("csv is a pipe", {"t.csv": os.mkfifo}, CSV, ["t.csv: is a pipe or a device; expected a text file"]),
    Row("csv ragged", {"t.csv": table(row5="1,2")}, CSV, ["t.csv: line 7 has 2 cells and line 1 has 3"]),
    Row("csv too long a row", {"t.csv": table(row5="1,2,u,9")}, CSV, ["t.csv: line 7 has 4 cells and line 1 has 3"]),
    Row("csv equal names", {"t.csv": "a,a,y\n1,2,u\n3,4,v\n"}, CSV, ["t.csv: column 'a' occurs 2 times in the header"]),
    Row("csv no target", {"t.csv": table()}, (*CSV, "data.target=z"), ["data.target: no column 'z'; columns: a, b, y"]),
    Row("csv near target", {"t.csv": table()}, (*CSV, "data.target=yy"), ["no column 'yy'", "did you mean 'y'?"]),
    Row("csv far target", {"t.csv": table()}, (*CSV, "data.target=3"), ["data.target: no column '3'"]),
    Row("csv equal targets", {"t.csv": table()}, (*CSV, "data.target=[y,y]"), ["data.target: got ['y', 'y']"]),
    Row("csv nothing left", {"t.csv": table()}, (*CSV, "data.drop=[a,b]"), ["t.csv: no columns are left"]),
    Row("csv drop of no column", {"t.csv": table()}, (*CSV, "data.drop=[c]"), ["data.drop: no column 'c'"]),
    Row("csv text in numbers", {"t.csv": table(row5="oops,2,u")}, CSV, ["column 'a' holds numbers but also 'oops'"]),
    Row("csv infinite", {"t.csv": table(row5="inf,2,u")}, CSV, ["column 'a' holds numbers but also 'inf'"]),
    Row("csv beyond float32", {"t.csv": table(row5="1e39,2,u")}, CSV, ["column 'a' holds numbers but also '1e39'"]),
    Row(
        "csv column without values", {"t.csv": "a,b,y\n1,,u\n2,,v\n"}, CSV, ["column 'b' has no values; data.drop=[b]"]
    ),
    Row("csv target without values", {"t.csv": "a,y\n1,\n2,NA\n"}, CSV, ["t.csv: no row has a value of y"]),
    Row("csv text in the target", {"t.csv": "a,y\n" + "1,2.5\n" * 12 + "1,abc\n"}, CSV, ["column 'y', line 14: 'abc'"]),
    Row(
        "csv infinite target", {"t.csv": "a,y\n1,2.5\n2,inf\n"}, (*CSV, "data.kind=real"), ["column 'y', line 3: 'inf'"]
    ),
    Row("csv one class", {"t.csv": "a,y\n1,u\n2,u\n"}, CSV, ["target 'y' has 1 level (u); class needs at least 2"]),
    Row("csv three of two", {"t.csv": "a,y\n1,u\n2,v\n3,w\n"}, (*CSV, "data.kind=binary"), ["has 3 levels (u, v, w)"]),
    Row("csv negative", {"t.csv": "a,y\n1,2\n2,-1\n"}, (*CSV, "data.kind=non_negative"), ["line 3: '-1'", ">= 0"]),
    Row("csv not multi-hot", {"t.csv": "a,y\n1,1\n2,2\n"}, (*CSV, "data.kind=multi_hot"), ["line 3: '2'", "0 or 1"]),
    Row("csv one row", {"t.csv": "a,y\n1,2.5\n"}, CSV, ["data.test_fraction: 0.2 of 1 samples is 0"]),
    Row("csv three rows", {"t.csv": "a,y\n1,2.5\n2,3\n4,5\n"}, CSV, ["data.val_fraction: 0.1 of 2 samples is 0"]),
    Row("csv Latin-1", {"t.csv": table().replace("u", "é").encode("latin-1")}, CSV, ["t.csv: is not UTF-8 text"]),
    Row("csv UTF-16", {"t.csv": table().encode("utf-16")}, CSV, ["t.csv: is not UTF-8 text (byte 0)"]),
    Row("csv NUL", {"t.csv": table(row5="1,\0,u")}, CSV, ["t.csv: line 7: holds a NUL byte"]),
    Row("csv is an image", {"t.csv": png(5, 5)}, CSV, ["t.csv: is not UTF-8 text"]),
    Row("csv open quote", {"t.csv": table(row5='"1,2,u')}, CSV, ["t.csv: not a table delimited by ','"]),
    Row("csv huge cell", {"t.csv": table(row5=f"1,{'x' * 200_000},u")}, CSV, ["t.csv: not a table", "field limit"]),
    Row("csv two delimiters", {"t.csv": table()}, (*CSV, "data.delimiter=';;'"), ["not a table delimited by ';;'"]),
    Row("csv is an executable link", {"t.csv": lambda path: path.symlink_to("gone")}, CSV, ["data.path: no such file"]),
    # folders of images
    Row("photos absent", {}, IMAGES, ["data.path: no such file or folder", "photos"]),
    Row("photos is a file", {"photos": "x"}, IMAGES, ["data.path: photos is not a folder"]),
    Row("photos empty", {"photos": None}, IMAGES, ["data.path: photos has 0 class folders; at least 2"]),
    Row("photos of one class", {"photos/a/1.png": image()}, IMAGES, ["photos has 1 class folders; at least 2"]),
    Row("photos of an empty class", {**folder(), "photos/c": None}, IMAGES, ["photos/c: holds no images", ".png"]),
    Row("photo is text", folder(a__x=b"hello"), IMAGES, ["photos/a/x.png: not a readable image"]),
    Row("photo of no bytes", folder(b__x=b""), IMAGES, ["photos/b/x.png: not a readable image"]),
    Row("photo truncated", folder(a__x=png(64, 64, b"\0" * 99)), IMAGES, ["photos/a/x.png: not a readable image"]),
    Row("photo without width", folder(a__x=png(0, 5)), IMAGES, ["photos/a/x.png: not a readable image"]),
    Row("photo is a bomb", folder(a__x=png(60_000, 60_000)), IMAGES, ["a/x.png: not a readable image", "3600000000"]),
    Row("photo is a folder", {**folder(), "photos/a/x.png": None}, IMAGES, ["photos/a/x.png: not a readable image"]),
    Row("photo of 16 bits", folder(a__x=image(mode="I;16")), IMAGES, ["a/x.png: has more than 8 bits per channel"]),
    Row(
        "photos of another test class",
        {
            **{f"photos/train/{name}/{i}.png": image() for name in "ab" for i in range(4)},
            "photos/test/bb/1.png": image(),
        },
        IMAGES,
        ["photos/test/bb: no such class in training", "did you mean 'b'?"],
    ),
    Row(
        "photo damaged in the test set",
        {
            **{f"photos/train/{name}/{i}.png": image() for name in "ab" for i in range(4)},
            **{f"photos/test/{name}/1.png": image() for name in "ab"},
            "photos/test/b/2.png": b"hello",
        },
        IMAGES,
        ["photos/test/b/2.png: not a readable image"],
    ),
    Row(
        "photos of unspeakable classes",
        {**folder(), os.fsdecode(b"photos/\xff/1.png"): image()},
        IMAGES,
        ["photos has a class folder '\\udcff'", "UTF-8"],
    ),
    # IDX
    Row("idx truncated", digits(train_x=idx(20, 28, 28)[:-9]), MNIST, [FILES[0], "bytes of data, but its header says"]),
    Row("idx cut in its header", digits(train_x=b"\0\0\x08"), MNIST, [FILES[0], "not an IDX file"]),
    Row("idx empty", digits(train_y=b""), MNIST, [FILES[1], "not an IDX file"]),
    Row("idx wrong magic", digits(train_x=idx(20, 28, 28, magic=0x0D03)), MNIST, ["not an IDX file", "0x00000d03"]),
    Row("idx exchanged", digits(train_x=idx(20), train_y=idx(20, 28, 28)), MNIST, [FILES[0], "not an IDX file"]),
    Row("idx label 10", digits(train_y=idx(20, value=10)), MNIST, [FILES[1], "label 10; allowed: 0 to 9"]),
    Row("idx counts differ", digits(train_y=idx(19)), MNIST, [FILES[1], "19 labels for 20 images"]),
    Row("idx of 8x8", digits(train_x=idx(20, 8, 8)), MNIST, [FILES[0], "images are 8x8; expected 28x28"]),
    Row("idx of no images", digits(train_x=idx(0, 28, 28)), MNIST, [FILES[0], "header says [0, 28, 28]"]),
    Row(
        "idx header of 2^90 bytes",
        digits(train_x=idx()[:0] + struct.pack(">4I", 0x803, *[2**30] * 3)),
        MNIST,
        [FILES[0]],
    ),
    Row(
        "gz truncated",
        {**digits(), f"MNIST/raw/{FILES[0]}.gz": gzip.compress(idx(20, 28, 28, value=3))[:30]},
        MNIST,
        [f"{FILES[0]}.gz: truncated or unreadable", "remove it to download it again"],
    ),
    Row(
        "gz is a bomb",
        {**digits(), f"MNIST/raw/{FILES[0]}.gz": gzip.compress(idx(20, 28, 28) + bytes(50_000_000))},
        MNIST,
        [f"{FILES[0]}.gz: has more than 15680 bytes of data, but its header says [20, 28, 28]"],
    ),
    Row("idx is an image", digits(train_x=png(28, 28)), MNIST, [FILES[0], "not an IDX file", "0x89504e47"]),
    Row("idx test truncated", digits(test_x=idx(6, 28, 28)[:-1]), MNIST, [FILES[2], "its header says"]),
    Row("idx test label 11", digits(test_y=idx(6, value=11)), MNIST, [FILES[3], "label 11"]),
    Row("idx test counts differ", digits(test_y=idx(7)), MNIST, [FILES[3], "7 labels for 6 images"]),
    Row("idx test of 8x8", digits(test_x=idx(6, 8, 8)), MNIST, [FILES[2], "8x8; expected 28x28"]),
    # CIFAR-10
    Row(
        "cifar changed", {"cifar-10-batches-py/data_batch_1": b"x"}, ("data=cifar10", "data.root=."), ["published MD5"]
    ),
    Row(
        "cifar incomplete", {"cifar-10-batches-py": None}, ("data=cifar10", "data.root=."), ["data_batch_1: is missing"]
    ),
    Row("cifar archive changed", {"cifar-10-python.tar.gz": b"x"}, ("data=cifar10", "data.root=."), ["published MD5"]),
    # tables with prescribed splits
    Row(
        "uci absent",
        uci(),
        (*UCI, "data.dataset=smal"),
        ["data.dataset", "found there: small", "did you mean 'small'?"],
    ),
    Row("uci split", uci(), (*UCI, "data.split=1"), ["data.split: got 1; small has splits 0 to 0"]),
    Row("uci text", uci(data="1 2 x\n"), UCI, ["data.txt: not a table of numbers"]),
    Row("uci ragged", uci(data="1 2 3\n4 5\n"), UCI, ["data.txt: not a table of numbers"]),
    Row("uci NaN", uci(data="1 2 nan\n" * 12), UCI, ["data.txt: holds values that are not finite"]),
    Row("uci beyond float32", uci(data="1 2 1e39\n" * 12), UCI, ["data.txt: holds values that are not finite"]),
    Row("uci empty", uci(data=""), UCI, ["data.txt: holds no numbers"]),
    Row("uci no rows to test", uci(index_test_0=""), UCI, ["index_test_0.txt: holds no numbers"]),
    Row("uci row 12 of 12", uci(index_test_0="10\n12\n"), UCI, ["index_test_0.txt", "whole numbers from 0 to 11"]),
    Row("uci row twice", uci(index_test_0="9\n10\n11\n"), UCI, ["data.split", "not each row of data.txt once"]),
    Row("uci column 3 of 3", uci(index_features="0\n3\n"), UCI, ["index_features.txt", "whole numbers from 0 to 2"]),
    Row("uci target among features", uci(index_features="0\n2\n"), UCI, ["column 2 is both"]),
]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_bad_data_get_one_line(refused, tmp_path: Path, row: Row) -> None:
    """Damaged or misshapen data are refused before training with one line that names the file and what is wrong with it."""
    write(tmp_path, row.files)
    refused((*QUICK, *row.words), row.expected)


NUMBERS = "a,b,y\n" + "".join(f"{i % 5},{i},{i * 0.5}\n" for i in range(40))
ACCEPTED = [
    Row(
        "constant column",
        {"t.csv": NUMBERS.replace(",", ",7,").replace("a,7,b,7,y", "a,c,b,d,y")},
        CSV,
        ["'c' is '7' in", "'d' is '7' in"],
    ),
    Row(
        "constant target", {"t.csv": "a,y\n" + "".join(f"{i},2.5\n" for i in range(40))}, CSV, ["target 'y' is 2.5 in"]
    ),
    Row(
        "rows without target", {"t.csv": NUMBERS + "1,2,\n3,4,NA\n"}, CSV, ["2 of 42 rows have no target and are left"]
    ),
    Row("missing numbers", {"t.csv": NUMBERS.replace("3,8,", "3,NaN,").replace("4,9,", ",9,")}, CSV, []),
    Row(
        "a class per row",
        {"t.csv": "a,y\n" + "".join(f"{i},n{i}\n" for i in range(30))},
        CSV,
        ["30 classes in 30 rows"],
    ),
    Row(
        "a level per row", {"t.csv": "a,y\n" + "".join(f"n{i},{i}.5\n" for i in range(30))}, CSV, ["'a' has 30 levels"]
    ),
    Row("a far too long photo", folder(a__x=image(20_000, 1)), IMAGES, []),
    Row("one image of a class", {**folder(), "photos/c/1.png": image()}, IMAGES, []),
    Row("all labels equal", digits(), MNIST, []),
    Row("byte order mark", {"t.csv": "\ufeff" + NUMBERS}, CSV, []),
]


@pytest.mark.parametrize("row", ACCEPTED, ids=[row.name for row in ACCEPTED])
def test_odd_data_are_accepted(cli, tmp_path: Path, row: Row) -> None:
    """What is odd but can be meant is trained on, with a warning where it may be a mistake; nothing turns NaN."""
    write(tmp_path, row.files)
    done = cli(*QUICK, *row.words, "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("dlrun: warning: ")]
    assert len(warnings) == len(row.expected), done.stderr
    assert [text for text in row.expected if text not in "\n".join(warnings)] == [], done.stderr
    assert "null" not in (tmp_path / "run" / "results.json").read_text().split('"timing"')[0]
