"""The tasks: what they predict, which models they take, and what a step gives back."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from dlrun.losses._build import build_loss
from dlrun.models.constant import Constant
from dlrun.registry import ConfigError
from dlrun.settings import config_dir, options
from dlrun.spec import Batch, DataSpec, TargetSpec
from dlrun.streams import Stream
from dlrun.tasks import TASKS

STREAM = Stream(0, "task")


def data_spec(shape, target, mean, std):
    return DataSpec(shape, target, num_train=8, num_val=2, num_test=2, mean=mean, std=std)


def build(name, data, loss="auto"):
    """A task with its loss, as the builder makes them."""
    task = TASKS.build({"name": name}, data=data)
    task.loss = build_loss({"name": loss}, task.target())
    return task


class Coder(nn.Module):
    """A linear autoencoder that gives its outputs in the shape of the inputs."""

    def __init__(self, size):
        super().__init__()
        self.down, self.up = nn.Linear(size, 2), nn.Linear(2, size)

    def encode(self, inputs):
        return self.down(inputs.flatten(1))

    def decode(self, code):
        return self.up(code)

    def forward(self, inputs):
        return self.decode(self.encode(inputs)).view_as(inputs)


IMAGES = data_spec((2, 3, 3), TargetSpec("class", 4), mean=(0.5, 0.2), std=(0.25, 0.1))
VECTORS = data_spec((5,), TargetSpec("none", 0), mean=(1.0,) * 5, std=(2.0,) * 5)


@pytest.mark.curriculum("T01")
def test_supervised_step():
    """The loss of the model's outputs on the data's targets, differentiable, with nothing else to log."""
    task, model = build("supervised", IMAGES), nn.Sequential(nn.Flatten(), nn.Linear(18, 4))
    batch = Batch(torch.randn(8, 2, 3, 3), torch.randint(4, (8,)), torch.arange(8))
    task.check_model(model)
    result = task(model, batch, STREAM)
    assert task.target() is IMAGES.target
    torch.testing.assert_close(result.outputs, model(batch.inputs))
    torch.testing.assert_close(result.loss, nn.functional.cross_entropy(result.outputs, batch.targets))
    assert result.targets is batch.targets
    assert result.parts == {}
    result.loss.backward()
    assert model[1].weight.grad.abs().sum() > 0


@pytest.mark.curriculum("L17")
def test_no_double_softmax():
    """A classifier that ends in a softmax is refused, one with a softmax inside is not."""
    task = build("supervised", IMAGES)
    task.check_model(nn.Sequential(nn.Flatten(), nn.Linear(18, 9), nn.Softmax(1), nn.Linear(9, 4)))
    with pytest.raises(ConfigError, match="ends in Softmax"):
        task.check_model(nn.Sequential(nn.Linear(18, 4), nn.Softmax(1)))


@pytest.mark.parametrize(("name", "fitting"), [("supervised", nn.Linear(18, 4)), ("reconstruction", Coder(18))])
def test_outputs_must_fit_the_loss(name, fitting):
    """A model whose outputs have another shape than the loss needs is refused by name, and is left in training mode."""
    task = build(name, IMAGES)
    model = nn.Sequential(nn.Flatten(), fitting) if name == "supervised" else fitting
    task.check_model(model)
    assert model.training
    wrong = nn.Linear(3, 4) if name == "supervised" else Coder(18)
    if name == "reconstruction":
        wrong.up = nn.Linear(2, 36)
        wrong.forward = lambda inputs: wrong.decode(wrong.encode(inputs))
    shape = (
        r"\(1, 2, 3, 4\); the loss needs \(1, 4\)" if name == "supervised" else r"\(1, 36\); the loss needs \(1, 18\)"
    )
    with pytest.raises(ConfigError, match=rf"^model: {type(wrong).__name__} gives outputs of shape {shape}$"):
        task.check_model(wrong)


@pytest.mark.curriculum("L22", "U10")
@pytest.mark.parametrize("loss", ["l2", "bce"])
def test_reconstruction_of_images(loss):
    """The target is the pixels in [0, 1] behind the normalised inputs, the outputs are flattened to match."""
    task, model = build("reconstruction", IMAGES, loss), Coder(18)
    pixels = torch.rand(8, 2, 3, 3)
    mean, std = (torch.tensor(v).view(2, 1, 1) for v in (IMAGES.mean, IMAGES.std))
    batch = Batch((pixels - mean) / std, torch.zeros(8, dtype=torch.long), torch.arange(8))
    task.check_model(model)
    result = task(model, batch, STREAM)
    assert (task.target().kind, task.target().size, task.loss.num_outputs) == ("unit", 18, 18)
    torch.testing.assert_close(result.targets, pixels.flatten(1))
    assert result.outputs.shape == (8, 18)
    torch.testing.assert_close(result.loss, task.loss(model(batch.inputs).flatten(1), pixels.flatten(1)))
    result.loss.backward()


def test_pixels_stay_in_the_unit_interval():
    """Inputs that augmentation drove outside give targets clamped to [0, 1]."""
    task = build("reconstruction", IMAGES)
    targets = task.targets_of(torch.tensor([-100.0, 100.0, 0.0]).view(3, 1, 1, 1).expand(3, 2, 3, 3))
    assert targets[0].unique().tolist() == [0.0]
    assert targets[1].unique().tolist() == [1.0]
    assert targets[2].unique().tolist() == pytest.approx([0.2, 0.5])


def test_reconstruction_of_vectors():
    """Vectors are predicted as the network sees them, and data without targets will do."""
    task, inputs = build("reconstruction", VECTORS), torch.randn(8, 5)
    result = task(Coder(5), Batch(inputs, torch.zeros(8, 0), torch.arange(8)), STREAM)
    assert (task.target().kind, task.target().size, task.loss.name) == ("real", 5, "l2")
    assert (task.target().mean, task.target().std) == (VECTORS.mean, VECTORS.std)  # rmse is in original units
    assert torch.equal(result.targets, inputs)
    torch.testing.assert_close(result.loss, (result.outputs - inputs).square().sum(1).mean())


def test_reconstruction_needs_an_autoencoder():
    """A model without encode and decode is refused by name."""
    with pytest.raises(ConfigError, match="needs a model with encode and decode, Linear has none") as error:
        build("reconstruction", IMAGES).check_model(nn.Linear(18, 18))
    assert "\n" not in str(error.value)


@pytest.mark.curriculum("T12")
def test_density_of_images_and_vectors():
    """The target is the inputs as the network sees them, flattened, each channel's statistics repeated for its pixels."""
    task = build("density", IMAGES)
    target = task.target()
    assert (target.kind, target.size, task.loss.name) == ("real", 18, "l2")
    assert (target.mean, target.std) == ((0.5,) * 9 + (0.2,) * 9, (0.25,) * 9 + (0.1,) * 9)
    model, inputs = Constant((2, 3, 3), 18), torch.randn(8, 2, 3, 3)
    task.check_model(model)
    result = task(model, Batch(inputs, torch.zeros(8, dtype=torch.long), torch.arange(8)), STREAM)
    assert torch.equal(result.targets, inputs.flatten(1))
    torch.testing.assert_close(result.loss, (inputs.flatten(1) - model.outputs).square().sum(1).mean())
    target = build("density", VECTORS).target()
    assert (target.size, target.mean, target.std) == (5, VECTORS.mean, VECTORS.std)


def test_density_needs_outputs_that_ignore_the_inputs():
    """A network that sees what it predicts is refused by name, and so is a number of outputs that does not fit."""
    with pytest.raises(ConfigError, match=r"same for all inputs, Linear is none; these fit: constant$"):
        build("density", VECTORS).check_model(nn.Linear(5, 5))
    with pytest.raises(
        ConfigError, match=r"^model: Constant gives outputs of shape \(1, 4\); the loss needs \(1, 5\)$"
    ):
        build("density", VECTORS).check_model(Constant((5,), 4))


@pytest.mark.parametrize("name", TASKS.names())
def test_tasks_hold_no_state(name):
    """The same step twice gives the same loss: a task carries nothing from step to step."""
    data = IMAGES
    task, model = build(name, data), Coder(18)
    if name == "supervised":
        model = nn.Sequential(nn.Flatten(), nn.Linear(18, 4))
    if name == "density":
        model = Constant(data.input_shape, 18)
    batch = Batch(torch.randn(8, 2, 3, 3), torch.randint(4, (8,)), torch.arange(8))
    assert torch.equal(task(model, batch, STREAM).loss, task(model, batch, STREAM).loss)


@pytest.mark.parametrize("option", options("task"))
def test_task_yaml_equals_signature(option):
    """Every YAML of the group names a task and lists each setting with its default."""
    node = OmegaConf.to_container(OmegaConf.load(config_dir() / "task" / f"{option}.yaml"))
    TASKS.check(node)
    assert node == {"name": node["name"], **{n: s.default for n, s in TASKS.settings(node["name"]).items()}}
