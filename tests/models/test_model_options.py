"""Every model option: the YAML equals the signature, it builds on the meta device, composes, and trains."""

import math
import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from dlrun.models import MODELS
from dlrun.models._dropout import has_foreign_randomness, set_keys
from dlrun.models._summary import count_parameters, summarize
from dlrun.registry import ConfigError
from dlrun.settings import config_dir, options

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8), (20,), (3, 224, 224), (3, 7, 5)]
SMALL = ["linear", "mlp", "lenet", "cnn", "resnet20", "autoencoder", "autoencoder_conv"]


def node(option):
    found = OmegaConf.to_container(OmegaConf.load(config_dir() / "model" / f"{option}.yaml"))
    found.pop("defaults", None)
    return found


def build(option, shape, **settings):
    outputs = math.prod(shape) if option.startswith("autoencoder") else 10
    return MODELS.build({**node(option), **settings}, input_shape=shape, num_outputs=outputs), outputs


def test_every_registered_model_has_an_option():
    """And every option names a registered model."""
    assert {node(option)["name"] for option in options("model")} == set(MODELS.names())


@pytest.mark.parametrize("option", options("model"))
def test_yaml_lists_exactly_the_settings(option):
    """The YAML has every setting and no other, with a first line that says how to run it."""
    given = node(option)
    assert set(given) == {"name", *MODELS.settings(given["name"])}
    text = (config_dir() / "model" / f"{option}.yaml").read_text()
    command = re.search(rf"dlrun [^\n]*model={option}\b", "\n".join(text.splitlines()[:3]))
    assert text.startswith("# ")
    assert command


@pytest.mark.parametrize(
    "option", ["linear", "mlp", "lenet", "cnn", "resnet20", "resnet18", "alexnet", "vgg16", "autoencoder"]
)
def test_yaml_values_are_the_defaults(option):
    """What the main option of a model writes down is what the signature has."""
    assert MODELS.check(node(option)) == MODELS.check({"name": node(option)["name"]})


@pytest.mark.parametrize("option", options("model"))
def test_option_builds_on_the_meta_device_for_every_shape(option):
    """It maps (N, *input_shape) to (N, num_outputs) or refuses the data in one line."""
    taken, refusals = 0, []
    for shape in SHAPES:
        try:
            with torch.device("meta"):
                model, outputs = build(option, shape)
        except ConfigError as error:
            refusals.append(str(error))
            continue
        assert model.eval()(torch.zeros(2, *shape, device="meta")).shape == (2, outputs)
        assert not has_foreign_randomness(model)
        taken += 1
    assert taken >= 1
    assert all(re.fullmatch(r"model\.\w+: [^\n]* needs images [^\n]*", line) for line in refusals)


@pytest.mark.parametrize("option", options("model"))
def test_option_composes(option):
    """The whole configuration with this model composes, and its model node passes the check."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("config", overrides=[f"model={option}"])
    MODELS.check(OmegaConf.to_container(config.model))
    tasks = {"autoencoder": "reconstruction", "autoencoder_conv": "reconstruction", "gaussian": "density"}
    assert config.task.name == tasks.get(option, "supervised")


@pytest.mark.parametrize(("owner", "value"), [("dropout", 0.5), ("batch_norm", True)])
def test_regularization_sets_the_models_own_setting(owner, value):
    """A model that has the setting gets it; one that has not is refused with those that have."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = compose("config", overrides=["model=mlp", f"regularization=[{owner}]"])
        other = compose("config", overrides=["model=linear", f"regularization=[{owner}]"])
    assert MODELS.check(OmegaConf.to_container(config.model))[owner] == value
    with pytest.raises(
        ConfigError, match=rf"^model\.{owner}: linear has no such setting; these have: .*lenet, (\w+, )*mlp"
    ):
        MODELS.check(OmegaConf.to_container(other.model))


@pytest.mark.parametrize("option", SMALL)
def test_small_option_trains_and_round_trips(option):
    """Two steps lower the loss on one batch, every parameter has a gradient, and a loaded copy computes the same."""
    torch.manual_seed(0)
    model, outputs = build(option, (1, 8, 8))
    x, target = torch.randn(16, 1, 8, 8), torch.randn(16, outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = (model(x) - target).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    twin, _ = build(option, (1, 8, 8))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("option", "settings"),
    [(o, {}) for o in SMALL]
    + [("autoencoder", {"tied": True}), ("autoencoder_conv", {"tied": True})]
    + [("mlp", {"dropout": 0.5, "batch_norm": True}), ("lenet", {"dropout": 0.5, "batch_norm": True, "pool": "lp"})],
)
def test_stacked_gradients_equal_lone_ones(option, settings):
    """vmap over grad of functional_call gives each member the gradient it has alone, in float64."""
    torch.manual_seed(0)
    models = [build(option, (1, 8, 8), **settings)[0].double().train() for _ in range(2)]
    for seed, model in enumerate(models):
        set_keys(model, seed, 1)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    parameters, buffers = stack_module_state(models)

    def loss(p, b):
        return functional_call(models[0], (p, b), (x,)).square().mean()

    stacked = vmap(grad(loss))(parameters, {n: b.clone() for n, b in buffers.items()})
    for i, model in enumerate(models):
        model(x).square().mean().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(stacked[name][i], parameter.grad, atol=1e-10, rtol=1e-8)


@pytest.mark.curriculum("M44", "P33", "H09", "H10")
def test_counts_of_a_filter_and_of_a_dense_layer():
    """A 1x2 filter on 280x320 pixels needs 2 weights and 2*89,320 multiplications, a dense layer 8.003e9 weights."""
    with torch.device("meta"):
        filtered = summarize(nn.Sequential(nn.Conv2d(1, 1, (1, 2), bias=False)), (1, 280, 320))
        dense = summarize(nn.Sequential(nn.Flatten(), nn.Linear(280 * 320, 280 * 319, bias=False)), (1, 280, 320))
    assert math.prod(filtered.layers[0].output_shape) == 89_320
    assert (filtered.parameters, filtered.macs) == (2, 178_640)
    assert dense.parameters == dense.macs == 8_003_072_000


def test_summary_counts_shared_weights_once_and_frozen_ones_apart():
    """Totals equal the sum over layers and PyTorch's own count; the model itself stays as it was."""
    model, _ = build("autoencoder_conv", (1, 28, 28), tied=True)
    model.encoder[0].weight.requires_grad = False
    summary = summarize(model, (1, 28, 28))
    assert summary.parameters == sum(row.parameters for row in summary.layers) == count_parameters(model)
    assert summary.parameters - summary.trainable == model.encoder[0].weight.numel()
    assert summary.macs == sum(row.macs for row in summary.layers)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"
