"""New files for `action=predict` that do not fit what the model was trained on."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

TABLE = "a,b,y\n" + "".join(f"{i % 7},{'uvw'[i % 3]},{'mn'[i % 2]}\n" for i in range(60))
CSV = ("data=csv", "data.path=t.csv", "data.target=y")
BARE = (*CSV[:2], "data.target=2", "data.header=false")
RUNS = {
    "csv": (CSV, {"t.csv": TABLE}),
    "bare": (BARE, {"t.csv": TABLE.removeprefix("a,b,y\n")}),
    "xor": (("data=xor", "data.samples=60"), {}),
    "digits": (("data=digits", "data.limit_train=64"), {}),
}


class Row(NamedTuple):
    """A run, the new file, and what is said about it."""

    run: str
    text: str | bytes
    expected: list[str]


ROWS = [
    Row("csv", "", ["new: holds no rows"]),
    Row("csv", "a,b\n", ["new: holds a header but no rows"]),
    Row("csv", "a,y\n1,m\n", ["new: no column 'b'; it has: a, y"]),
    Row("csv", "a,bb\n1,u\n", ["new: no column 'b'", "did you mean 'bb'?"]),
    Row("csv", "1,u\n2,v\n", ["new: no column 'a'; it has: 1, u"]),
    Row("csv", "a,b\n1,u\noops,v\n", ["new: column 'a', line 3: 'oops' is not a finite number"]),
    Row("csv", "a,b\n1,u\ninf,v\n", ["new: column 'a', line 3: 'inf' is not a finite number"]),
    Row("csv", "a,a,b\n1,2,u\n", ["new: column 'a' occurs 2 times"]),
    Row("csv", "a,b\n1\n", ["new: line 2 has 1 cells and line 1 has 2"]),
    Row("csv", b"a,b\n1,\xff\n", ["new: is not UTF-8 text (byte 6)"]),
    Row("csv", b"a,b\n1,\0\n", ["new: line 2: holds a NUL byte"]),
    Row("bare", "1\n2\n", ["new: has 1 columns; expected 2 or 3"]),
    Row("bare", "a,b\n1,u\n", ["new: column '0', line 1: 'a' is not a finite number"]),
    Row("xor", "1,2,3\n", ["new: line 1: has 3 numbers; expected 2"]),
    Row("xor", "1,2\n1,x\n", ["new: line 2: 'x' is not a finite number"]),
    Row("xor", "1,2\n1,nan\n", ["new: line 2: 'nan' is not a finite number"]),
    Row("xor", "x,y\n", ["new: holds no rows of numbers"]),
    Row("digits", "1 2 3\n", ["new: line 1: has 3 numbers; expected 64"]),
    Row("digits", " ".join(["17"] * 64), ["new: pixel counts go from 17 to 17; allowed: 0 to 16"]),
]


@pytest.fixture
def run_of(trained):
    """The folder of one of `RUNS`."""
    return lambda name: trained(*RUNS[name][0], files=RUNS[name][1])


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.run} {row.text[:20]!r}" for row in ROWS])
def test_unfit_files_get_one_line(refused, run_of, tmp_path: Path, row: Row) -> None:
    """A new file that the model cannot read is refused with one line that names it, and no predictions are begun."""
    (tmp_path / "new").write_bytes(row.text if isinstance(row.text, bytes) else row.text.encode())
    refused(["action=predict", f"run={run_of(row.run)}", "action.input=new", "action.output=out.csv"], row.expected)


def predictions(cli, run: Path, file: Path) -> list[list[str]]:
    done = cli("action=predict", f"run={run}", f"action.input={file}", f"action.output={file}.out")
    assert done.rc == 0, done.stderr
    with open(f"{file}.out", newline="") as lines:
        return list(csv.reader(lines))


def test_columns_go_by_name(cli, run_of, tmp_path: Path) -> None:
    """Another order of the columns, and further ones, change no prediction."""
    (tmp_path / "same").write_text("a,b\n1,u\n5,w\n6,v\n")
    (tmp_path / "turned").write_text("extra,b,y,a\n9,u,m,1\n9,w,n,5\n9,v,m,6\n")
    same, turned = (predictions(cli, run_of("csv"), tmp_path / name) for name in ("same", "turned"))
    assert same == turned
    assert len({row[2] for row in same}) == 4, "the inputs differ, and so should the probabilities"


def test_an_unknown_category_is_warned_of(cli, run_of, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A level never seen in training gives a warning that names it, and a prediction."""
    (tmp_path / "new").write_text("a,b\n1,zebra\n")
    done = cli("action=predict", f"run={run_of('csv')}", "action.input=new", "action.output=out.csv")
    assert done.rc == 0, done.stderr
    assert "column 'b' was never zebra in training" in caplog.text + done.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["action.input=gone"], ["action.input: no such file or folder: gone"]),
        (["action.input=''"], [": is a folder; expected a text file"]),
        (["action.input=."], [": is a folder; expected a text file"]),
        (["action.input=pipe"], ["pipe: is a pipe or a device"]),
        (["action.output=gone/out.csv"], ["action.output: the folder gone does not exist"]),
        (["action.output=."], ["action.output"]),
        (["action.output=file/out.csv"], ["action.output: the folder file does not exist"]),
        (["action.split=tset"], ["action.split: got 'tset'", "did you mean 'test'?"]),
    ],
    ids=lambda value: value[0],
)
def test_wrong_paths(refused, run_of, tmp_path: Path, words: list[str], expected: list[str]) -> None:
    """A wrong input or output is named by its setting or its path."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    refused(["action=predict", f"run={run_of('csv')}", *words], expected)


def test_images_of_another_size(refused, trained, tmp_path: Path) -> None:
    """A new IDX file of other images than those of the training set."""
    from dlrun.data.mnist import MNIST
    from dlrun.registry import ConfigError

    size = (2).to_bytes(4, "big") + (8).to_bytes(4, "big") * 2
    (tmp_path / "new").write_bytes(b"\0\0\x08\x03" + size + torch.zeros(128, dtype=torch.uint8).numpy().tobytes())
    with pytest.raises(ConfigError, match="new: images are 8x8; expected 28x28"):
        MNIST(tmp_path).read_inputs(tmp_path / "new")
