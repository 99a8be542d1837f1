"""Convolutional networks as users run them: LeNet-5 modern and as published, depth, architecture, inputs of any size."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlrun.models import MODELS
from dlrun.models._summary import count_parameters, summarize
from dlrun.models.lenet_1998 import TABLE, ScaledTanh, Subsampling, TableConvolution

QUICK = ("device=cpu", "callbacks=none", "trainer.fast_dev_run=true", "hydra.run.dir=run")
ACTIVATIONS = ["linear", "sign", "heaviside", "sigmoid", "tanh", "relu", "softplus"]


def build(name, inputs=(1, 28, 28), outputs=10, **settings):
    return MODELS.build({"name": name, **settings}, input_shape=inputs, num_outputs=outputs)


# ---- LeNet-5 --------------------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("M46")
@pytest.mark.parametrize("size", [28, 32])
def test_lenet_1998_layer_by_layer(size):
    """Shapes and parameters of the paper: 156, 12, 1,516, 32, 48,120 and 10,164, in all 60,000; the linear head has 850."""
    model = build("lenet_1998", (1, size, size))
    layers = {row.name: row for row in summarize(model, (1, size, size)).layers}
    expected = {
        "c1.layer": ((6, 28, 28), 156),
        "s2.layer": ((6, 14, 14), 12),
        "c3.layer": ((16, 10, 10), 1516),
        "s4.layer": ((16, 5, 5), 32),
        "c5.layer": ((120, 1, 1), 48_120),
        "f6.layer": ((84,), 10_164),
        "head": ((10,), 850),
    }
    assert {name: (layers[name].output_shape, layers[name].parameters) for name in expected} == expected
    assert count_parameters(model) == 60_000 + 850
    assert count_parameters(build("lenet_1998", sparse=False)) == 60_850 - 1516 + 2416


@pytest.mark.curriculum("M46")
def test_lenet_on_28x28_without_padding():
    """Two convolutions of 5x5 on 28x28 pixels and dense layers of 120 and 84 have 44,426 parameters."""
    blocks = [{"channels": channels, "kernel": 5, "padding": 0, "pool_size": 2} for channels in (6, 16)]
    assert count_parameters(build("cnn", blocks=blocks, hidden=[120, 84], batch_norm=False)) == 44_426


@pytest.mark.curriculum("M46")
def test_table_of_c3():
    """Table I of the paper: 60 connections, 10 from each map of S2; 6 maps see 3, 9 see 4 and one all 6 of them."""
    assert [len(seen) for seen in TABLE] == [3] * 6 + [4] * 9 + [6]
    assert all(len(set(seen)) == len(seen) for seen in TABLE)
    assert [sum(channel in seen for seen in TABLE) for channel in range(6)] == [10] * 6
    rows = [
        "X...XXX..XXXX.XX",
        "XX...XXX..XXXX.X",
        "XXX...XXX..X.XXX",
        ".XXX..XXXX..X.XX",
        "..XXX..XXXX.XX.X",
        "...XXX..XXXX.XXX",
    ]
    assert ["".join("X" if channel in seen else "." for seen in TABLE) for channel in range(6)] == rows


@pytest.mark.curriculum("M46")
def test_table_convolution_is_a_sum_over_the_maps_in_the_table():
    """Each map equals a convolution of the maps it sees, and gets no gradient from the others."""
    layer = TableConvolution(TABLE, 6, 5, "lecun_normal")
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 9, 9, requires_grad=True)
    outputs, first = layer(x), 0
    for i, seen in enumerate(TABLE):
        weight = layer.weight[first : first + len(seen)].unsqueeze(0)
        torch.testing.assert_close(outputs[:, i : i + 1], F.conv2d(x[:, list(seen)], weight, layer.bias[i : i + 1]))
        first += len(seen)
    outputs[:, 0].sum().backward()
    assert x.grad.abs().sum((0, 2, 3)).nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.curriculum("M46")
def test_subsampling_and_scaled_tanh():
    """Sum of four times a coefficient plus a bias, at first the mean; the squashing maps 1 to 1 and saturates at 1.7159."""
    x = torch.tensor([[3.0, 2, 0, 0], [0, 7, 1, 3], [5, 2, 3, 0], [0, 9, 2, 3]]).view(1, 1, 4, 4)
    layer = Subsampling(1)
    assert layer(x).flatten().tolist() == [3, 1, 4, 2]
    layer.weight.data.fill_(0.5)
    layer.bias.data.fill_(-1.0)
    assert layer(x).flatten().tolist() == [5, 1, 7, 3]
    squashed = ScaledTanh()(torch.tensor([-1.0, 0.0, 1.0, 100.0]))
    torch.testing.assert_close(squashed, torch.tensor([-1.0, 0.0, 1.0, 1.7159]), atol=1e-4, rtol=0)


def squash(x):
    return 1.7159 * torch.tanh(2 / 3 * x)


@pytest.mark.curriculum("M46")
def test_lenet_1998_forward_pass_by_hand():
    """C1, S2, C3, S4, C5 and F6, each squashed, then an affine head; 28x28 pixels stand in the middle of 32x32."""
    model, x = build("lenet_1998", sparse=False).double(), torch.randn(3, 1, 28, 28, dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    weights = dict(model.named_parameters())

    def affine(name):
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def sums(maps, name):
        weight, bias = (values.view(-1, 1, 1) for values in affine(name))
        return sum(maps[..., i::2, j::2] for i in (0, 1) for j in (0, 1)) * weight + bias

    maps = squash(F.conv2d(F.pad(x, (2, 2, 2, 2)), *affine("c1.layer")))
    maps = squash(F.conv2d(squash(sums(maps, "s2.layer")), *affine("c3.layer")))
    maps = squash(F.conv2d(squash(sums(maps, "s4.layer")), *affine("c5.layer")))
    values = squash(F.linear(maps.flatten(1), *affine("f6.layer")))
    torch.testing.assert_close(model(x), F.linear(values, *affine("head")))


@pytest.mark.curriculum("M46")
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_lenet_forward_pass_by_hand(activation):
    """Convolutions of 5x5 and F6 with their activation, maxima of 2x2, then an affine head."""
    model, g = build("lenet", activation=activation, dropout=0.0).double(), getattr(torch, activation)
    x, weights = torch.randn(3, 1, 28, 28, dtype=torch.float64), dict(model.named_parameters())

    def affine(name):
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    maps = g(F.conv2d(F.pad(x, (2, 2, 2, 2)), *affine("c1.conv")))
    maps = g(F.conv2d(F.max_pool2d(maps, 2), *affine("c3.conv")))
    maps = g(F.conv2d(F.max_pool2d(maps, 2), *affine("c5.conv")))
    values = g(F.linear(maps.flatten(1), *affine("f6.dense1")))
    torch.testing.assert_close(model(x), F.linear(values, *affine("head")))


@pytest.mark.curriculum("H07")
def test_dates_of_lenet():
    """The docs say that LeNet-5 is of 1998 and its first relative of 1989."""
    for name in ("lenet", "lenet_1998"):
        assert "Source: LeCun et al. (1998), section II.B" in MODELS.get(name).__doc__
    assert "LeCun et\n    al. (1989)" in MODELS.get("lenet").__doc__


@pytest.mark.curriculum("M37", "M16", "M17")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_lenet_with_each_activation(cli, activation):
    """From the command line; behind sign and heaviside only the head learns."""
    done = cli("model=lenet", f"model.activation={activation}", "data=digits", *QUICK)
    assert done.rc == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("model=lenet_1998",),
        ("model=inception", "model.stem=16", "model.stages=[[32],[32]]"),
        ("model=conv1d",),
        ("model=resnet20", "model.depth=8"),
    ],
    ids=lambda words: words[0],
)
def test_networks_learn(cli, tmp_path, words):
    """After three epochs on 600 digits of 8x8 more than 70 % of the test set is right; guessing gives 10 %."""
    settings = ("data=digits", "data.limit_train=600", "trainer.epochs=3", "optimizer.lr=0.003", "device=cpu")
    assert cli(*words, *settings, "callbacks=none", "hydra.run.dir=run").rc == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["test"]["accuracy"] > 0.7


# ---- depth ----------------------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("M49")
def test_shortcuts_keep_the_gradient_of_the_first_layer():
    """In a network of 50 layers with small initial weights and no batch norm the first layer gets a gradient more than 100
    times as long as that of the plain network of the same layers, which vanishes."""
    x, targets, norms = torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.arange(8), {}
    for residual in (True, False):
        torch.manual_seed(0)
        settings = {"depth": 50, "residual": residual, "batch_norm": False, "init": "default"}
        model = build("resnet_cifar", (1, 8, 8), **settings).double()
        F.cross_entropy(model(x), targets).backward()
        norms[residual] = model.conv.weight.grad.norm().item()
    assert norms[True] > 0.01
    assert norms[True] > 100 * norms[False]


@pytest.mark.curriculum("M49")
def test_plain_network_has_the_same_layers():
    """Shortcuts have no parameters; without them, and silent last layers, nothing passes."""
    x = torch.randn(2, 1, 8, 8)
    plain, residual = (build("resnet_cifar", (1, 8, 8), depth=8, residual=r).eval() for r in (False, True))
    assert plain.state_dict().keys() == residual.state_dict().keys()
    residual.load_state_dict(plain.state_dict())
    for net in (plain, residual):
        for stage in (net.stage1, net.stage2, net.stage3):
            nn.init.zeros_(stage[0].norm2.weight)
    assert torch.equal(plain(x), plain.head.bias.expand(2, 10))
    assert not torch.equal(residual(x), residual.head.bias.expand(2, 10))


# ---- architecture as a hyper-parameter --------------------------------------------------------------------------------------


@pytest.mark.curriculum("M52")
@pytest.mark.parametrize(
    ("words", "counts"),
    [
        # channels c: 9 c + c of the convolution, 10 c + 10 of the head
        (
            (
                "model=cnn",
                "model.blocks=[{channels:8}],[{channels:4,kernel:5}],[{channels:4},{channels:4}]",
                "model.hidden=[]",
                "model.features=average",
                "model.batch_norm=false",
            ),
            [170, 154, 90 + 4 * 4 * 9 + 4],
        ),
        (("model=mlp", "model.hidden=[5],[5,4]"), [65 * 5 + 60, 65 * 5 + 24 + 50]),
    ],
    ids=["channels, kernel and depth of a CNN", "depth and width of an MLP"],
)
def test_architectures_in_a_sweep(cli, tmp_path, words, counts):
    """Depth, width, kernel and channels are settings of the command line, and swept like any other."""
    quick = ("data=digits", "device=cpu", "callbacks=none", "trainer.fast_dev_run=true", "data.limit_train=64")
    done = cli("-m", *words, *quick, "hydra/launcher=basic", "hydra.sweep.dir=sweep")
    assert done.rc == 0, done.stderr
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("*/results.json"))]
    assert sorted(result["parameters"] for result in results) == sorted(counts)


BOX = """
import torch
from dlrun.models import MODELS


class Box(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        y = torch.tanh(x @ weight.t() + bias)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, weight, y = ctx.saved_tensors
        inner = gradient * (1 - y * y)
        return inner @ weight, inner.t() @ x, inner.sum(0)


@MODELS.register("boxes")
class Boxes(torch.nn.Module):
    def __init__(self, input_shape, num_outputs, *, width: int = 6):
        super().__init__()
        self.first = torch.nn.Linear(input_shape[0], width)
        self.second = torch.nn.Linear(width, num_outputs)

    def forward(self, x):
        return self.second(Box.apply(x, self.first.weight, self.first.bias))
"""


@pytest.fixture
def boxes(tmp_path, monkeypatch):
    """A layer of one's own with a hand-written backward pass, and its YAML, in the current folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_boxes.py").write_text(BOX)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "boxes.yaml").write_text("import: own_boxes\nname: boxes\nwidth: 6\n")
    yield
    MODELS._entries.pop("boxes", None)
    sys.modules.pop("own_boxes", None)


@pytest.mark.curriculum("M53")
def test_own_layer_with_a_handwritten_backward_pass(boxes, cli, tmp_path):
    """It trains from the command line, and passes the check of its gradients against finite differences."""
    words = ("model=boxes", "data=two_moons", "trainer.epochs=2", "optimizer.lr=0.05", *QUICK[:2])
    done = cli("--config-dir", "mine", *words, "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["test"]["accuracy"] > 0.8
    box = sys.modules["own_boxes"].Box.apply
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (4, 3), (4,))]
    assert torch.autograd.gradcheck(box, inputs)
    model = build("boxes", (2,), 1)
    x = torch.randn(7, 2)
    model(x).sum().backward()
    twin = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    twin.load_state_dict(dict(zip(twin.state_dict(), model.state_dict().values(), strict=True)))
    twin(x).sum().backward()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


# ---- inputs of any size -----------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("T31", "M41")
@pytest.mark.parametrize("features", ["adaptive", "average"])
def test_the_same_weights_take_images_of_two_sizes(features):
    """28x28 and 40x40 pixels, in one network, which computes what one built for 40x40 pixels with its weights does."""
    model = build("cnn", features=features).eval()
    large = build("cnn", (1, 40, 40), features=features).eval()
    large.load_state_dict(model.state_dict())
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    x = torch.randn(2, 1, 40, 40)
    assert torch.equal(model(x), large(x))
    assert model.hidden.dense1.in_features == 64 * (16 if features == "adaptive" else 1)


@pytest.mark.curriculum("T31", "M41")
@pytest.mark.parametrize("name", ["lenet", "lenet_1998"])
def test_weights_of_lenet_fit_images_of_any_size(name):
    """A LeNet built for 40x40 pixels takes the weights of one for 28x28: S4 is averaged to 5x5."""
    small, large = build(name), build(name, (1, 40, 40)).eval()
    large.load_state_dict(small.state_dict())
    assert large(torch.randn(2, 1, 40, 40)).shape == (2, 10)


@pytest.mark.curriculum("T22", "T31")
@pytest.mark.parametrize("features", ["average", "adaptive"])
def test_conv1d_takes_signals_of_any_length(features):
    """(B, C, L) of two lengths; averaged maps of a longer signal that repeats stay nearly the same."""
    model = build("conv1d", (3, 50), 4, features=features).eval()
    assert model(torch.randn(2, 3, 50)).shape == model(torch.randn(2, 3, 77)).shape == (2, 4)


@pytest.mark.curriculum("T22")
def test_conv1d_says_the_same_no_matter_when():
    """A pattern in silence gives the same outputs wherever it lies, at the stride of the blocks."""
    model = build("conv1d", (1, 120), 4, batch_norm=False).double().eval()
    signal = torch.zeros(1, 1, 120, dtype=torch.float64)
    signal[..., 40:52] = torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(model(signal), model(signal.roll(24, 2)))
    assert (model(signal) - model(-signal)).abs().max() > 1e-3


@pytest.mark.curriculum("T22")
@pytest.mark.parametrize(("data", "shape"), [("signals", (1, 64)), ("two_moons", (2,)), ("digits", (1, 8, 8))])
def test_conv1d_reads_signals_vectors_and_rows_of_images(cli, data, shape):
    """A vector is a signal of one channel; an image one of height steps."""
    done = cli("model=conv1d", f"data={data}", *QUICK)
    assert done.rc == 0, done.stderr
    model = build("conv1d", shape)
    x = torch.randn(2, *shape)
    assert model.blocks.block1.conv.in_channels == (8 if data == "digits" else 1)
    if data == "digits":
        rows = x.view(2, 8, 8).transpose(1, 2)  # channels: the columns; steps: the rows
        assert torch.equal(model.eval()(x), model(rows))
