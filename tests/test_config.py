"""The order of the defaults list, and what the composed configuration holds."""

from __future__ import annotations

import yaml

from dlrun.settings import GROUPS, config_dir

REGULARIZED = ("regularization=[l1,dropout]", "model=mlp")


def test_order_of_the_defaults_list() -> None:
    """The order is part of the contract: another one silently loses overrides."""
    defaults = yaml.safe_load((config_dir() / "config.yaml").read_text())["defaults"]
    order = [next(iter(d)) if isinstance(d, dict) else d for d in defaults]
    assert order[: len(GROUPS)] == list(GROUPS)
    assert order[len(GROUPS) : len(GROUPS) + 2] == ["_self_", "experiment"]
    assert {"experiment": None} in defaults


def test_defaults_that_people_rely_on(composed) -> None:
    """model=lenet data=digits optimizer=adam, cosine, 10 epochs, monitor val/loss, val_fraction 0.1."""
    config = composed()
    assert config["model"]["name"] == "lenet"
    assert config["data"]["name"] == "digits"
    assert config["optimizer"]["name"] == "adam"
    assert config["scheduler"]["name"] == "cosine"
    assert config["trainer"]["epochs"] == 10
    assert config["trainer"]["monitor"] == "val/loss"
    assert config["data"]["val_fraction"] == 0.1


def test_data_may_choose_the_loss(composed) -> None:
    """A data set stands after the loss, so it may choose one; the command line beats it."""
    assert composed("data=heteroscedastic")["loss"]["name"] == "gaussian_nll"
    assert composed("data=heteroscedastic", "loss=l2")["loss"]["name"] == "l2"


def test_a_model_may_choose_the_task(composed) -> None:
    """An autoencoder reconstructs."""
    assert composed("model=autoencoder")["task"]["name"] == "reconstruction"


def test_regularization_composes(composed) -> None:
    """Several regularizers at once: code entries become a mapping, others set their owner's setting."""
    config = composed(*REGULARIZED)
    assert set(config["regularization"]) == {"l1"}
    assert config["model"]["dropout"] > 0
    assert composed("regularization=early_stopping")["trainer"]["patience"] > 0
    assert composed("regularization=label_smoothing")["loss"]["label_smoothing"] > 0
    assert composed("regularization=augmentation")["data"]["augmentation"]
    assert composed("regularization=batch_norm", "model=mlp")["model"]["batch_norm"] is True


def test_the_command_line_beats_all(composed) -> None:
    """A value on the command line wins over the option that set it."""
    assert composed(*REGULARIZED, "model.dropout=0.25")["model"]["dropout"] == 0.25
    assert composed(*REGULARIZED, "regularization.l1.strength=0.5")["regularization"]["l1"]["strength"] == 0.5
