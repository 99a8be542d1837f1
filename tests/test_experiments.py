"""Every whole recipe of configs/experiment runs for two steps, and has the settings that it writes down."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dlrun.build import check
from dlrun.catalogue import header, read_option
from dlrun.settings import MAPPING_GROUPS, options

PUBLISHED = {"mnist", "fashion_mnist", "cifar10", "uci"}  # read below DLRUN_DATA_DIR


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"dropout": 0.5}} -> {"model.dropout": 0.5}"""
    found: dict[str, Any] = {}
    for key, value in node.items():
        inner = isinstance(value, Mapping) and value
        found |= leaves(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def swept(experiment: str) -> dict[str, list[str]]:
    """The settings that an experiment sweeps over with -m, and the words that give each its values."""
    params = read_option("experiment", experiment).get("hydra", {}).get("sweeper", {}).get("params", {})
    parsed = {key: OverridesParser.create().parse_override(f"{key}={values}") for key, values in params.items()}
    return {key: [f"{key}={value}" for value in found.sweep_string_iterator()] for key, found in parsed.items()}


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The folder above the published batches, unpacked from the strips they are kept as where they are not there."""
    if (data_dir / "cifar-10-batches-py").is_dir():
        return data_dir
    root = tmp_path_factory.mktemp("cifar10")
    runpy.run_path(str(data_dir / "cifar10.py"))["unpack"](root)
    return root


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_runs(two_steps, composed, request: pytest.FixtureRequest, experiment: str) -> None:
    """An experiment trains, is saved and loaded, and is tested."""
    data = dict(written_options(experiment)).get("data") or composed(f"experiment={experiment}")["data"]["name"]
    if data in PUBLISHED:
        root = request.getfixturevalue("cifar10" if data == "cifar10" else "data_dir")
        two_steps(f"experiment={experiment}", f"data.root={root}")
    else:
        two_steps(f"experiment={experiment}")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_beats_its_options(composed, experiment: str) -> None:
    """Every value that an experiment writes down is in the configuration; the command line beats it."""
    written = leaves({key: node for key, node in read_option("experiment", experiment).items() if key != "hydra"})
    found = leaves(composed(f"experiment={experiment}", "trainer.epochs=7"))
    assert {key: found[key] for key in written} | {"trainer.epochs": 7} == written | {"trainer.epochs": 7}
    assert found["trainer.epochs"] == 7
    for option in written_options(experiment):
        group, chosen = option
        assert found[f"{group}.name"] == read_option(group, chosen)["name"]


@pytest.mark.parametrize("experiment", [name for name in options("experiment") if swept(name)])
def test_what_an_experiment_sweeps_over_is_accepted(composed, experiment: str) -> None:
    """The values compose on top of the experiment, change it, and pass the check; the command sweeps."""
    alone = composed(f"experiment={experiment}")
    for key, words in swept(experiment).items():
        assert len(set(words)) == len(words) > 1
        chosen = words if len(words) < 8 else [words[0], words[-1]]
        configs = [composed(f"experiment={experiment}", word) for word in chosen]
        assert sum(config == alone for config in configs) <= 1, key
        for config in configs:
            check(config)
    assert (
        header("experiment", experiment)[1].startswith("dlrun -m ") or "seeds=" in header("experiment", experiment)[1]
    )


@pytest.mark.parametrize("experiment", options("experiment"))
def test_header_says_what_it_is_and_how_to_run_it(experiment: str) -> None:
    """The first line has a sentence and the command with the experiment's own name."""
    about, command = header("experiment", experiment)
    assert len(about) > 20
    assert f"experiment={experiment}" in command.split()


def written_options(experiment: str) -> list[tuple[str, str]]:
    """The options of other groups that an experiment chooses."""
    from omegaconf import OmegaConf

    from dlrun.settings import config_dir

    node: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / "experiment" / f"{experiment}.yaml"))
    chosen = [item for entry in node.get("defaults", []) if isinstance(entry, dict) for item in entry.items()]
    written = [(key.rpartition("/")[2], value) for key, value in chosen if isinstance(value, str)]
    return [(group, value) for group, value in written if group not in MAPPING_GROUPS]
