"""Regression sets with prescribed splits."""

import os

import numpy as np
import pytest
import torch

from dlrun.data.uci import UCI
from dlrun.registry import ConfigError

real = pytest.mark.skipif("DLRUN_DATA_DIR" not in os.environ, reason="DLRUN_DATA_DIR is not set")
TABLE = np.arange(40.0).reshape(10, 4)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "uci" / "mine"
    folder.mkdir(parents=True)
    np.savetxt(folder / "data.txt", TABLE)
    np.savetxt(folder / "index_features.txt", [0, 1, 3], fmt="%d")
    np.savetxt(folder / "index_target.txt", [2], fmt="%d")
    np.savetxt(folder / "index_train_0.txt", [9, 8, 7, 6, 5, 4, 3, 2, 1])
    np.savetxt(folder / "index_test_0.txt", [0])
    return tmp_path


def test_columns_and_rows(root):
    """Features, target and rows are those that the index files name, also where these are written as reals."""
    source = UCI(root, dataset="mine")
    samples, spec = source.train()
    assert samples.inputs.tolist() == TABLE[:, [0, 1, 3]].tolist()
    assert samples.targets.tolist() == TABLE[:, [2]].tolist()
    assert (spec.kind, spec.size) == ("real", 1)
    train, test = source.fixed_split()
    assert (train.tolist(), test.tolist()) == ([9, 8, 7, 6, 5, 4, 3, 2, 1], [0])
    assert len(source.feature_names) == 3


def test_read_inputs(root, tmp_path):
    """New rows may hold the features alone or all columns; another width is refused."""
    source = UCI(root, dataset="mine")
    for columns in ([0, 1, 3], [0, 1, 2, 3]):
        np.savetxt(tmp_path / "new.txt", TABLE[:, columns])
        assert source.read_inputs(tmp_path / "new.txt").tolist() == TABLE[:, [0, 1, 3]].tolist()
    np.savetxt(tmp_path / "new.txt", TABLE[:, [0, 1, 2, 3, 3]])
    with pytest.raises(ConfigError, match=r"5 columns; expected 3 \(features\) or 4 \(all\)"):
        source.read_inputs(tmp_path / "new.txt")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("index_test_0.txt", "1\n", "not each row of data.txt once"),
        ("index_test_0.txt", "10\n", "from 0 to 9"),
        ("index_test_0.txt", "0.5\n", "from 0 to 9"),
        ("data.txt", "1 2 3 4\n1 2\n", "not a table of numbers"),
        ("data.txt", "1 2 3 nan\n", "not finite"),
    ],
)
def test_damage(root, name, text, message):
    """Files that contradict each other or hold no numbers are named in one line."""
    (root / "uci" / "mine" / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        UCI(root, dataset="mine").fixed_split()
    assert "\n" not in str(caught.value)


def test_unknown(root):
    """An unknown data set gets its nearest match and an unknown split the numbers there are."""
    with pytest.raises(ConfigError, match=r"found there: mine; did you mean 'mine'\?"):
        UCI(root, dataset="mien").train()
    with pytest.raises(ConfigError, match=r"data.split: got 5; mine has splits 0 to 0"):
        UCI(root, dataset="mine", split=5).train()
    with pytest.raises(ConfigError, match=r"put there the folder with data.txt"):
        UCI(root / "nowhere", dataset="mine").train()


@real
@pytest.mark.parametrize(
    ("dataset", "rows", "features", "test_rows"),
    [
        ("bostonHousing", 506, 13, 51),
        ("concrete", 1030, 8, 103),
        ("energy", 768, 8, 77),
        ("wine-quality-red", 1599, 11, 160),
        ("yacht", 308, 6, 31),
    ],
)
def test_published_sets(dataset, rows, features, test_rows):
    """Each published set has its size, and all its 20 splits hold every row once."""
    from dlrun.settings import data_root

    samples, _ = UCI(data_root(), dataset=dataset).train()
    assert tuple(samples.inputs.shape) == (rows, features)
    assert tuple(samples.targets.shape) == (rows, 1)
    for split in range(20):
        train, test = UCI(data_root(), dataset=dataset, split=split).fixed_split()
        assert len(test) == test_rows
        assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(rows))
