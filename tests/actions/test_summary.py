"""`action=summary`: what a model consists of, printed from the command line."""

import re
from pathlib import Path

import pytest
import torch

from dlrun.actions.summary import Summarize
from dlrun.models import MODELS
from dlrun.registry import ConfigError


def rows(stdout):
    """name: (type, output, parameters, MACs) of the printed table."""
    found = [re.split(r" {2,}", line.strip()) for line in stdout.splitlines()]
    return {cells[0]: tuple(cells[1:]) for cells in found if len(cells) >= 3}


@pytest.mark.curriculum("M44", "M46")
def test_summary_of_lenet_on_data(cli, tmp_path):
    """Layers with output shapes, parameters and multiplications for the data at hand; 61,706 parameters; nothing written."""
    done = cli("action=summary", "model=lenet", "data=digits")
    assert done.rc == 0, done.stderr
    table = rows(done.stdout)
    assert "lenet for images of 1x8x8, 10 outputs" in done.stdout
    assert table["c1.conv"] == ("Conv2d", "6x28x28", "156", "117,600")
    assert table["c5.conv"] == ("Conv2d", "120x1x1", "48,120", "48,000")
    assert table["in all"][0] == "61,706"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["lenet", "transformer", "gru", "inception", "resnet18", "cnn"])
def test_multiplications_add_up(cli, model):
    """The rows give the total; what a layer multiplies itself, such as the products of attention, has a row of its own."""
    done = cli("action=summary", f"model={model}", "action.input_shape=[1,32,32]", "action.outputs=4")
    assert done.rc == 0, done.stderr
    table = rows(done.stdout)
    _, total = table.pop("in all")
    layers = [cells for cells in table.values() if cells[-1] != "MACs"]
    assert f"{sum(int(cells[-1].replace(',', '')) for cells in layers):,}" == total != "0"
    assert all(cells[1] != "-" for cells in layers)


@pytest.mark.curriculum("M46", "M47", "M48", "M49", "M50")
@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("alexnet", "61,100,840"),
        ("vgg16", "138,357,544"),
        ("resnet18", "11,689,512"),
        ("googlenet", "6,624,904"),
        ("lenet_1998", "145,300"),
    ],
)
def test_summary_without_data(cli, model, parameters):
    """The published counts, for ImageNet's images and classes."""
    done = cli("action=summary", f"model={model}", "action.input_shape=[3,224,224]", "action.outputs=1000")
    assert done.rc == 0, done.stderr
    assert rows(done.stdout)["in all"][0] == parameters


@pytest.mark.curriculum("M42", "M44")
def test_summary_of_a_filter(cli):
    """A filter's weights and multiplications, and how much of the image the last maps see."""
    words = ("model.blocks=[{channels:1,pool_size:2}]", "model.batch_norm=false", "model.hidden=[]")
    done = cli("action=summary", "model=cnn", *words, "action.input_shape=[1,28,28]", "action.outputs=1")
    table = rows(done.stdout)
    assert table["blocks.block1.conv"] == ("Conv2d", "1x28x28", "10", "7,056")
    assert "receptive field of the last maps: 4 input values along each axis" in done.stdout


@pytest.mark.parametrize("reads_values", [False, True])
def test_summary_of_a_model_of_ones_own(cli, composed, monkeypatch, reads_values):
    """Lazy layers get their weights; a forward pass that reads values, which there are none of, is refused in one line."""

    class Lazy(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x) * (x.mean().item() if reads_values else 1)

    monkeypatch.setitem(
        MODELS._entries,
        "lazy",
        lambda input_shape, num_outputs: Lazy(torch.nn.Flatten(), torch.nn.LazyLinear(num_outputs)),
    )
    action = Summarize(input_shape=(1, 4, 5), outputs=3)
    config = {**composed("device=cpu"), "model": {"name": "lazy"}}
    if reads_values:
        with pytest.raises(
            ConfigError, match=r"^model\.name: lazy cannot be run without memory on images of 1x4x5 \([^\n]+\)$"
        ):
            action(config, Path())
    else:
        action(config, Path())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("action.input_shape=[1,28,28]",), "action.outputs: no value given"),
        (("action.input_shape=[0,28,28]", "action.outputs=1"), "action.input_shape.0: got 0"),
        (("action.input_shape=[20]", "action.outputs=1"), "model.name: lenet needs images"),
    ],
)
def test_summary_refuses_in_one_line(cli, words, expected):
    """What is missing or does not fit."""
    done = cli("action=summary", *words)
    assert done.rc == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
