"""Tables in text files."""

import csv
import json
import logging
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun.data import DATASETS
from dlrun.registry import ConfigError

real = pytest.mark.skipif("DLRUN_DATA_DIR" not in os.environ, reason="DLRUN_DATA_DIR is not set")
PEOPLE = """age,city,height,member
30,Paris,1.70,yes
,Rome,1.60,no
50,,1.80,yes
41,Paris,,no
"""
TWO_LABELS = [[0, 1], [1, 1], [1, 0]]


def table(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def source(path, target, **settings):
    node = {"name": "csv", "path": path, "target": target, **settings}
    return DATASETS.build(node, root=Path("/nonexistent"))


def load(tmp_path, text, target, **settings):
    found = source(table(tmp_path, text), target, **settings)
    samples, spec = found.train()
    return found, samples.inputs, samples.targets, spec


def same(x, rows):
    """Equality that takes None for NaN."""
    return np.array_equal(x.numpy(), np.array(rows, dtype="float32"), equal_nan=True)


@pytest.mark.curriculum("T20", "T21")
def test_mixed_columns(tmp_path):
    """Numbers stay numbers (NaN where missing), text becomes one-hot with a level for missing, and names say which."""
    found, x, y, spec = load(tmp_path, PEOPLE, "member")
    assert found.feature_names == ("age", "city=Paris", "city=Rome", "city=missing", "height")
    assert x.dtype == torch.float32
    nan = math.nan
    assert same(x, [[30, 1, 0, 0, 1.7], [nan, 0, 1, 0, 1.6], [50, 0, 0, 1, 1.8], [41, 1, 0, 0, nan]])
    assert (y.tolist(), spec.kind, spec.names) == ([1, 0, 1, 0], "class", ("no", "yes"))


def test_missing_indicator(tmp_path):
    """The indicator adds a feature to the numeric columns that have missing values, and only to these."""
    found, x, _, _ = load(tmp_path, PEOPLE, "city", missing_indicator=True)
    assert found.feature_names == ("age", "age missing", "height", "height missing", "member=no", "member=yes")
    assert x[:, 1].tolist() == [0, 1, 0]  # the row without a city is left out
    assert x[:, 3].tolist() == [0, 0, 1]


def test_missing_target(tmp_path, caplog):
    """Rows without a target are left out, and counted in a warning."""
    with caplog.at_level(logging.WARNING):
        _, x, y, spec = load(tmp_path, PEOPLE, "age", drop=["city"])
    assert y.tolist() == [[30], [50], [41]]
    assert same(x[:, 0], [1.7, 1.8, math.nan])
    assert "1 of 4 rows have no target" in caplog.text
    assert (spec.kind, spec.names, spec.mean) == ("real", ("age",), ())


@pytest.mark.parametrize(
    ("values", "kind", "targets"),
    [
        (["a", "b", "a"], "class", [0, 1, 0]),
        (["0", "1", "1"], "binary", [[0], [1], [1]]),
        (["-1", "1", "1"], "sign", [[-1], [1], [1]]),
        (["1", "2", "3"], "class", [0, 1, 2]),
        (["2", "0", "1"], "class", [2, 0, 1]),
        (["2", "5", "9"], "real", [[2], [5], [9]]),
        (["0.5", "1", "2"], "real", [[0.5], [1], [2]]),
    ],
)
def test_guessed_kind(tmp_path, values, kind, targets):
    """The kind follows from the target's values as documented."""
    text = "x,y\n" + "".join(f"{i}.5,{v}\n" for i, v in enumerate(values))
    _, _, y, spec = load(tmp_path, text, "y")
    assert (spec.kind, y.tolist()) == (kind, targets)


@pytest.mark.parametrize(
    ("kind", "target", "expected", "names"),
    [
        ("binary", "w", [[0], [1], [0]], ("no", "yes")),
        ("sign", "w", [[-1], [1], [-1]], ("no", "yes")),
        ("class", "a", [0, 1, 1], ("0", "1")),
        ("real", "a", [[0], [1], [1]], ("a",)),
        pytest.param("non_negative", "a", [[0], [1], [1]], ("a",), marks=pytest.mark.curriculum("L06", "T07")),
        pytest.param("multi_hot", ["a", "b"], TWO_LABELS, ("a", "b"), marks=pytest.mark.curriculum("T06")),
        pytest.param("auto", ["a", "b"], TWO_LABELS, ("a", "b"), marks=pytest.mark.curriculum("T06")),
        ("real", ["b", "a"], [[1, 0], [1, 1], [0, 1]], ("b", "a")),
    ],
)
def test_chosen_kind(tmp_path, kind, target, expected, names):
    """Every kind can be asked for, with one column or several in the order given."""
    _, _, y, spec = load(tmp_path, "x,a,b,w\n1.5,0,1,no\n2.5,1,1,yes\n3.5,1,0,no\n", target, kind=kind)
    assert (y.tolist(), spec.names) == (expected, names)
    assert spec.kind == (kind if kind != "auto" else "multi_hot")
    assert y.dtype == (torch.int64 if kind == "class" else torch.float32)


def test_numeric_classes_in_order(tmp_path):
    """Classes written as numbers are ordered by value, not by their text."""
    text = "x,y\n" + "".join(f"{i},{v}\n" for i, v in enumerate([10, 9, 2, 10]))
    _, _, y, spec = load(tmp_path, text, "y", kind="class")
    assert (spec.names, y.tolist()) == (("2", "9", "10"), [2, 1, 0, 2])


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " ", " , ", "   "])
def test_delimiters(tmp_path, delimiter):
    """The usual delimiters are found, with or without white space around the cells."""
    rows = [["x", "word", "y"], ["1", "a", "0.5"], ["2", "b", "1.5"]]
    found, x, y, _ = load(tmp_path, "\n".join(delimiter.join(row) for row in rows) + "\n\n", "y")
    assert found.feature_names == ("x", "word=a", "word=b")
    assert x.tolist() == [[1, 1, 0], [2, 0, 1]]
    assert y.tolist() == [[0.5], [1.5]]


def test_quotes_and_marks(tmp_path):
    """Quoted cells may hold the delimiter and line ends; a byte order mark and Windows line ends do no harm."""
    text = '\ufeffname,y\r\n"Smith, J",0.5\r\n"two\r\nlines",1.5\r\n'
    (tmp_path / "t.csv").write_bytes(text.encode())
    found = source(str(tmp_path / "t.csv"), "y", delimiter=",")
    assert found.train()[0].targets.tolist() == [[0.5], [1.5]]
    assert found.feature_names[0] == "name=Smith, J"


def test_without_header(tmp_path):
    """Columns of a file without header are numbers, also from the end; a header can be declared or denied."""
    text = "1,a,5\n2,b,6\n3,a,7\n"
    found, x, y, spec = load(tmp_path, text, -1, kind="real")
    assert found.feature_names == ("0", "1=a", "1=b")
    assert (x[:, 0].tolist(), y.tolist(), spec.names) == ([1, 2, 3], [[5], [6], [7]], ("2",))
    assert load(tmp_path, text, 0, kind="real")[2].tolist() == [[1], [2], [3]]
    assert load(tmp_path, text, "5", kind="real", header=True)[2].tolist() == [[6], [7]]
    _, x, _, _ = load(tmp_path, "p,q\nr,s\np,s\n", 0, header=False)
    assert len(x) == 3


def test_columns_by_choice(tmp_path):
    """`categorical` makes categories of numbers, and `drop` leaves columns out."""
    text = "id,zip,x,y\n1,100,0.5,1.5\n2,200,1.5,2.5\n3,100,2.5,0.5\n"
    found, x, _, _ = load(tmp_path, text, "y", categorical=["zip"], drop=["id"])
    assert found.feature_names == ("zip=100", "zip=200", "x")
    assert x[:, :2].tolist() == [[1, 0], [0, 1], [1, 0]]


def test_missing_markers(tmp_path):
    """The cells that mean missing can be changed."""
    _, x, _, _ = load(tmp_path, "x,y\n-999,0.5\n3,1.5\n", "y", missing=["-999"])
    assert same(x, [[math.nan], [3]])


def test_new_file_by_name(tmp_path, caplog):
    """Columns of a new file go by name in any order, with or without target; an unknown level gives zeros and a warning."""
    found, x, _, _ = load(tmp_path, PEOPLE, "member")
    text = "extra,height,city,age\nz,1.7,Paris,30\nz,?,Oslo,\n"
    with caplog.at_level(logging.WARNING):
        new = found.read_inputs(Path(table(tmp_path, text, "new.csv")))
    assert torch.equal(new[0], x[0])
    assert same(new[1], [math.nan, 0, 0, 0, math.nan])
    assert "Oslo" in caplog.text


def test_new_file_without_header(tmp_path):
    """A new file without header may lack the targets, but nothing else."""
    found, x, _, _ = load(tmp_path, "1,a,5\n2,b,6\n3,a,7\n", 0, kind="real")
    for text in ("1,a,5\n2,b,6\n3,a,7\n", "a,5\nb,6\na,7\n"):
        new = Path(table(tmp_path, text, "new.csv"))
        assert torch.equal(found.read_inputs(new), x)
    with pytest.raises(ConfigError, match=r"has 4 columns; expected 2 or 3"):
        found.read_inputs(Path(table(tmp_path, "1,2,3,4\n", "new.csv")))


def test_state(tmp_path):
    """The encoding survives as JSON and serves new files after the training file is gone."""
    found, x, _, _ = load(tmp_path, PEOPLE, "member")
    state = json.loads(json.dumps(found.state_dict()))
    again = source("gone.csv", "member")
    again.load_state_dict(state)
    new = Path(table(tmp_path, PEOPLE, "new.csv"))
    assert np.array_equal(again.read_inputs(new).numpy(), x.numpy(), equal_nan=True)
    assert again.feature_names == found.feature_names


@pytest.mark.parametrize(
    ("text", "target", "settings", "message"),
    [
        (PEOPLE, "membr", {}, r"data.target: no column 'membr'; columns: age.*did you mean 'member'\?"),
        (PEOPLE, 4, {}, "data.target: no column '4'"),
        (PEOPLE, "age", {"drop": ["citi"]}, r"data.drop: no column 'citi'.*did you mean 'city'\?"),
        (PEOPLE, "age", {"categorical": ["x"]}, "data.categorical: no column 'x'"),
        (PEOPLE, "city", {"kind": "real"}, "column 'city', line 2: 'Paris' is not a finite number"),
        (PEOPLE, "city", {"kind": "sign", "missing": ["x"]}, "'city' has 3 levels .*; sign needs 2"),
        (PEOPLE, ["city", "age"], {"kind": "class"}, "data.kind: class takes one target column, not 2"),
        (PEOPLE, "height", {"kind": "multi_hot"}, "line 2: '1.70'; a multi_hot target must be 0 or 1"),
        (PEOPLE, "age", {"categorical": []}, "column 'city', line 2: 'Paris' is not a finite number"),
        (PEOPLE, "age", {"drop": ["city", "height", "member"]}, "no columns are left"),
        (PEOPLE, "age", {"delimiter": "::"}, "not a table delimited by '::'"),
        pytest.param(
            "x,y\n1,-1\n2,5\n",
            "y",
            {"kind": "non_negative"},
            "line 2: '-1'; a non_negative target must be >= 0",
            marks=pytest.mark.curriculum("L06"),
        ),
        ("x,y\n1,2\n2\n", "y", {"delimiter": ","}, "line 3 has 1 cells and line 1 has 2"),
        ("x,y\n1,\n2,\n", "y", {}, "no row has a value of y"),
        ("x,y\n,1.5\n,2.5\n", "y", {}, r"column 'x' has no values; data.drop=\[x\]"),
        ("x,x\n1,2\n", "x", {"header": True}, "column 'x' occurs 2 times"),
        ("x,y\n1,a\n2,a\n", "y", {}, "'y' has 1 level "),
        ("", "y", {}, "holds no rows"),
        ("x,y\n" + "1.5,2.5\n" * 30 + "oops,2.5\n", "y", {}, "holds numbers but also 'oops'"),
        ("x,y\n" + "1.5,2.5\n" * 30 + "inf,2.5\n", "y", {}, "holds numbers but also 'inf'"),
    ],
)
def test_errors(tmp_path, text, target, settings, message):
    """What is wrong with a table is said in one line with the column, the line and what is allowed."""
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text, target, **settings)
    assert "\n" not in str(caught.value)


def test_file_errors(tmp_path):
    """A missing file, a folder, bytes that are no text, and a missing column in a new file are named."""
    with pytest.raises(ConfigError, match=r"data.path: no such file or folder: .*gone.csv"):
        source("gone.csv", "y").train()
    with pytest.raises(ConfigError, match="is a folder; expected a text file"):
        source(str(tmp_path), "y").train()
    (tmp_path / "bytes.csv").write_bytes(b"x,y\n\xff\xfe,1\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        source(str(tmp_path / "bytes.csv"), "y").train()
    found, *_ = load(tmp_path, PEOPLE, "member")
    with pytest.raises(ConfigError, match=r"new.csv: no column 'height'; it has: .*did you mean 'heigth'\?"):
        found.read_inputs(Path(table(tmp_path, "age,city,heigth\n1,Rome,1\n", "new.csv")))
    with pytest.raises(ConfigError, match="column 'age', line 2: 'old'"):
        found.read_inputs(Path(table(tmp_path, "age,city,height\nold,Rome,1\n", "new.csv")))


def test_required_settings():
    """Path and target must be given."""
    with pytest.raises(ConfigError, match=r"data.target: no value given"):
        DATASETS.check({"name": "csv", "path": "a.csv", "target": "???"})


@real
@pytest.mark.curriculum("T21")
@pytest.mark.parametrize(
    ("file", "target", "rows", "features", "kind", "size"),
    [
        ("iris.csv", "species", 150, 4, "class", 3),
        ("wine.data", 0, 178, 13, "class", 3),
        ("penguins.csv", "species", 344, 10, "class", 3),  # 3 islands, 4 numbers, 2 sexes and missing
        ("mpg.csv", "mpg", 398, 9, "real", 1),  # without the name of the car: 6 numbers, 3 origins
    ],
)
def test_real_tables(file, target, rows, features, kind, size):
    """Real tables, found below the data root, load with their known sizes, and each column equals the file's."""
    from dlrun.settings import data_root

    drop = ["name"] if file == "mpg.csv" else []
    node = {"name": "csv", "path": f"tabular/{file}", "target": target, "drop": drop}
    found = DATASETS.build(node, root=data_root())
    samples, spec = found.train()
    assert tuple(samples.inputs.shape) == (rows, features)
    assert (spec.kind, spec.size) == (kind, size)
    with (data_root() / "tabular" / file).open(newline="") as handle:
        lines = list(csv.reader(handle))
    if file != "wine.data":
        header, lines = lines[0], lines[1:]
        for i, name in enumerate(found.feature_names):
            if name in header:
                expected = [float(line[header.index(name)] or "nan") for line in lines]
                assert same(samples.inputs[:, i], expected)
            else:
                column, _, level = name.partition("=")
                hits = [(line[header.index(column)] or "missing") == level for line in lines]
                assert samples.inputs[:, i].tolist() == hits


def test_a_cell_beyond_the_limit(tmp_path):
    """A cell longer than the reader's limit is one line that names the file."""
    with pytest.raises(ConfigError, match=r"t\.csv: not a table delimited by ','"):
        load(tmp_path, "a,y\n" + "x" * 200_000 + ",p\n1,q\n", "y")
