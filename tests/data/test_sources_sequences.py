"""Sequences (C, L): waves of several shapes, the adding problem, and how they are normalised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal

from dlrun.data import DATASETS
from dlrun.data._base import Samples, Source
from dlrun.data._module import DataModule, build_data
from dlrun.data._settings import DataSettings
from dlrun.data.signals import SHAPES, wave
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

CPU = torch.device("cpu")


def draw(name: str, seed: int = 0, **settings):
    samples, spec = DATASETS.build({"name": name, **settings}, seed=seed).train()
    return samples.inputs, samples.targets, spec


@pytest.mark.curriculum("T22")
def test_waves_are_those_of_scipy():
    """Sine, square, triangle and sawtooth of any phase equal SciPy's."""
    cycles = torch.linspace(0, 4.99, 997)
    phase = 2 * np.pi * cycles.double().numpy()
    references = [np.sin(phase), signal.square(phase), signal.sawtooth(phase + np.pi / 2, 0.5), signal.sawtooth(phase)]
    for number, reference in enumerate(references):
        found = wave(torch.tensor(number), cycles).numpy()
        smooth = np.abs(np.mod(cycles.numpy() * 2 + 0.01, 1)) > 0.02  # but for the jumps, where rounding decides
        np.testing.assert_allclose(found[smooth], reference[smooth], atol=1e-5)


@pytest.mark.curriculum("T22")
@pytest.mark.parametrize(("channels", "length"), [(1, 64), (3, 40)])
def test_signals_have_their_form(channels, length):
    """(C, L) float32 signals of the length and the channels asked for, the four shapes equally often, the noise as asked."""
    x, y, spec = draw("signals", samples=400, channels=channels, length=length)
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (400, channels, length))
    assert (spec.kind, spec.names, y.bincount().tolist()) == ("class", SHAPES, [100] * 4)
    pure, same, _ = draw("signals", samples=400, channels=channels, length=length, noise=0.0)
    assert torch.equal(y, same)
    assert abs((x - pure).std() - 0.2) < 0.01
    assert 0.5 <= pure.abs().amax((1, 2)).max() <= 1.5
    assert not torch.equal(x, draw("signals", 1, samples=400, channels=channels, length=length)[0])
    assert torch.equal(x, draw("signals", samples=400, channels=channels, length=length)[0])


def test_periods_do_not_depend_on_the_length():
    """Waves have 12 to 24 steps a period on any length: the dominant frequency of a sine tells."""
    for length in (96, 480):
        x, y, _ = draw("signals", samples=400, length=length, noise=0.0)
        spectrum = np.abs(np.fft.rfft(x[y == 0][:, 0].numpy(), n=9600))
        periods = 9600 / spectrum.argmax(1)
        assert 11 < periods.min() < 13.5
        assert 21.5 < periods.max() < 26


@pytest.mark.curriculum("T22")
@pytest.mark.parametrize("length", [2, 3, 50])
def test_adding_problem(length):
    """Two places are marked, one in each half, and the target is the sum of their values, whose variance is 1/6."""
    x, y, spec = draw("adding", samples=4000, length=length)
    assert (x.dtype, tuple(x.shape), tuple(y.shape)) == (torch.float32, (4000, 2, length), (4000, 1))
    values, marks = x[:, 0], x[:, 1]
    half = length // 2
    assert (marks[:, :half].sum(1) == 1).all()
    assert (marks[:, half:].sum(1) == 1).all()
    assert set(marks.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close((values * marks).sum(1, keepdim=True), y)
    assert 0 <= values.min() < values.max() < 1
    assert (spec.kind, spec.names) == ("real", ("sum",))
    assert abs(float(y.mean()) - 1) < 0.03
    assert abs(float(y.var()) - 1 / 6) < 0.015
    assert (marks[:, :half].sum(0) > 0).all()
    assert (marks[:, half:].sum(0) > 0).all()


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_sequences_are_normalised_per_channel(loader):
    """Each channel has training mean 0 and deviation 1 over samples and steps; missing values become 0; new sequences get
    training statistics; with either loader."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, 20, generator=generator) * torch.tensor([1.0, 1e-3, 50.0]).view(1, 3, 1) + 7
    x[:, 2] = 4.0
    x[::5, 0, 3] = float("nan")

    class Given(Source):
        def train(self):
            return Samples(x, torch.zeros(300, 1)), TargetSpec("real", 1)

    data = DataModule(Given(), DataSettings(loader=loader), seed=0, device=CPU)
    assert (data.spec.input_shape, len(data.spec.mean), data.spec.is_image) == ((3, 20), 3, False)
    train = torch.cat([batch.inputs for batch in data.split("train")])
    rows = data.source_rows("train", list(range(len(train))))
    missing = x[rows].isnan()
    assert (train[missing] == 0).all()
    assert (train[:, 2] == 0).all()
    for channel in (0, 1):
        known = train[:, channel][~missing[:, channel]].double()
        assert abs(known.mean()) < 1e-4
        assert abs(known.std(correction=0) - 1) < 1e-4
    val = data.source_rows("val", list(range(data.spec.num_val)))
    assert torch.equal(torch.cat([batch.inputs for batch in data.split("val")]), data.transform(x[val]))
    with pytest.raises(ConfigError, match=r"inputs of shape \(3, 19\) do not fit; expected \(3, 20\)"):
        data.transform(x[:, :, :19])


@pytest.mark.parametrize("name", ["signals", "adding"])
def test_new_sequences_are_read(tmp_path: Path, name):
    """A text table with the values of a sequence per line, channel by channel; a line of another length is refused."""
    source = DATASETS.build({"name": name, "samples": 8, "length": 8}, seed=0)
    x = source.train()[0].inputs[:3]
    (tmp_path / "new.txt").write_text("\n".join(" ".join(map(repr, row)) for row in x.flatten(1).tolist()))
    torch.testing.assert_close(source.read_inputs(tmp_path / "new.txt"), x)
    (tmp_path / "new.txt").write_text("1 2 3\n")
    with pytest.raises(ConfigError, match="line 1: has 3 numbers; expected"):
        source.read_inputs(tmp_path / "new.txt")


@pytest.mark.parametrize(
    "node", [{"name": "signals", "length": 100000, "samples": 10000}, {"name": "adding", "length": 1000, "samples": 10**6},
             {"name": "affine", "features": 5000, "samples": 10**6}],
)  # fmt: skip
def test_sets_that_would_fill_the_memory_are_refused(node):
    """A set is not made where it would take too much: one line with how many values there may be."""
    with pytest.raises(ConfigError, match=r"^data: data\.samples.* make [\d,]+ values; at most 200,000,000$"):
        build_data(node, seed=0, device=CPU)


def test_augmentations_of_sequences():
    """Noise fits sequences; an augmentation of images is refused with what fits."""
    data = build_data({"name": "signals", "samples": 40, "augmentation": {"noise": {}}}, seed=0, device=CPU)
    assert next(iter(data.epoch(0))).inputs.shape[1:] == (1, 64)
    with pytest.raises(
        ConfigError, match=r"flip: needs images, but inputs are sequences of 1 channels; these fit: noise"
    ):
        build_data({"name": "signals", "samples": 40, "augmentation": {"flip": {}}}, seed=0, device=CPU)


@pytest.mark.curriculum("T22")
@pytest.mark.parametrize(
    ("words", "metric", "best"),
    [(("data=signals", "data.noise=0.05"), "accuracy", 0.6), (("data=adding", "data.length=4"), "rmse", 0.3)],
)
def test_a_dense_network_takes_sequences(cli, tmp_path: Path, words, metric, best):
    """Models that flatten their inputs train on sequences from the command line and predict new ones; chance: 0.25 and 0.41."""
    quick = ("model=mlp", "model.hidden=[64]", "optimizer.lr=0.01", "trainer.epochs=8", "device=cpu", "callbacks=none")
    done = cli(*words, *quick, "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["test"][metric]
    assert found > best if metric == "accuracy" else found < best
    (tmp_path / "new.txt").write_text(" ".join(["0.5"] * (64 if metric == "accuracy" else 8)) + "\n")
    done = cli("action=predict", "run=run", "action.input=new.txt")
    assert (done.rc, len((tmp_path / "run" / "predictions.csv").read_text().splitlines())) == (0, 2), done.stderr
