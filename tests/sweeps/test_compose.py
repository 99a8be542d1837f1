"""Jobs are composed quickly, and as Hydra composes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from dlrun.registry import ConfigError
from dlrun.settings import config_dir
from dlrun.sweeps.compose import Composer, combinations

WORDS = [
    ["optimizer.lr=0.1", "seed=3"],
    ["model=mlp", "model.hidden=[3,4]", "data=poly1d"],
    ["model=mlp", "regularization=[l1,l2]", "regularization.l1.strength=0.5"],
    ["+model.import=own", "trainer.epochs=7"],
    ["optimizer=sgd", "optimizer.lr=${seed}", "seed=2"],
    ["++data.extra={a: 1, b: [x, y]}", "callbacks=none"],
    ["data.limit_train=${data.batch_size}", "data.batch_size=16"],
    ["~scheduler", "seed=1"],
]


@pytest.fixture
def hydra(hydra_clean):  # type: ignore[no-untyped-def]
    setup_globals()
    OmegaConf.register_new_resolver("dlrun.run_dir", lambda action, wanted: wanted, replace=True)
    import dlrun.command  # noqa: F401  registers the other resolver

    return Hydra.create_main_hydra2("dlrun", create_config_search_path(str(config_dir())))


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_jobs_are_those_of_hydra(hydra, words: list[str]) -> None:
    """The quick way gives the very configuration of Hydra's own, for values, options, additions, deletions, references."""
    master = hydra.compose_config(
        "config", [*words, "hydra.sweep.dir=s"], RunMode.MULTIRUN, with_log_configuration=False
    )
    composer = Composer(hydra.config_loader, master, Path("s"))
    composer.job(0, ["seed=9", *[word for word in words if not word.startswith("seed")]])  # something is cached
    job = composer.job(5, words)
    reference = hydra.config_loader.load_sweep_config(master, words)
    with open_dict(reference):
        del reference["hydra"]
    assert job.config == OmegaConf.to_container(reference, resolve=True)
    assert (job.number, job.folder, job.overrides) == (5, Path("s/5"), words)


def test_ids_depend_on_what_affects_the_results(hydra) -> None:
    """Another learning rate or seed is another job; other callbacks, or an order of the words, are not."""
    master = hydra.compose_config("config", ["hydra.sweep.dir=s"], RunMode.MULTIRUN, with_log_configuration=False)
    composer = Composer(hydra.config_loader, master, Path("s"))
    ids = [
        composer.job(0, words).id
        for words in (
            ["seed=1", "optimizer.lr=0.1"],
            ["optimizer.lr=0.1", "seed=1"],
            ["seed=1", "optimizer.lr=0.1", "callbacks=none"],
            ["seed=2", "optimizer.lr=0.1"],
            ["seed=1", "optimizer.lr=0.2"],
        )
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids)) == 3


def test_what_cannot_be_resolved_is_the_jobs_own_problem(hydra) -> None:
    """A reference to nothing does not end the sweep."""
    master = hydra.compose_config("config", ["hydra.sweep.dir=s"], RunMode.MULTIRUN, with_log_configuration=False)
    job = Composer(hydra.config_loader, master, Path("s")).job(0, ["optimizer.lr=${nothing}"])
    assert "nothing" in job.problem


def test_combinations_are_those_of_the_basic_sweeper() -> None:
    """Number and order."""
    overrides = OverridesParser.create().parse_overrides(["a=1,2,3", "b=x", "c=range(2)", "d=choice(u,v)"])
    count, words = combinations(overrides)
    reference = BasicSweeper.split_arguments(overrides, None)[0]
    assert (count, [list(one) for one in words]) == (12, reference)


@pytest.mark.parametrize(("word", "said"), [("a=range(0)", "no value in"), ("a=interval(0,1)", "hydra/sweeper=optuna")])
def test_words_without_values(word: str, said: str) -> None:
    """An empty range, and an interval, which only a search can sample."""
    with pytest.raises(ConfigError, match=said):
        combinations(OverridesParser.create().parse_overrides([word]))
