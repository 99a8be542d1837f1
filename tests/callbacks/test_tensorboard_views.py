"""Histograms and pictures: what they show is what is there."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from torch import nn

from dlrun.callbacks._confusion import confusion_picture
from dlrun.callbacks._gallery import of_training
from dlrun.callbacks._histograms import MOST_VALUES, histogram
from dlrun.callbacks._layers import gradients, observed_layers, saturated_share, weights_and_activations
from dlrun.callbacks._observe import find_mistakes, undisturbed
from dlrun.callbacks._pictures import filters, for_display, grid
from dlrun.callbacks.tensorboard import TensorBoard
from dlrun.spec import TargetSpec
from dlrun.streams import Stream


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_histogram_equals_numpys(scale):
    """Counts, edges and moments agree with numpy in double precision."""
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * scale
    found = histogram(values.view(10, 100))
    counts, edges = np.histogram(values.double().numpy(), bins=64)
    assert found.bucket == pytest.approx(counts.tolist(), abs=1)  # a value on an edge may fall on either side
    assert sum(found.bucket) == found.num == 1000
    assert found.bucket_limit == pytest.approx(edges[1:].tolist(), rel=1e-6, abs=1e-6 * scale)
    assert found.min == values.min().item()
    assert found.sum_squares == pytest.approx(float((values.double() ** 2).sum()), rel=1e-9)
    assert torch.equal(
        values, torch.randn(1000, generator=torch.Generator().manual_seed(0)) * scale
    )  # left as they are


def test_histograms_of_odd_tensors():
    """A constant is one bar; NaN and infinity are left out; nothing finite is no histogram; large ones are thinned."""
    constant = histogram(torch.full((5,), 2.0))
    assert (constant.bucket, constant.min, constant.max) == ([5.0], 2.0, 2.0)
    assert histogram(torch.tensor([1.0, math.nan, math.inf, 3.0])).num == 2
    assert histogram(torch.tensor([math.nan])) is None
    assert histogram(torch.empty(0)) is None
    large = histogram(torch.arange(3 * MOST_VALUES + 1, dtype=torch.float32))
    assert large.num <= MOST_VALUES
    assert large.sum / large.num == pytest.approx(1.5 * MOST_VALUES, rel=1e-3)


def deep_network(activation: type[nn.Module], depth: int, glorot: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(64, 64), activation()]
    model = nn.Sequential(*layers, nn.Linear(64, 3))
    for module in model.modules():
        if isinstance(module, nn.Linear) and glorot:
            nn.init.xavier_uniform_(module.weight)
    return model


def gradient_ratio(run) -> float:
    """std of the first layer's gradients / std of the last hidden layer's, from the histograms alone."""
    batch = next(run.data.epoch(0))
    run.task(run.model, batch, Stream(0, "task")).loss.backward()
    found = list(gradients(run.model).histograms.values())
    deviations = [math.sqrt(h.sum_squares / h.num - (h.sum / h.num) ** 2) for h in found]
    return deviations[0] / deviations[-2]


@pytest.mark.curriculum("P12")
def test_gradient_histograms_show_vanishing_gradients(new_run):
    """Deep sigmoid: std(layer 1)/std(last) < 1e-2; ReLU with Glorot within a factor of 10."""
    assert gradient_ratio(new_run(deep_network(nn.Sigmoid, 6, glorot=False))) < 1e-2
    assert 0.1 < gradient_ratio(new_run(deep_network(nn.ReLU, 6, glorot=True))) < 10


@pytest.mark.curriculum("O24")
def test_the_gradient_norm_of_every_layer_is_that_of_its_gradient(new_run):
    """Norms per layer, by weight name, biases and norm layers left out."""
    run = new_run()
    run.task(run.model, next(run.data.epoch(0)), Stream(0, "task")).loss.backward()
    views = gradients(run.model)
    assert list(views.scalars) == [f"gradient_norm/{i}.weight" for i in (0, 5, 8)]
    assert views.scalars["gradient_norm/5.weight"] == pytest.approx(run.model[5].weight.grad.norm().item())


@pytest.mark.curriculum("M20")
def test_saturation_is_the_share_of_units_at_the_flat_end(new_run):
    """About half of the ReLUs are zero at initialisation; literals for tanh and sigmoid."""
    run = new_run(deep_network(nn.ReLU, 2, glorot=True))
    views = weights_and_activations(run, next(run.data.split("val")))
    assert views.scalars["saturation/2"] == pytest.approx(0.5, abs=0.1)
    assert set(views.histograms) >= {"weights/1.weight", "activations/1", "activations/2"}
    assert saturated_share(nn.ReLU(), torch.tensor([0.0, 0.0, 1.0, 2.0])) == 0.5
    assert saturated_share(nn.Tanh(), torch.tensor([-0.995, 0.0, 0.98, 1.0])) == 0.5
    assert saturated_share(nn.Sigmoid(), torch.tensor([0.004, 0.5, 0.996, 0.99])) == 0.5
    assert saturated_share(nn.Linear(1, 1), torch.zeros(1)) is None


def test_activations_are_seen_before_an_activation_in_place_overwrites_them():
    """The outputs of a layer before an in-place ReLU have negative values."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True))
    seen = {}
    with torch.no_grad(), observed_layers(model, lambda name, layer, output: seen.update({name: output.min().item()})):
        model(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))
    assert seen["0"] < 0 == seen["1"]


def test_a_look_at_the_model_leaves_no_trace():
    """Batch-norm statistics, every layer's mode and the random state are as before, also after an error."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.BatchNorm1d(2).eval())
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with contextlib.suppress(KeyError), undisturbed(model, torch.device("cpu")):
        model(torch.randn(5, 2))
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_mistakes_equal_scikit_learns_confusion_matrix(new_run):
    """Counts agree with scikit-learn; the samples kept are the first that are wrong, with their classes."""
    run = new_run()
    found = find_mistakes(run, 5)
    inputs, targets = run.data.samples["val"]
    run.model.eval()
    predicted = run.model(inputs).argmax(1)
    assert found.confusion.tolist() == confusion_matrix(targets, predicted, labels=[0, 1, 2]).tolist()
    wrong = (predicted != targets).nonzero().flatten()[:5]
    assert torch.equal(torch.stack(found.inputs), inputs[wrong])
    assert found.captions == list(zip(targets[wrong].tolist(), predicted[wrong].tolist(), strict=True))


def test_mistakes_are_those_of_the_validation_that_took_place(new_run, fit, monkeypatch):
    """The trainer's own pass over the validation split is enough, whatever weights it was with; without one, another pass
    finds the same."""
    run = new_run(epochs=1)
    shown, passes = [], []
    monkeypatch.setattr("dlrun.callbacks._gallery.mistakes", lambda run, found: shown.append(found) or {})
    monkeypatch.setattr("dlrun.callbacks._gallery.find_mistakes", lambda *a: passes.append(a) or find_mistakes(*a))
    fit(run, [TensorBoard(images_every_epochs=1, images=3)])
    again = TensorBoard(images_every_epochs=1, images=3)
    again.on_fit_start(run)
    again.on_fit_end(run)
    (one, other) = shown
    assert len(passes) == 1
    assert one.confusion.sum() == 40
    assert torch.equal(one.confusion, other.confusion)
    assert (one.captions, len(one.inputs)) == (other.captions, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True))


@pytest.mark.parametrize(("kind", "loss"), [("binary", "bce"), ("sign", "hinge")])
def test_two_classes_have_a_confusion_matrix_too(kind, loss, new_run):
    """Labels in {0, 1} and {-1, +1} are counted as classes 0 and 1."""
    run = new_run(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), target=TargetSpec(kind, 1), loss=loss)
    low = 0.0 if kind == "binary" else -1.0
    for name, (inputs, targets) in run.data.samples.items():
        run.data.samples[name] = (inputs, torch.where(targets.view(-1, 1) > 0, 1.0, low))
    found = find_mistakes(run, 0)
    _, targets = run.data.samples["val"]
    assert found.confusion.sum(1).tolist() == [int((targets == low).sum()), int((targets == 1).sum())]


def test_the_batch_is_shown_as_the_network_sees_it():
    """Normalisation is undone per channel: (x - mean) / std and back."""
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(for_display(normalised, mean, std), pixels, atol=1e-6)
    sheet = np.asarray(grid(pixels[:1], tile_size=4))
    assert sheet[6:10, 6:10].tolist() == (pixels[0] * 255).round().byte().permute(1, 2, 0).tolist()


@pytest.mark.parametrize(("size", "expected"), [(8, 72), (28, 84), (64, 64), (224, 112), (500, 125)])
def test_tiles_are_neither_tiny_nor_huge(size, expected):
    """Small images are enlarged by a whole factor, large ones halved: a page of photographs stays below a megabyte."""
    assert grid(torch.rand(1, 3, size, size)).width == expected + 2 * 6


@pytest.mark.curriculum("P25")
def test_filters_are_the_first_layers_weights():
    """Zero is mid-grey, the largest weight of each filter is black or white; dense layers show whole images."""
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        conv[0].weight.copy_(torch.tensor([0.0, 2.0, -1.0] * 6).view(2, 1, 3, 3))
    tiles = filters(conv, (1, 8, 8))
    assert tiles.shape == (2, 1, 3, 3)
    assert tiles[0, 0, 0].tolist() == [0.5, 1.0, 0.25]
    assert filters(nn.Linear(3 * 4 * 4, 5), (3, 4, 4)).shape == (5, 3, 4, 4)
    assert filters(nn.Linear(7, 5), (3, 4, 4)) is None
    assert filters(nn.Linear(7, 5), (7,)) is None


@pytest.mark.curriculum("P25")
def test_pictures_come_when_they_are_due(new_run, fit):
    """The batch and untrained filters at step 0, mistakes and filters every second epoch and at the end, as PNG."""
    run = new_run(epochs=3)
    fit(run, [TensorBoard(images_every_epochs=2)])
    events = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    steps = {t: [e.step for e in events.Tensors(t)] for t in events.Tags()["tensors"] if t.startswith("images/")}
    assert steps == {
        "images/training_batch": [0],
        "images/first_layer": [0, 6, 9],
        "images/misclassified": [6, 9],
        "images/confusion": [6, 9],
    }
    histogram_tags = [t for t in events.Tags()["tensors"] if t.split("/")[0] in ("weights", "gradients", "activations")]
    assert "activations/0" in histogram_tags
    for tag in histogram_tags:
        assert [e.step for e in events.Tensors(tag)] == [3, 6, 9]
    width, height, png = tensor_util.make_ndarray(events.Tensors("images/confusion")[0].tensor_proto)[:3]
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (int(width), int(height))


def test_reconstructions_stand_below_their_inputs(new_run):
    """The upper row is the input in [0, 1], the lower row what the model gives."""

    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 64)

        encode = decode = None

        def forward(self, x):
            return 0.0 * self.layer(x.flatten(1)) + 0.5

    run = new_run(Grey(), task="reconstruction", loss="l2")
    sheet = np.asarray(of_training(run, next(run.data.split("val")), 4)["images/reconstructions"])
    size = 72
    inputs = for_display(run.data.samples["val"][0][:1], (0.5,), (0.25,))[0, 0]
    assert sheet[6, 6, 0] == round(inputs[0, 0].item() * 255)
    assert (sheet[12 + size : 12 + 2 * size, 6 : 6 + size] == 128).all()


def test_the_diagonal_of_a_perfect_confusion_matrix_is_dark():
    """Cells are shaded by the share of their row: 1 on the diagonal, 0 elsewhere."""
    picture = confusion_picture(torch.eye(30, dtype=torch.int64) * 7, [str(i) for i in range(30)])
    cell, margin = 600 // 30, 24
    on, off = (margin + 3 * cell + 2, margin + 3 * cell + 2), (margin + 4 * cell + 2, margin + 3 * cell + 2)
    assert (picture.getpixel(on), picture.getpixel(off)) == ((8, 69, 148), (240, 244, 250))


@pytest.mark.cuda
def test_callbacks_work_on_cuda_in_deterministic_mode(new_run):
    """Histograms and confusion counts use no operation that deterministic mode forbids."""
    torch.use_deterministic_algorithms(True)
    try:
        assert histogram(torch.randn(100, device="cuda")).num == 100
        run = new_run()
        run.model.cuda()
        run.device = torch.device("cuda", 0)
        run.data.samples = {k: (x.cuda(), y.cuda()) for k, (x, y) in run.data.samples.items()}
        assert find_mistakes(run, 3).confusion.sum() == 40
    finally:
        torch.use_deterministic_algorithms(False)
