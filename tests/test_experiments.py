"""Every whole recipe of configs/experiment runs for two steps, and has the settings that it writes down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dlrun.catalogue import read_option
from dlrun.settings import options

PUBLISHED = {"mnist", "fashion_mnist", "cifar10", "uci"}  # read below DLRUN_DATA_DIR


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"dropout": 0.5}} -> {"model.dropout": 0.5}"""
    found: dict[str, Any] = {}
    for key, value in node.items():
        inner = isinstance(value, Mapping) and value
        found |= leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_runs(two_steps, composed, request: pytest.FixtureRequest, experiment: str) -> None:
    """An experiment trains, is saved and loaded, and is tested."""
    if composed(f"experiment={experiment}")["data"]["name"] in PUBLISHED:
        request.getfixturevalue("data_dir")
    two_steps(f"experiment={experiment}")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_beats_its_options(composed, experiment: str) -> None:
    """Every value that an experiment writes down is in the configuration; the command line beats it."""
    written = leaves(read_option("experiment", experiment))
    found = leaves(composed(f"experiment={experiment}"))
    assert {key: found[key] for key in written} == written
    assert composed(f"experiment={experiment}", "trainer.epochs=7")["trainer"]["epochs"] == 7
    for option in written_options(experiment):
        group, chosen = option
        assert found[f"{group}.name"] == read_option(group, chosen)["name"]


def written_options(experiment: str) -> list[tuple[str, str]]:
    """The options of other groups that an experiment chooses."""
    from omegaconf import OmegaConf

    from dlrun.settings import config_dir

    node: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "experiment" / f"{experiment}.yaml"))
    chosen = [entry for entry in node.get("defaults", []) if isinstance(entry, dict)]
    return [
        (key.rpartition("/")[2], value) for entry in chosen for key, value in entry.items() if isinstance(value, str)
    ]
