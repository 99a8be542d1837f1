"""`seeds=N` and `folds=K` on the command line: what they stand for, and what they refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dlrun.registry import ConfigError
from dlrun.repeats import REPEATS, expand


@pytest.mark.parametrize(
    ("words", "expanded"),
    [
        (["seeds=5"], ["--multirun", "seed=range(0,5)"]),
        (["model=mlp", "seeds=3", "data=mnist"], ["--multirun", "model=mlp", "seed=range(0,3)", "data=mnist"]),
        (["seed=10", "seeds=3"], ["--multirun", "seed=range(10,13)"]),
        (["seeds=3", "seed=1", "seed=1_0"], ["--multirun", "seed=range(10,13)"]),
        (["folds=5"], ["--multirun", "data.folds=5", "data.fold=range(0,5)"]),
        (["seeds=2", "folds=3"], ["--multirun", "seed=range(0,2)", "data.folds=3", "data.fold=range(0,3)"]),
        (["folds=3", "seeds=2"], ["--multirun", "data.folds=3", "data.fold=range(0,3)", "seed=range(0,2)"]),
        (["-m", "seeds=2", "optimizer.lr=1,2"], ["-m", "seed=range(0,2)", "optimizer.lr=1,2"]),
        (["--multirun", "folds=2"], ["--multirun", "data.folds=2", "data.fold=range(0,2)"]),
        (["--config-dir", "own", "seeds=2"], ["--multirun", "--config-dir", "own", "seed=range(0,2)"]),
        (["seeds=4", "model=mlp", "seeds=2"], ["--multirun", "model=mlp", "seed=range(0,2)"]),
        (["seeds=4", "seeds=null"], []),
        (["seeds=null", "seed=1,2", "-m"], ["seed=1,2", "-m"]),
        (["folds=NULL", "data.folds=3", "data.fold=1"], ["data.folds=3", "data.fold=1"]),
        (["seeds='5'"], ["--multirun", "seed=range(0,5)"]),
        (['seeds="5"', "seed='7'"], ["--multirun", "seed=range(7,12)"]),
        (["+seeds=5"], ["--multirun", "seed=range(0,5)"]),
        (["seeds= 5"], ["--multirun", "seed=range(0,5)"]),
        (["seeds=1"], ["--multirun", "seed=range(0,1)"]),
        (["seeds=2", "resume=null", "run=null"], ["--multirun", "seed=range(0,2)", "resume=null", "run=null"]),
        (["seeds=2", "action=train"], ["--multirun", "seed=range(0,2)", "action=train"]),
        (["seeds=2", "data.folds=5", "data.fold=3"], ["--multirun", "seed=range(0,2)", "data.folds=5", "data.fold=3"]),
        (["model=mlp", "seed=1,2", "-m"], ["model=mlp", "seed=1,2", "-m"]),
        (["optimizer.seeds=5", "model.folds=x"], ["optimizer.seeds=5", "model.folds=x"]),
        (["-sc", "query=bash", "seeds=abc"], ["-sc", "query=bash", "seeds=abc"]),
        (["--hydra-help", "seeds=2"], ["--hydra-help", "seeds=2"]),
        ([], []),
    ],
)
def test_what_the_words_stand_for(words: list[str], expanded: list[str]) -> None:
    """The sweep that is meant, in the place of the word; other words stay as they were."""
    given = list(words)
    assert expand(words) == expanded
    assert words == given


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=0"], "seeds: got '0'; expected a whole number, 1 or more, such as seeds=5"),
        (["seeds=-3"], "seeds: got '-3'; expected"),
        (["seeds=2.5"], "seeds: got '2.5'; expected"),
        (["seeds=1e1"], "seeds: got '1e1'; expected"),
        (["seeds=05"], "seeds: got '05'; expected"),
        (["seeds=٣"], "seeds: got '٣'; expected"),
        (["seeds=abc"], "seeds: got 'abc'; expected"),
        (["seeds=true"], "seeds: got 'true'; expected"),
        (["seeds="], "seeds: no value given; expected a whole number, 1 or more"),
        (["seeds"], "seeds: no value given; expected"),
        (
            ["seeds=range(3)"],
            "seeds: got 'range(3)'; expected a whole number, 1 or more, such as seeds=5; chosen seeds: -m",
        ),
        (
            ["seeds=1,2"],
            "seeds: got '1,2'; expected a whole number, 1 or more, such as seeds=5; chosen seeds: -m seed=0,3,7",
        ),
        (["seeds=100001"], "seeds: got 100001; at most 100000"),
        (["seeds=" + "9" * 5000], "seeds: got '9999"),
        (["folds=1"], "folds: got '1'; expected a whole number, 2 or more, such as folds=5"),
        (["folds=[0,1]"], "chosen folds: -m data.folds=5 data.fold=0,2"),
        (["seeds=5", "seed=1,2"], "seeds: together with it, seed is the first of them, one whole number; got seed=1,2"),
        (["seed=range(3)", "seeds=5"], "got seed=range(3)"),
        (["seed=-1", "seeds=5"], "got seed=-1"),
        (["seed=null", "seeds=5"], "got seed=null"),
        (["seeds=5", "hydra.sweeper.params.seed=1,2"], "seeds: not together with hydra.sweeper.params.seed=1,2"),
        (["folds=5", "data.fold=2"], "folds: not together with data.fold=2; folds=5 runs every fold"),
        (["data.folds=5", "folds=5"], "folds: not together with data.folds=5"),
        (["folds=5", "data.val_fraction=0.2"], "data.val_fraction: not together with folds"),
        (["data.folds=5", "data.fold=1", "data.val_fraction=0.2"], "data.val_fraction: not together with folds"),
        (["seeds=2", "resume=outputs/a"], "seeds: not together with resume=; seeds=2 starts new runs"),
        (["folds=2", "run='outputs/a'"], "folds: not together with run="),
        (["seeds=2", "action=test"], "seeds: a sweep is over training runs, not 'test'; leave seeds=2 away"),
        (["seeds=2", "action=train,profile"], "seeds: a sweep is over training runs, not 'profile'"),
        (["seeds=2", "--cfg", "job"], "--cfg: not together with seeds=2, which makes a sweep"),
        (["folds=2", "-r"], "-r: not together with folds=2"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    """One short line that names the setting and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        expand(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hydra_reads_what_is_written() -> None:
    """Hydra's own parser finds the seeds 3, 4, 5 and the folds 0 to 3."""
    words = [word for word in expand(["seed=3", "seeds=3", "folds=4"]) if not word.startswith("-")]
    parsed = {word.get_key_element(): word for word in OverridesParser.create().parse_overrides(words)}
    assert list(parsed) == ["seed", "data.folds", "data.fold"]
    assert list(parsed["seed"].sweep_iterator()) == [3, 4, 5]
    assert list(parsed["data.fold"].sweep_iterator()) == [0, 1, 2, 3]
    assert parsed["data.folds"].value() == 4
    assert {word.get_key_element() for word in parsed.values() if word.is_sweep_override()} == set(REPEATS)


def test_neither_hydra_nor_torch_is_imported() -> None:
    """The words are expanded before anything slow is imported."""
    program = "import sys, dlrun.repeats; print({'hydra', 'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
