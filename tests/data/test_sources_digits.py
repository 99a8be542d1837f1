"""The digits of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

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
