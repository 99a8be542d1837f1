"""Inception blocks, the small network of them, and torchvision's GoogLeNet."""

import pytest
import torch
from torch import nn

from dlrun.models import MODELS
from dlrun.models._dropout import has_foreign_randomness
from dlrun.models._summary import count_parameters
from dlrun.models.inception import InceptionBlock
from dlrun.registry import ConfigError


def build(name, inputs=(3, 32, 32), outputs=10, **settings):
    return MODELS.build({"name": name, **settings}, input_shape=inputs, num_outputs=outputs)


@pytest.mark.curriculum("M50")
def test_branches_are_concatenated_on_channels():
    """Block 3a of the paper: 64 + 128 + 32 + 32 = 256 maps of the same size, each branch computed from the same input."""
    block = InceptionBlock(192, 64, (96, 128), (16, 32), 32).eval()
    x = torch.randn(2, 192, 7, 9)
    y = block(x)
    assert y.shape == (2, 256, 7, 9)
    branches = [block.one(x), block.three(x), block.five(x), block.pool(x)]
    assert [b.shape[1] for b in branches] == [64, 128, 32, 32]
    assert torch.equal(torch.cat(branches, 1), y)
    kernels = [m.kernel_size[0] for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [1, 1, 3, 1, 5, 1]


@pytest.mark.curriculum("M50")
def test_parameters_of_block_3a():
    """163,328 weights, 159 Ki in table 1 of the paper, and a bias for each map without batch norm."""
    block = InceptionBlock(192, 64, (96, 128), (16, 32), 32, batch_norm=False)
    weights = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d))
    assert weights == 163_328
    assert weights // 1024 == 159
    assert count_parameters(block) == weights + 64 + 96 + 128 + 16 + 32 + 32


@pytest.mark.curriculum("M50")
def test_stages_of_the_small_network():
    """Maps of each block as set, halved between stages."""
    model = build("inception", stages=[[32, 48], [64]], stem=8)
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes == [(32, 32, 32), (48, 32, 32), (48, 16, 16), (64, 16, 16)]


@pytest.mark.curriculum("M50")
@pytest.mark.parametrize(("maps", "count"), [(16, 890), (32, 2646)])
def test_parameters_of_the_small_network(maps, count):
    """One block behind a stem of 8 maps, counted by hand: convolutions, two numbers of batch norm for each map, head."""
    assert count_parameters(build("inception", (1, 8, 8), stem=8, stages=[[maps]])) == count


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (8, 8), (64, 64)])
def test_inception_takes_images_of_any_size(size):
    """Down to a single pixel."""
    assert build("inception", (1, *size)).eval()(torch.randn(2, 1, *size)).shape == (2, 10)


def test_widths_that_are_no_multiples_of_16_are_refused():
    """With the place and the nearest that is allowed."""
    with pytest.raises(ConfigError, match=r"^model\.stages\.1\.0: got 70; allowed: multiples of 16, such as 64$"):
        build("inception", stages=[[64], [70]])


@pytest.mark.curriculum("M50")
def test_googlenet_equals_torchvisions():
    """Parameters, names and shapes without auxiliary classifiers; with the same weights the same outputs."""
    from torchvision.models import googlenet

    with torch.device("meta"):
        ours = build("googlenet", (3, 224, 224), 1000)
    assert count_parameters(ours) == 6_624_904
    assert not has_foreign_randomness(ours)
    ours = build("googlenet", (3, 32, 32), 7).eval()
    theirs = googlenet(num_classes=7, aux_logits=False, init_weights=False).eval()
    theirs.load_state_dict(ours.net.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(x), theirs(x))


def test_pretrained_googlenet(tmp_path, monkeypatch):
    """The file's auxiliary classifiers are left out; colours are centred as its weights expect, grey images are not."""
    from torchvision.models import GoogLeNet_Weights, googlenet

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = googlenet(aux_logits=True, init_weights=False).state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / GoogLeNet_Weights.DEFAULT.url.rsplit("/", 1)[1])
    model = build("googlenet", (3, 32, 32), 5, pretrained=True, freeze=True)
    assert torch.equal(model.net.inception3a.branch1.conv.weight, state["inception3a.branch1.conv.weight"])
    assert model.net.transform_input
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["net.fc.weight", "net.fc.bias"]
    grey = build("googlenet", (1, 32, 32), 5, pretrained=True)
    torch.testing.assert_close(grey.net.conv1.conv.weight, state["conv1.conv.weight"].sum(1, keepdim=True))
    assert not grey.net.transform_input


def test_small_images_are_refused_or_enlarged():
    """Under 15x15 pixels nothing would be left."""
    with pytest.raises(ConfigError, match=r"^model\.name: googlenet needs images of at least 15x15.*image_size=15"):
        build("googlenet", (1, 14, 28))
    with torch.device("meta"):
        for shape, settings in (((1, 15, 15), {}), ((1, 8, 8), {"image_size": 15})):
            assert build("googlenet", shape, **settings)(torch.zeros(2, *shape)).shape == (2, 10)
