"""Augmentations that change the target in a way that is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dlrun.data._augmentation import AUGMENTATIONS, Augmentation, build_augmentations
from dlrun.data._base import Samples, Source
from dlrun.data._module import DataModule
from dlrun.data._settings import DataSettings
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

CPU = torch.device("cpu")
HEADS = '''
import torch

from dlrun.data import DATASETS
from dlrun.data._base import Samples, Source
from dlrun.spec import TargetSpec


@DATASETS.register("heads")
class Heads(Source):
    """Images of a bar that looks left or right, with the angle and the height."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def train(self):
        yaw = 80 * torch.rand(400, generator=self.generator) - 20  # more to the right than to the left
        column = torch.arange(9.0).view(1, 1, 1, 9)
        pictures = torch.exp(-((column - 4 - yaw.view(-1, 1, 1, 1) / 15) ** 2)).expand(400, 1, 3, 9)
        return Samples((pictures * 255).round().to(torch.uint8), yaw[:, None]), TargetSpec("real", 1, ("yaw",))
'''


class Heads(Source):
    """Random images with two real targets, yaw and pitch, of means far from 0."""

    def train(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (400, 1, 4, 6), dtype=torch.uint8, generator=generator)
        return Samples(images, torch.randn(400, 2, generator=generator) * 20 + 7), TargetSpec(
            "real", 2, ("yaw", "pitch")
        )


def module(**flip) -> DataModule:
    settings = DataSettings(augmentation={"flip": flip} if flip else None, normalize="unit", batch_size=64)
    return DataModule(Heads(), settings, seed=0, device=CPU)


@pytest.mark.curriculum("D11")
@pytest.mark.parametrize("number", [0, 1])
def test_a_flip_negates_the_target(number):
    """In original units each training sample is (image, y) as it was or, for half of them, (mirror image, y with the sign of
    one target changed); validation samples are as they were."""
    data, plain = module(negate_target=number), module(p=0.0)
    target = data.spec.target
    mean, std = torch.tensor(target.mean), torch.tensor(target.std)
    sign = torch.ones(2)
    sign[number] = -1
    mirrored = 0
    for ours, theirs in zip(data.epoch(0), plain.epoch(0), strict=True):
        changed = (ours.inputs == theirs.inputs.flip(3)).flatten(1).all(1)
        expected = torch.where(changed[:, None], theirs.inputs.flip(3).flatten(1), theirs.inputs.flatten(1))
        assert torch.equal(ours.inputs.flatten(1), expected)
        before, after = theirs.targets * std + mean, ours.targets * std + mean
        torch.testing.assert_close(after, torch.where(changed[:, None], before * sign, before), atol=1e-4, rtol=1e-5)
        assert torch.equal(ours.targets[~changed], theirs.targets[~changed])
        mirrored += int(changed.sum())
    assert 0.4 < mirrored / data.spec.num_train < 0.6
    for ours, theirs in zip(data.split("val"), plain.split("val"), strict=True):
        assert torch.equal(ours.targets, theirs.targets)


def test_without_it_targets_are_left_alone():
    """A plain flip draws the same mirror images and touches no target."""
    for ours, theirs, plain in zip(
        module(negate_target=0).epoch(1), module(p=0.5).epoch(1), module().epoch(1), strict=True
    ):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(theirs.targets, plain.targets)


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_stored_targets_are_not_changed(loader):
    """Every epoch starts from the targets as they are, from any minibatch on, with either loader."""
    settings = DataSettings(
        augmentation={"flip": {"p": 1.0, "negate_target": 0}}, batch_size=64, loader=loader, workers=0
    )
    data = DataModule(Heads(), settings, seed=0, device=CPU)
    first, second = (
        {int(i): t for b in data.epoch(e) for i, t in zip(b.indices, b.targets, strict=True)} for e in (0, 1)
    )
    assert all(torch.equal(first[i], second[i]) for i in first)
    for ours, theirs in zip(data.epoch(2, 3), list(data.epoch(2))[3:], strict=True):
        assert torch.equal(ours.targets, theirs.targets)


def test_labels_of_minus_and_plus_one():
    """The label -1 or +1 of a mirrored image is the other one."""
    flip = build_augmentations({"flip": {"p": 1.0, "negate_target": 0}}, (1, 2, 3), TargetSpec("sign", 1))[0][1]
    given = torch.tensor([[1.0], [-1.0]])
    _, targets = flip.with_targets(torch.rand(2, 1, 2, 3), given, torch.zeros(2, dtype=torch.int32))
    assert targets.tolist() == [[-1.0], [1.0]]
    assert given.tolist() == [[1.0], [-1.0]]


def test_an_augmentation_without_the_hook_leaves_targets():
    """The default of the hook gives the very targets it got."""

    class Plus(Augmentation):
        def __call__(self, inputs, key):
            return inputs + 1

    targets = torch.arange(3)
    inputs, same = Plus().with_targets(torch.zeros(3, 2), targets, torch.zeros(2, dtype=torch.int32))
    assert same is targets
    assert torch.equal(inputs, torch.ones(3, 2))


def test_a_plain_function_serves_as_well(monkeypatch):
    """What a user registers need not be a class of ours: a function of inputs and key leaves targets alone."""

    def double(input_shape):
        return lambda inputs, key: inputs * 2

    monkeypatch.setitem(AUGMENTATIONS._entries, "double", double)
    built = build_augmentations({"double": {"import": "math"}}, (1, 2, 2))[0][1]
    inputs, targets = built.with_targets(torch.ones(3, 1, 2, 2), torch.arange(3), torch.zeros(2, dtype=torch.int32))
    assert (inputs == 2).all()
    assert targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("target", "number", "message"),
    [
        (TargetSpec("class", 3), 0, r"negate_target: got 0; needs real or sign targets, .* but they are class$"),
        (TargetSpec("non_negative", 1), 0, r"but they are non_negative$"),
        (
            TargetSpec("real", 2, (), (0.0, 0.0), (1.0, 1.0)),
            2,
            r"negate_target: got 2; expected 0 to 1, as the data have 2 targets",
        ),
        (TargetSpec("real", 1), -1, r"data\.augmentation\.flip\.negate_target: got -1"),
        (None, 0, r"but they are unknown$"),
    ],
)
def test_targets_without_that_sign_are_refused(target, number, message):
    """Classes have no sign, and a target must be there: one line."""
    with pytest.raises(ConfigError, match=message):
        build_augmentations({"flip": {"negate_target": number}}, (1, 4, 4), target)


@pytest.mark.curriculum("D11")
def test_mirrored_heads_are_learnt(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On images that look left or right, flips that change the sign of the angle leave it learnable; flips that do not, teach
    nonsense."""
    (tmp_path / "own_heads.py").write_text(HEADS)
    (tmp_path / "mine" / "data").mkdir(parents=True)
    text = "defaults:\n  - _common\n  - _self_\nname: heads\nimport: own_heads\nbatch_size: 32\n"
    (tmp_path / "mine" / "data" / "heads.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("--config-dir", "mine", "data=heads", "model=linear", "optimizer.lr=0.03", "trainer.epochs=20", "device=cpu",
             "callbacks=none")  # fmt: skip
    rmse = {}
    for name, flip in (("plain", "null"), ("negated", "{flip: {negate_target: 0}}"), ("wrong", "{flip: {}}")):
        done = cli(*words, f"data.augmentation={flip}", f"hydra.run.dir={name}")
        assert done.rc == 0, done.stderr
        rmse[name] = json.loads((tmp_path / name / "results.json").read_text())["metrics"]["test"]["rmse"]
    assert rmse["negated"] < 2 < 5 < rmse["wrong"], rmse
    done = cli(*words, "data.augmentation={flip: {negate_target: 1}}")
    assert (done.rc, done.stderr.strip().splitlines()) == (
        1,
        ["dlrun: data.augmentation.flip.negate_target: got 1; expected 0 to 0, as the data have 1 target"],
    )
