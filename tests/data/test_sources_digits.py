"""The digits of scikit-learn."""

import gzip
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dlrun.data import digits
from dlrun.data.digits import Digits
from dlrun.registry import ConfigError


@pytest.mark.curriculum("T04", "T19")
def test_digits():
    """All 1,797 images come as bytes that give scikit-learn's counts back exactly, with its labels."""
    samples, spec = Digits().train()
    reference = load_digits()
    assert (samples.inputs.dtype, tuple(samples.inputs.shape)) == (torch.uint8, (1797, 1, 8, 8))
    back = (samples.inputs.double() * 16 / 255).round().view(1797, 64).numpy()
    assert np.array_equal(back, reference.data)
    assert int(samples.inputs.max()) == 255
    assert samples.targets.tolist() == reference.target.tolist()
    assert (spec.kind, spec.size, spec.names) == ("class", 10, tuple("0123456789"))


@pytest.mark.parametrize("missing", ["package", "file", "rows"])
def test_without_the_file(tmp_path, monkeypatch, missing):
    """Where scikit-learn keeps its table elsewhere, or in another form, it is asked itself, with the same result."""
    expected, _ = Digits().train()
    folder = tmp_path / "datasets" / "data"
    folder.mkdir(parents=True)
    if missing == "rows":
        (folder / "digits.csv.gz").write_bytes(gzip.compress(b"0,1,2\n3,4,5\n"))
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None if missing == "package" else found)
    samples, _ = Digits().train()
    assert torch.equal(samples.inputs, expected.inputs)
    assert torch.equal(samples.targets, expected.targets)


def test_nothing_is_imported_for_nothing():
    """Reading and batching digits imports neither scikit-learn nor anything else that only other data need."""
    code = """
import sys, torch
from dlrun.data._module import build_data
data = build_data({"name": "digits"}, seed=0, device=torch.device("cpu"))
assert sum(len(batch.targets) for name in ("train", "val", "test") for batch in data.split(name)) == 1797
assert len(next(iter(data.epoch(0))).targets) == 128
print(*sorted({"sklearn", "scipy", "PIL", "torchvision", "pandas", "torch._dynamo"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_rounding():
    """Counts 0, 1, 8 and 16 become 0, 16, 128 and 255."""
    samples, _ = Digits().train()
    counts = torch.from_numpy(load_digits().data)
    for count, byte in ((0, 0), (1, 16), (8, 128), (16, 255)):
        assert samples.inputs.view(1797, 64)[counts == count].unique().tolist() == [byte]


def test_read_inputs(tmp_path):
    """Lines of 64 counts, here with the label behind them as in the published file, give the images of training."""
    reference = load_digits()
    rows = np.column_stack([reference.data[:5], reference.target[:5]]).astype(int)
    np.savetxt(tmp_path / "new.txt", rows, fmt="%d", delimiter=",")
    assert torch.equal(Digits().read_inputs(tmp_path / "new.txt"), Digits().train()[0].inputs[:5])
    np.savetxt(tmp_path / "bad.txt", rows + 1, fmt="%d", delimiter=",")
    with pytest.raises(ConfigError, match="allowed: 0 to 16"):
        Digits().read_inputs(tmp_path / "bad.txt")
