"""The space of a search: Hydra's words as fixed values, parameters and repeats; what makes no sense is refused in one line."""

from __future__ import annotations

import math

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dlrun.registry import ConfigError
from dlrun.sweeps.search.objective import read_objective
from dlrun.sweeps.search.settings import Settings, check, check_together, trial_limit
from dlrun.sweeps.search.space import Parameter, Space
from dlrun.sweeps.search.words import read_space


def space(*words: str) -> Space:
    return read_space(OverridesParser.create().parse_overrides(list(words)))


def settings(**given: object) -> Settings:
    return check({**vars(Settings()), **given})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("interval(0,1)", ("float", 0.0, 1.0, None, False)),
        ("tag(log,interval(1e-5,1e-1))", ("float", 1e-5, 1e-1, None, True)),
        ("int(interval(1,8))", ("int", 1, 8, 1, False)),
        ("tag(log,int(interval(1,128)))", ("int", 1, 128, 1, True)),
        ("range(16,257,16)", ("int", 16, 256, 16, False)),
        ("range(16,250,16)", ("int", 16, 240, 16, False)),
        ("range(5)", ("int", 0, 4, 1, False)),
        ("range(5,0,-2)", ("int", 1, 5, 2, False)),
        ("range(0.1,0.55,0.1)", ("float", 0.1, 0.5, 0.1, False)),
        ("tag(log,range(1,9))", ("int", 1, 8, 1, True)),
        ("range(-3,-1)", ("int", -3, -2, 1, False)),
    ],
)
def test_hydras_words_are_the_space(value: str, expected: tuple) -> None:
    """Intervals hold both ends, ranges leave out their stop, as Hydra's own do."""
    found = space(f"a.b={value}").parameters[0]
    assert (found.kind, found.low, found.high, found.step, found.log) == expected


def test_lists_are_choices_as_they_are_written() -> None:
    """As Hydra's grids write them; a value that is given twice counts once."""
    found = space("optimizer=adam,sgd", "a=choice(1,'x y',1,true)", "+b=shuffle(3,1,2)")
    assert [p.choices for p in found.parameters] == [("adam", "sgd"), ("1", "x\\ y", "True"), ("3", "1", "2")]
    assert found.parameters[2].word("1") == "+b=1"


def test_what_is_repeated_is_not_searched() -> None:
    """seed and data.fold make runs of one trial; single ones are fixed like any other word; the order of the words stays."""
    found = space("model=mlp", "seed=range(3,5)", "optimizer.lr=interval(0,1)", "data.folds=2", "data.fold=0,1")
    assert found.repeats == [("seed=3", "data.fold=0"), ("seed=3", "data.fold=1"),
                             ("seed=4", "data.fold=0"), ("seed=4", "data.fold=1")]  # fmt: skip
    assert found.words({"optimizer.lr": 0.25}, 1) == [
        "model=mlp", "seed=3", "optimizer.lr=0.25", "data.folds=2", "data.fold=1"
    ]  # fmt: skip
    assert found.settings({"optimizer.lr": 0.25}) == ["model=mlp", "optimizer.lr=0.25", "data.folds=2"]
    assert space("seed=7", "a=1,2").repeats == [()]


def test_of_a_setting_given_twice_the_last_one_counts() -> None:
    """A fixed value after an interval fixes the setting."""
    assert space("a=interval(0,1)", "b=1,2", "a=0.5").words({"b": "2"}, 0) == ["a=0.5", "b=2"]


def test_values_are_written_with_six_digits_and_inside_the_range() -> None:
    """A word is readable; rounding never leaves the range."""
    assert Parameter("a", "float", 0, 1).word(0.12345678) == "a=0.123457"
    assert Parameter("a", "float", 1e-5, 1e-1, log=True).word(1.23456789e-5) == "a=1.23457e-05"
    assert Parameter("a", "float", 0, 0.1234561).word(0.1234561) == "a=0.123456"
    assert Parameter("a", "float", 0.1234561, 1).word(0.1234561) == "a=0.1234561"
    assert Parameter("a", "float", 0.0, 0.9, 0.1).word(0.30000000000000004) == "a=0.3"


@pytest.mark.parametrize(
    ("parameter", "value", "edge"),
    [
        (Parameter("a", "float", 0, 1), 0.0099, "lower"),
        (Parameter("a", "float", 0, 1), 0.0101, ""),
        (Parameter("a", "float", 0, 1), 0.9901, "upper"),
        (Parameter("a", "float", 1e-4, 1, log=True), 10**-3.97, "lower"),
        (Parameter("a", "float", 1e-4, 1, log=True), 0.9, ""),
        (Parameter("a", "float", 1e-4, 1, log=True), 10**-0.03, "upper"),
        (Parameter("a", "int", 16, 256, 16), 240, ""),
        (Parameter("a", "int", 16, 256, 16), 256, "upper"),
        (Parameter("a", "int", 3, 3), 3, ""),
        (Parameter("a", "choice", choices=("x", "y")), "x", ""),
    ],
)
def test_the_edge_is_one_percent_of_the_range(parameter: Parameter, value: float, edge: str) -> None:
    """On a logarithmic scale of its logarithm; a list has no edge."""
    assert parameter.edge(value) == edge


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a=interval(1,0)"], "a: interval(1,0): the lower bound is above the upper one"),
        (["a=interval(1,1)"], "a: interval(1,1) holds one value; write a=1.0"),
        (["a=tag(log,interval(0,1))"], "a logarithmic scale needs a lower bound above 0"),
        (["a=interval(0,inf)"], "expected finite bounds"),
        (["a=range(5,5)"], "a: range(5,5) holds no value"),
        (["a=range(0,5,-1)"], "a: range(0,5,-1) holds no value"),
        (["a=range(0,5,0)"], "a step other than 0"),
        (["a=tag(log,range(0,5))"], "above 0"),
        (["a=tag(log,range(1,9,2))"], "step 1"),
        (["a=tag(lgo,interval(1,2))"], "unknown tag 'lgo'"),
        (["a=tag(log,choice(1,2))"], "not for a list"),
        (["model=mlp", "seed=1,2"], "no setting is searched"),
        (["seed=interval(0,1)", "a=1,2"], "seed: got interval(0,1); it is repeated, not searched"),
        (["seed=range(2,2)", "a=1,2"], "seed: range(2,2) holds no value"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(words: list[str], part: str) -> None:
    """One line that names the setting and what was written."""
    with pytest.raises(ConfigError) as error:
        space(*words)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"sampler": "tpee"}, "got 'tpee'; allowed: tpe, random, grid, qmc, cmaes, nsgaii; did you mean 'tpe'?"),
        ({"pruner": "hyperbnd"}, "did you mean 'hyperband'?"),
        ({"direction": "minimum"}, "allowed: auto, min, max"),
        ({"trials": 0}, "sweeper.trials: got 0"),
        ({"trials": 2.5}, "sweeper.trials: got 2.5"),
        ({"trials": True}, "sweeper.trials"),
        ({"trials": "many"}, "sweeper.trials"),
        ({"seed": -1}, "sweeper.seed: got -1"),
        ({"timeout": 0}, "sweeper.timeout: got 0"),
        ({"timeout": math.nan}, "sweeper.timeout"),
        ({"storage": "study.db"}, "sweeper.storage: got 'study.db'; expected sqlite:///<file>"),
        ({"population": 1}, "sweeper.population: got 1"),
        ({"objective": 3}, "sweeper.objective"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(given: dict, part: str) -> None:
    """One line that names the setting, what was given and what is allowed."""
    with pytest.raises(ConfigError) as error:
        settings(**given)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "objectives", "part"),
    [
        ({"sampler": "grid"}, 1, "grid cannot sample lr, an interval"),
        ({"sampler": "cmaes"}, 1, "cmaes searches numbers only, not optimizer"),
        ({"sampler": "nsgaii", "pruner": "median"}, 1, "nsgaii compares finished runs only"),
        ({"pruner": "median"}, 2, "median needs a single objective"),
        ({"direction": ["min", "max", "min"]}, 2, "got 3 for 2 objective(s)"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict, objectives: int, part: str) -> None:
    """Samplers that cannot search the space, and pruners that cannot judge, are named."""
    with pytest.raises(ConfigError, match=part.replace("(", r"\(").replace(")", r"\)")):
        check_together(settings(**given), space("lr=interval(0,1)", "optimizer=adam,sgd"), objectives)


def test_cmaes_needs_two_numbers() -> None:
    """With a single one the algorithm has no covariance to adapt."""
    with pytest.raises(ConfigError, match="at least two"):
        check_together(settings(sampler="cmaes"), space("lr=interval(0,1)"), 1)


def test_a_grid_has_as_many_trials_as_combinations() -> None:
    """3 x 2 combinations, or fewer if fewer are asked for; other samplers have 20 unless told."""
    grid = space("a=range(0,3)", "b=x,y")
    assert trial_limit(settings(sampler="grid"), grid) == 6
    assert trial_limit(settings(sampler="grid", trials=4), grid) == 4
    assert trial_limit(settings(sampler="grid", trials=40), grid) == 6
    assert (trial_limit(settings(), grid), trial_limit(settings(trials=40), grid)) == (20, 40)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("test/loss", "'test/loss' is refused: the test set is sealed; use val/loss"),
        ("loss", "expected val/<metric> or train/<metric>"),
        ("val/", "expected val/<metric>"),
        ("val/acuracy", "did you mean 'accuracy'?"),
        ([], "expected one metric"),
        (["val/loss", "val/loss"], "expected one metric"),
        (["val/loss", "test/accuracy"], "sealed"),
    ],
)
def test_wrong_objectives_are_refused(given: object, part: str) -> None:
    """The test set stays sealed, and a misspelt metric has a nearest match."""
    with pytest.raises(ConfigError) as error:
        read_objective(given, "auto", "val/loss")
    assert part in str(error.value)


def test_the_direction_is_that_of_the_metric() -> None:
    """The trainer's monitor by default; what dlrun does not know needs to be told."""
    assert read_objective(None, "auto", "val/accuracy").directions == ("max",)
    assert read_objective(["val/loss", "train/f1"], "auto", "val/loss").directions == ("min", "max")
    assert read_objective("val/mine", "max", "val/loss").directions == ("max",)
    assert read_objective("val/loss", "auto", "val/loss").is_monitor
    assert not read_objective("val/accuracy", "auto", "val/loss").is_monitor
