"""torchvision's networks: equal to torchvision's where nothing is adapted, and what adaptation does."""

import urllib.error

import pytest
import torch
from torch import nn

from dlrun.models import MODELS
from dlrun.models._dropout import has_foreign_randomness
from dlrun.models._summary import count_parameters
from dlrun.registry import ConfigError


def build(name, inputs=(3, 224, 224), outputs=1000, **settings):
    return MODELS.build({"name": name, **settings}, input_shape=inputs, num_outputs=outputs)


@pytest.mark.curriculum("M47", "M48", "M49")
@pytest.mark.parametrize(
    ("node", "architecture", "count"),
    [
        ({"name": "alexnet"}, "alexnet", 61_100_840),
        ({"name": "vgg", "depth": 16}, "vgg16", 138_357_544),
        ({"name": "vgg", "depth": 16, "batch_norm": True}, "vgg16_bn", 138_365_992),
        ({"name": "resnet", "depth": 18}, "resnet18", 11_689_512),
        ({"name": "resnet", "depth": 34}, "resnet34", 21_797_672),
        ({"name": "resnet", "depth": 50}, "resnet50", 25_557_032),
        ({"name": "resnet", "depth": 152}, "resnet152", 60_192_808),
    ],
)
def test_parameters_equal_torchvisions(node, architecture, count):
    """Same names, same shapes, and the published number."""
    from torchvision.models import get_model

    with torch.device("meta"):
        ours = MODELS.build(node, input_shape=(3, 224, 224), num_outputs=1000)
        theirs = get_model(architecture, weights=None)
    assert {n.removeprefix("net."): p.shape for n, p in ours.named_parameters()} == {
        n: p.shape for n, p in theirs.named_parameters()
    }
    assert count_parameters(ours) == count
    assert not has_foreign_randomness(ours)


def test_resnet_computes_what_torchvisions_does():
    """With the same weights the outputs are the same."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    ours, theirs = build("resnet", (3, 80, 80), 7).eval(), resnet18(num_classes=7).eval()
    theirs.load_state_dict(ours.net.state_dict())
    x = torch.randn(2, 3, 80, 80)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.curriculum("M48")
def test_vgg_has_only_3x3_kernels():
    """13 convolutions of 3x3 and 3 dense layers."""
    with torch.device("meta"):
        modules = list(build("vgg").modules())
    kernels = [m.kernel_size for m in modules if isinstance(m, nn.Conv2d)]
    assert kernels == [(3, 3)] * 13
    assert sum(isinstance(m, nn.Linear) for m in modules) == 3


@pytest.mark.parametrize(
    ("shape", "stem", "small"),
    [
        ((1, 28, 28), "auto", True),
        ((3, 64, 64), "auto", True),
        ((3, 65, 65), "auto", False),
        ((1, 28, 28), "imagenet", False),
        ((3, 224, 224), "small", True),
    ],
)
def test_resnet_stem(shape, stem, small):
    """auto takes the small stem up to 64x64; the first layer has the channels of the data."""
    with torch.device("meta"):
        net = build("resnet", shape, 10, stem=stem).net
    assert net.conv1.weight.shape == (64, shape[0], *((3, 3) if small else (7, 7)))
    assert isinstance(net.maxpool, nn.Identity) is small


def test_small_images_are_refused_or_enlarged():
    """The error names the setting that enlarges them, and with it they pass."""
    with pytest.raises(
        ConfigError, match=r"^model\.name: alexnet needs images of at least 63x63.*model\.image_size=63"
    ):
        build("alexnet", (1, 28, 28), 10)
    with pytest.raises(ConfigError, match=r"^model\.image_size: got 20; vgg needs at least 32$"):
        build("vgg", (1, 28, 28), 10, image_size=20)
    with torch.device("meta"):
        for name, size in (("alexnet", 63), ("vgg", 32)):
            model = build(name, (1, 28, 28), 10, image_size=size)
            assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.fixture
def cached_resnet(tmp_path, monkeypatch):
    """A weight file in PyTorch's cache, as a download would leave it."""
    from torchvision.models import ResNet18_Weights, resnet18

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    state = resnet18().state_dict()
    (tmp_path / "checkpoints").mkdir()
    torch.save(state, tmp_path / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1])
    return state


def test_pretrained_weights_with_frozen_body(cached_resnet):
    """Body from the file, fresh head, only the head trained, batch-norm statistics kept."""
    model = build("resnet", (1, 28, 28), 5, pretrained=True, freeze=True)
    assert torch.equal(model.net.layer1[0].conv1.weight, cached_resnet["layer1.0.conv1.weight"])
    # a grey image gets the response that its three equal colours would get
    torch.testing.assert_close(model.net.conv1.weight, cached_resnet["conv1.weight"].sum(1, keepdim=True))
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["net.fc.weight", "net.fc.bias"]
    mean = model.net.bn1.running_mean.clone()
    model.train()(torch.randn(2, 1, 28, 28)).sum().backward()
    assert torch.equal(model.net.bn1.running_mean, mean)
    assert model.net.fc.weight.grad.abs().max() > 0
    assert count_parameters(model, trainable_only=True) == 512 * 5 + 5


def test_pretrained_weights_need_the_imagenet_stem():
    """The small stem has no pretrained weights."""
    with pytest.raises(ConfigError, match=r"^model\.stem: got 'small'; pretrained weights need 'imagenet' or 'auto'$"):
        build("resnet", (3, 32, 32), 10, stem="small", pretrained=True)


@pytest.mark.parametrize("broken", ["no network", "not a weight file"])
def test_missing_pretrained_weights_say_what_to_put_where(tmp_path, monkeypatch, broken):
    """The error has the URL and the folder, in one line."""
    from torchvision.models import AlexNet_Weights

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    url = AlexNet_Weights.DEFAULT.url
    if broken == "not a weight file":
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / url.rsplit("/", 1)[1]).write_bytes(b"<html>try again later</html>")
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        build("alexnet", outputs=10, pretrained=True)
    message = str(caught.value)
    assert url in message
    assert str(tmp_path / "checkpoints") in message
    assert "\n" not in message


@pytest.mark.curriculum("M47")
def test_alexnet_features_and_the_published_network():
    """Five convolutions and three dense layers on 256 x 6 x 6 = 9,216 features; the two halves of the published network, whose
    second, fourth and fifth convolutions see half of the maps, would have 60,965,224 parameters."""
    with torch.device("meta"):
        net = build("alexnet").net
        assert net.avgpool(net.features(torch.zeros(1, 3, 224, 224))).flatten(1).shape == (1, 9216)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [type(m) for m in layers] == [nn.Conv2d] * 5 + [nn.Linear] * 3
    maps, dense = [(3, 96, 11, 1), (96, 256, 5, 2), (256, 384, 3, 1), (384, 384, 3, 2), (384, 256, 3, 2)], 9216
    published = sum(c // groups * k * size**2 + k for c, k, size, groups in maps)
    published += sum(a * b + b for a, b in ((dense, 4096), (4096, 4096), (4096, 1000)))
    assert published == 60_965_224
    assert count_parameters(net) == 61_100_840
