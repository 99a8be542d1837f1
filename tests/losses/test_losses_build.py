"""Choice of the loss: `auto`, impossible pairs, settings, and the YAML files."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from dlrun.losses import DEFAULT_LOSS, LOSSES
from dlrun.losses._build import build_loss, check_loss, fitting
from dlrun.registry import ConfigError
from dlrun.settings import config_dir, options
from dlrun.spec import CLASS_KINDS, REAL_KINDS, TargetSpec


@pytest.mark.parametrize("kind", sorted(CLASS_KINDS | REAL_KINDS))
def test_auto_fits_every_kind(kind):
    """Every kind of target has a default loss, and that loss accepts it."""
    loss = build_loss({"name": "auto"}, TargetSpec(kind, 1 if kind in ("binary", "sign") else 3))
    assert loss.name == DEFAULT_LOSS[kind]
    assert loss.name in fitting(kind)


def test_names_are_those_of_the_registry():
    """Every class carries the name it is registered under."""
    for name in LOSSES.names():
        assert LOSSES.get(name).name == name


def test_auto_without_target():
    """Data without targets has no default loss; the message names the way out."""
    with pytest.raises(ConfigError, match="task=reconstruction"):
        build_loss({"name": "auto"}, TargetSpec("none", 0))


@pytest.mark.curriculum("L17")
@pytest.mark.parametrize(
    ("kind", "size", "name", "settings", "outputs"),
    [
        ("class", 10, "ce", {}, 10),
        ("binary", 1, "ce", {}, 2),
        ("binary", 1, "bce", {}, 1),
        ("multi_hot", 5, "bce", {}, 5),
        ("real", 3, "l2", {}, 3),
        ("real", 3, "gaussian_nll", {}, 6),
        ("real", 3, "gaussian_nll", {"variance": "isotropic"}, 4),
        ("real", 3, "gaussian_full_nll", {}, 9),
        ("non_negative", 3, "exponential_nll", {}, 3),
        ("class", 4, "hinge", {}, 4),
        ("sign", 1, "perceptron", {}, 1),
    ],
)
def test_number_of_outputs(kind, size, name, settings, outputs):
    """A loss says how many raw outputs the network must give."""
    assert build_loss({"name": name, **settings}, TargetSpec(kind, size)).num_outputs == outputs


def test_impossible_pair_names_those_that_fit():
    """Cross-entropy on real targets is refused with the losses that fit."""
    with pytest.raises(ConfigError) as error:
        build_loss({"name": "ce"}, TargetSpec("real", 1))
    assert str(error.value).splitlines() == [
        "loss.name: 'ce' does not fit a target of kind 'real'; these fit: gaussian_full_nll, gaussian_nll, l2"
    ]


@pytest.mark.parametrize(("size", "full"), [(89, True), (90, False)])
def test_losses_that_are_named_take_the_size(size: int, full: bool) -> None:
    """A full covariance of 89 dimensions needs 89 * 92 / 2 = 4,094 outputs, of 90 it needs 4,185, too many: then the loss is
    not named."""
    target = TargetSpec("real", size)
    with pytest.raises(ConfigError) as refused:
        build_loss({"name": "ce"}, target)
    named = str(refused.value).partition("these fit: ")[2].split(", ")
    assert named == ["gaussian_full_nll"] * full + ["gaussian_nll", "l2"]
    for name in named:
        build_loss({"name": name}, target)
    if not full:
        with pytest.raises(
            ConfigError, match=r"needs 4185 outputs per sample for 90 dimensions, at most 4096 are allowed"
        ):
            build_loss({"name": "gaussian_full_nll"}, target)


def test_negative_targets_are_for_other_losses():
    """The exponential likelihood takes no kind of target that may be negative."""
    assert LOSSES.get("exponential_nll").kinds == {"non_negative"}


def test_auto_passes_label_smoothing_on():
    """`auto` with label smoothing is a smoothed cross-entropy for classes, and refused where the loss has none."""
    node = {"name": "auto", "label_smoothing": 0.1}
    check_loss(node)
    assert build_loss(node, TargetSpec("class", 3)).label_smoothing == 0.1
    with pytest.raises(ConfigError, match=r"loss\.label_smoothing: l2 has no such setting; these have: ce"):
        build_loss(node, TargetSpec("real", 1))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "cee"}, "loss.name: unknown 'cee'"),
        ({"name": "ce", "label_smoothing": 1.0}, "loss.label_smoothing: got 1.0; expected float >= 0 and < 1"),
        ({"name": "auto", "label_smoothing": 1.0}, "loss.label_smoothing: got 1.0"),
        ({"name": "auto", "label_smothing": 0.1}, "did you mean 'label_smoothing'?"),
        (
            {"name": "auto", "variance": "isotropic"},
            "loss.variance: auto has no such setting; these have: gaussian_nll",
        ),
        ({"name": "l2", "label_smoothing": 0.1}, "l2 has no such setting; these have: ce"),
        ({"name": "gaussian_nll", "variance": "isotropc"}, "did you mean 'isotropic'?"),
        ({"name": "gaussian_nll", "min_variance": 0.0}, "expected float > 0"),
        ({"name": "l2", "reduction": "none"}, "loss.reduction: got 'none'; expected 'mean' or 'sum'"),
        ({"name": "auto", "reduction": "summ"}, "did you mean 'sum'?"),
    ],
)
def test_wrong_settings_are_found_without_data(node, message):
    """`check_loss` refuses a wrong node in one line."""
    with pytest.raises(ConfigError) as error:
        check_loss(node)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", options("loss"))
def test_yaml_equals_signature(option):
    """Every YAML of the group is checked and lists each setting with its default."""
    node = OmegaConf.to_container(OmegaConf.load(config_dir() / "loss" / f"{option}.yaml"))
    check_loss(node)
    if option != "auto":
        defaults = {name: setting.default for name, setting in LOSSES.settings(node["name"]).items()}
        assert node == {"name": option, **defaults}


def test_every_loss_has_a_yaml():
    """The options are the registered losses and `auto`."""
    assert set(options("loss")) == {"auto", *LOSSES.names()}


def test_label_smoothing_option_sets_an_existing_setting():
    """The regularization's YAML changes the loss that has the setting."""
    file = config_dir() / "regularization" / "label_smoothing.yaml"
    assert file.read_text().startswith("# @package _global_\n")
    node = OmegaConf.to_container(OmegaConf.load(file))
    check_loss({"name": "ce", **node["loss"]})
    assert node["loss"]["label_smoothing"] > 0
