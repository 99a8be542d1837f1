"""Convolutional networks: counts, sizes, blocks, poolings, residual connections, refusals."""

import pytest
import torch
from torch import nn

from dlrun.models import MODELS
from dlrun.models._pooling import pooling
from dlrun.models._summary import count_parameters, summarize
from dlrun.models.resnet_cifar import ResidualBlock
from dlrun.registry import ConfigError


def build(name, inputs=(1, 28, 28), outputs=10, **settings):
    return MODELS.build({"name": name, **settings}, input_shape=inputs, num_outputs=outputs)


@pytest.mark.curriculum("M46")
@pytest.mark.parametrize("size", [8, 28, 32])
def test_lenet_has_61706_parameters(size):
    """For one-channel images of 28x28 and 32x32, and for 8x8 ones that are enlarged."""
    assert count_parameters(build("lenet", (1, size, size))) == 61_706


@pytest.mark.curriculum("M46", "M44", "P33")
@pytest.mark.parametrize("size", [28, 32])
def test_lenet_layer_by_layer(size):
    """Shapes, parameters and multiplications of C1 to F6 are those of the paper."""
    layers = {row.name: row for row in summarize(build("lenet", (1, size, size)), (1, size, size)).layers}
    expected = {
        "c1.conv": ((6, 28, 28), 156, 6 * 28 * 28 * 25),
        "s2": ((6, 14, 14), 0, 0),
        "c3.conv": ((16, 10, 10), 2416, 16 * 100 * 6 * 25),
        "s4": ((16, 5, 5), 0, 0),
        "c5.conv": ((120, 1, 1), 48_120, 120 * 16 * 25),
        "f6.dense1": ((84,), 10_164, 84 * 120),
        "head": ((10,), 850, 840),
    }
    assert {
        name: (layers[name].output_shape, layers[name].parameters, layers[name].macs) for name in expected
    } == expected


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 27, 31), (3, 96, 64), (1, 5, 40)])
def test_lenet_takes_images_of_any_size(shape):
    """Enlarged, padded or averaged, they all reach the head."""
    assert build("lenet", shape)(torch.randn(2, *shape)).shape == (2, 10)


@pytest.mark.curriculum("M37", "M38")
def test_lenet_of_the_paper():
    """tanh and average pooling are settings."""
    model = build("lenet", activation="tanh", pool="avg")
    assert isinstance(model.c1.activation, nn.Tanh)
    assert isinstance(model.s2, nn.AvgPool2d)
    with pytest.raises(ConfigError, match="did you mean 'tanh'"):
        build("lenet", activation="than")


@pytest.mark.curriculum("M38", "M40")
def test_poolings_on_the_worked_example():
    """2x2 areas of the 4x4 example: max, mean, sum and Euclidean norm."""
    x = torch.tensor([[3.0, 2, 0, 0], [0, 7, 1, 3], [5, 2, 3, 0], [0, 9, 2, 3]]).view(1, 1, 4, 4)
    assert pooling("max", 2)(x).flatten().tolist() == [7, 3, 9, 3]
    assert pooling("avg", 2)(x).flatten().tolist() == [3, 1, 4, 2]
    assert pooling("sum", 2)(x).flatten().tolist() == [12, 4, 16, 8]
    torch.testing.assert_close(pooling("lp", 2)(x).flatten(), torch.tensor([62.0, 10.0, 110.0, 22.0]).sqrt())


def test_norm_pooling_of_silent_areas_has_a_finite_gradient():
    """All zeros, as ReLUs leave them, give gradient 0 and not NaN."""
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    pooling("lp", 2)(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.curriculum("M33", "M34", "M35", "M36")
def test_cnn_blocks():
    """Convolution, nonlinearity, pooling in this order; weights (K, C, h, w), one bias per map; flatten size inferred."""
    blocks = [{"channels": 4, "pool_size": 2, "batch_norm": False}, {"channels": 6, "kernel": 5, "stride": 2}]
    model = build("cnn", (3, 20, 16), blocks=blocks, hidden=[], features="flatten")
    first = dict(model.blocks.block1.named_children())
    assert list(first) == ["conv", "activation", "pool", "dropout"]
    assert first["conv"].weight.shape == (4, 3, 3, 3)
    assert first["conv"].bias.shape == (4,)
    assert model.blocks.block2.conv.bias is None  # batch norm follows
    assert model.head.in_features == 6 * 5 * 4
    assert model(torch.randn(2, 3, 20, 16)).shape == (2, 10)


@pytest.mark.curriculum("M29")
@pytest.mark.parametrize(
    ("size", "block"), [(32, {"kernel": 5, "padding": 0}), (9, {"stride": 2}), (7, {"pool_size": 2})]
)
def test_cnn_output_size_is_that_of_the_convolution(size, block):
    """(size + 2 padding - kernel) // stride + 1; 32 with kernel 5 gives 28."""
    model = build("cnn", (1, size, size), blocks=[{"channels": 1, **block}], hidden=[])
    maps = model.blocks(torch.randn(1, 1, size, size))
    assert maps.numel() == model.head.in_features
    if size == 32:
        assert maps.shape[-2:] == (28, 28)


@pytest.mark.curriculum("M41")
def test_averaged_features_take_images_of_any_size():
    """One network, several image sizes."""
    model = build("cnn", features="average", hidden=[]).eval()
    assert model(torch.randn(2, 1, 40, 33)).shape == (2, 10)


def test_cnn_says_which_block_does_not_fit():
    """A block whose maps would be empty is refused, by its number."""
    with pytest.raises(ConfigError, match=r"^model\.blocks\.2: kernel 3 and pool_size 4 do not fit into maps of 2x2;"):
        build("cnn", (1, 8, 8), blocks=[{"channels": 2, "pool_size": 2}] * 2 + [{"channels": 2, "pool_size": 4}])
    with pytest.raises(ConfigError, match=r"model\.blocks\.0\.kernal: unknown setting"):
        build("cnn", blocks=[{"channels": 2, "kernal": 3}])
    with pytest.raises(ConfigError, match=r"model\.blocks\.1\.channels: got 0"):
        build("cnn", blocks=[{"channels": 2}, {"channels": 0}])


@pytest.mark.curriculum("M49")
@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_resnet_cifar_parameters(depth, count):
    """Option A shortcuts have none: ResNet-20 has 269,722."""
    with torch.device("meta"):
        model = build("resnet_cifar", (3, 32, 32), depth=depth)
    assert count_parameters(model) == count
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == depth


@pytest.mark.curriculum("M49")
def test_a_residual_block_with_silent_last_layer_is_the_identity():
    """y = relu(x + 0) = x for x >= 0; with stride it subsamples and fills new channels with zeros."""
    x = torch.rand(2, 4, 6, 6)
    block = ResidualBlock(4, 4, 1)
    nn.init.zeros_(block.norm2.weight)
    torch.testing.assert_close(block(x), x)
    wide = ResidualBlock(4, 8, 2)
    nn.init.zeros_(wide.norm2.weight)
    y = wide(x)
    torch.testing.assert_close(y[:, :4], x[:, :, ::2, ::2])
    assert y[:, 4:].abs().max() == 0


def test_resnet_cifar_refuses_other_depths():
    """The error gives the nearest allowed depths."""
    with pytest.raises(ConfigError, match=r"^model\.depth: got 21; allowed: 6n \+ 2, such as 20 or 26$"):
        build("resnet_cifar", depth=21)


@pytest.mark.parametrize(
    "name", ["lenet", "lenet_1998", "cnn", "inception", "resnet_cifar", "resnet", "vgg", "alexnet", "googlenet"]
)
def test_image_models_refuse_vectors(name):
    """One line with what they need and what the data gives."""
    with pytest.raises(ConfigError, match=r"^model\.name: \w+ needs images [^\n]*vectors of 20 values[^\n]*$"):
        build(name, (20,))


@pytest.mark.curriculum("M45")
def test_convolution_is_equivariant_to_shifts_and_not_to_rotation():
    """Away from the border a shifted image gives shifted maps; a rotated one does not give rotated maps."""
    torch.manual_seed(0)
    conv = build("cnn", blocks=[{"channels": 3, "batch_norm": False}], activation="tanh").blocks
    x = torch.randn(1, 1, 28, 28)
    torch.testing.assert_close(conv(x.roll(2, -1))[..., 4:-4], conv(x).roll(2, -1)[..., 4:-4])
    assert (conv(x.rot90(1, (2, 3))) - conv(x).rot90(1, (2, 3))).abs().max() > 0.1


@pytest.mark.curriculum("M42")
def test_receptive_field_of_convolution_and_pooling():
    """Convolution of 3 then pooling of 2 see 4x4 pixels: the gradient is non-zero exactly there."""
    torch.manual_seed(0)
    blocks = build(
        "cnn", blocks=[{"channels": 1, "pool_size": 2, "batch_norm": False}], pool="avg", activation="tanh"
    ).blocks
    x = torch.randn(1, 1, 28, 28, requires_grad=True)
    blocks(x)[0, 0, 5, 7].backward()
    rows, columns = x.grad[0, 0].nonzero(as_tuple=True)
    assert (rows.unique().tolist(), columns.unique().tolist()) == ([9, 10, 11, 12], [13, 14, 15, 16])
