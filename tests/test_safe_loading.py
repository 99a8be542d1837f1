"""What comes from somebody else is data: a stored configuration, a pickle, a table's names can make nothing happen."""

from __future__ import annotations

import ast
import copy
import csv
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dlrun import rundir, saved_run
from dlrun.registry import ConfigError

SOURCES = sorted((Path(__file__).parents[1] / "src" / "dlrun").rglob("*.py"))
EVIL = "from pathlib import Path\nPath('marker').touch()\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run that was stopped before its end."""
    from dlrun.cli import run

    here, folder = Path.cwd(), tmp_path_factory.mktemp("trained")
    os.chdir(folder)
    try:
        words = ["model=mlp", "model.hidden=[4]", "data=blobs", "device=cpu", "callbacks=none", "trainer.epochs=1"]
        assert run([*words, "hydra.run.dir=run"]) == 0
    finally:
        os.chdir(here)
    (folder / "run" / "results.json").unlink()
    return folder / "run"


@pytest.fixture
def attack(trained: Path, cli, tmp_path: Path) -> Callable[..., Any]:
    """Gives the run another configuration and calls the command line: attack(change, "resume=run")."""
    import shutil

    def call(change: Callable[[dict[str, Any]], Any], *words: str) -> Any:
        shutil.copytree(trained, tmp_path / "run", dirs_exist_ok=True)
        (tmp_path / "evil_module.py").write_text(EVIL)
        config = yaml.safe_load((trained / rundir.CONFIG).read_text())
        changed = change(config)
        (tmp_path / "run" / rundir.CONFIG).write_text(
            changed if isinstance(changed, str) else yaml.safe_dump(config, sort_keys=False)
        )
        done = cli(*words)
        assert "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "marker").exists(), "the attack ran"
        assert "evil_module" not in sys.modules
        return done

    return call


def put(config: dict[str, Any], dotted: str, value: Any) -> None:
    """put(config, "data.augmentation.x", {...})"""
    *above, last = dotted.split(".")
    for name in above:
        config[name] = config.get(name) or {}
        config = config[name]
    config[last] = value


@pytest.mark.parametrize("key", ["resume", "run"])
@pytest.mark.parametrize(
    "place",
    ["model", "data", "task", "loss", "optimizer", "scheduler", "trainer", "regularization.x", "callbacks.x",
     "data.augmentation.x", "model.hidden.0.deep"],
)  # fmt: skip
def test_a_stored_import_is_not_acted_on(attack, place: str, key: str) -> None:
    """Wherever it stands: one line names the module, the setting and what to type, and nothing is imported."""

    def change(config: dict[str, Any]) -> None:
        if place == "model.hidden.0.deep":
            config["model"]["hidden"] = [{"deep": {"import": "evil_module"}}]
        elif place.endswith(".x"):
            put(config, place, {"name": "x", "import": "evil_module"})
        else:
            config[place]["import"] = "evil_module"

    done = attack(change, f"{key}=run")
    assert done.rc == 1
    assert done.stderr == (
        f"dlrun: {key}: the saved configuration imports 'evil_module' ({place}.import), which runs code; nothing was "
        "imported. If you trust it, add trust_imports=true\n"
    )


def test_trust_is_asked_for_by_name(attack) -> None:
    """Only true and false are answers, and only on the command line: a stored `trust_imports` means nothing."""

    def change(config: dict[str, Any]) -> None:
        config["model"]["import"] = "evil_module"
        config["trust_imports"] = True

    for words in ([], ["trust_imports=false"], ["trust_imports=true", "trust_imports=false"]):
        done = attack(change, "run=run", *words)
        assert (done.rc, "nothing was imported" in done.stderr) == (1, True), done.stderr
    done = attack(change, "run=run", "trust_imports=yes")
    assert (done.rc, done.stderr) == (1, "dlrun: trust_imports: got 'yes'; expected true or false\n")


def test_a_stored_action_is_not_run(attack, tmp_path: Path) -> None:
    """`resume=` goes on with training runs only, `run=` with the action that is typed; the action's own import does nothing
    either."""
    evil = {"name": "predict", "output": str(tmp_path / "marker"), "input": None, "split": "test"}
    done = attack(lambda config: config.update(action=evil), "resume=run")
    assert (done.rc, done.stderr) == (
        1,
        "dlrun: resume: 'run' is no training run (its action is 'predict'); nothing was run\n",
    )
    for action in (evil, "predict", None, {"import": "evil_module"}):
        done = attack(lambda config, action=action: config.update(action=action), "resume=run")
        assert done.rc == 1, action
    assert attack(lambda config: config.update(action=evil), "run=run").rc == 0  # tests it


COMMAND = {"_target_": "subprocess.check_call", "_args_": [["touch", "marker"]]}


@pytest.mark.parametrize(
    "hostile",
    [
        {"hydra": {"callbacks": {"evil": COMMAND}}},
        {"hydra": {"launcher": COMMAND, "sweeper": COMMAND, "mode": "MULTIRUN"}},
        {"hydra": {"searchpath": ["file://."], "run": {"dir": "marker"}, "output_subdir": "marker"}},
        {"hydra": {"job_logging": {"handlers": {"h": {"()": "subprocess.check_call", "args": ["touch", "marker"]}}}}},
        {"hydra": {"job": {"chdir": True, "env_set": {"PATH": "."}}, "run": {"dir": "marker"}}},
        {"defaults": [{"override hydra/launcher": "evil"}, "_self_", "evil"]},
        {"resume": "marker", "run": "marker", "debug": True, "experiment": "evil", "_target_": "os.abort"},
    ],
)
def test_only_known_settings_are_taken(attack, tmp_path: Path, hostile: dict[str, Any]) -> None:
    """Whatever Hydra would do with a stored `hydra` or `defaults` is not done, and the run is tested as if they were not
    there."""
    plugins = "# @package _global_\nhydra:\n  callbacks:\n    evil: " + str(COMMAND)
    (tmp_path / "evil.yaml").write_text(plugins)
    done = attack(lambda config: config.update(copy.deepcopy(hostile)), "run=run")
    assert done.rc == 0, done.stderr
    assert "accuracy" in done.stdout


def test_interpolations_stay_text(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that looks like an interpolation is neither resolved nor an error of its own: nothing leaks from the
    environment."""
    monkeypatch.setenv("SECRET", "cpu")
    done = attack(lambda config: config.update(device="${oc.env:SECRET}"), "run=run")
    assert (done.rc, "${oc.env:SECRET}" in done.stderr) == (1, True), done.stderr
    done = attack(lambda config: config.update(model="${optimizer}"), "run=run")
    assert (done.rc, "model: got '${optimizer}'" in done.stderr) == (1, True), done.stderr
    done = attack(lambda config: config["model"].update(name="${dlrun.run_dir:train,marker}"), "run=run")
    assert (done.rc, "${dlrun.run_dir:train,marker}" in done.stderr) == (1, True), done.stderr
    done = attack(lambda config: config["model"].update({"import": "${oc.env:SECRET}"}), "run=run")
    assert "'${oc.env:SECRET}' (model.import)" in done.stderr


def test_every_text_comes_back_as_it_is() -> None:
    """A thousand texts of backslashes, braces and dollars, as values in a mapping and a list."""
    import random

    from omegaconf import OmegaConf

    draw = random.Random(0)
    pieces = ["\\", "$", "{", "}", "${", "a", ":", "'", '"', "???", " ", "\n", "oc.env:HOME"]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(9))) for _ in range(1000)]
    value = {"x": {"list": texts, **{str(n): text for n, text in enumerate(texts)}}}
    merged = OmegaConf.merge({"x": {}}, saved_run._literal(value))
    assert OmegaConf.to_container(merged, resolve=True, throw_on_missing=False) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("!!python/object/apply:os.system ['touch marker']", ""),
        ("seed: !!python/name:os.system", ""),
        ("seed: &a [*a]", " (it has no end)"),
        ("seed: &a {x: *a}", " (it has no end)"),
        ("seed: 2026-01-01", " (seed is a date)"),
        ("seed: !!binary aGk=", " (seed is a bytes)"),
        ("seed: !!set {a, b}", " (seed is a set)"),
        ("seed: {null: 1}", " (seed has a name that is no text)"),
        ("a: [\n", ""),
        ("seed: 1", " (no 'task')"),
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\nseed: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]", " (it has no end)"),
    ],
)  # fmt: skip
def test_a_hostile_yaml_is_damaged(attack, trained: Path, text: str, problem: str) -> None:
    """Tags of Python, endless aliases and values that dlrun never writes: one line."""

    def change(config: dict[str, Any]) -> str:
        if problem and not problem.startswith(" (no"):
            config.pop("seed")
            return yaml.safe_dump(config) + text
        return text

    done = attack(change, "run=run")
    assert (done.rc, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert f"config.yaml is damaged{problem}; restore it" in done.stderr


def calls(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(SOURCES[0].parents[0]).as_posix())
def test_nothing_runs_what_it_reads(path: Path) -> None:
    """No file is read by anything that could run it: every `torch.load` is `weights_only`, YAML is read by `safe_load`, and
    neither pickles (but for the one reader of plain arrays) nor `eval` and its like are used."""
    forbidden = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load",
                 "yaml.full_load", "torch.jit.load", "np.fromfile", "os.system", "os.popen", "hydra.utils.instantiate",
                 "hydra.utils.call", "torch.hub.load", "shelve.open", "marshal.loads", "joblib.load"}  # fmt: skip
    for call in calls(path):
        name = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in forbidden, f"{name} in line {call.lineno}"
        if name == "torch.load" or name.endswith((".get_state_dict", "load_state_dict_from_url")):
            assert given.get("weights_only") == "True", f"{name} in line {call.lineno}"
        assert given.get("allow_pickle", "False") == "False", f"{name} in line {call.lineno}"
        assert given.get("shell", "False") == "False", f"{name} in line {call.lineno}"
    text = path.read_text()
    users = {"import pickle": {"cifar10.py", "_torchvision.py"}, "Unpickler": {"cifar10.py"}}
    for word, files in users.items():
        assert word not in text or path.name in files
    for module in ("marshal", "shelve", "dill", "cloudpickle", "joblib"):
        assert f"import {module}" not in text


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "function", [(os.system, "touch marker"), (exec, EVIL), (getattr, "x", "upper"), (np.load, "x"), (Path, "marker")]
)
def test_a_hostile_pickle_is_not_run(tmp_path: Path, monkeypatch, function: tuple[Any, ...], protocol: int) -> None:
    """The reader of CIFAR's batches takes nothing but arrays and plain containers, whatever calls a pickle asks for."""
    from dlrun.data.cifar10 import read_plain_pickle

    monkeypatch.chdir(tmp_path)
    for value in (
        Touch(*function),
        {b"data": [Touch(*function)]},
        {b"data": np.array([Touch(*function)], dtype=object)},
    ):
        Path("batch").write_bytes(pickle.dumps(value, protocol=protocol))
        with pytest.raises(ConfigError, match="batch: not a CIFAR batch"):
            read_plain_pickle(Path("batch"))
    assert not Path("marker").exists()
    if protocol in (3, 4):  # in others NumPy pickles arrays through calls of its own, which are refused like any other
        Path("batch").write_bytes(pickle.dumps({b"data": np.arange(4), b"labels": [1, 2]}, protocol=protocol))
        found = read_plain_pickle(Path("batch"))
        assert (found[b"data"].tolist(), found[b"labels"]) == ([0, 1, 2, 3], [1, 2])


@pytest.mark.parametrize("function", [(os.system, "touch marker"), (exec, EVIL)])
def test_a_hostile_checkpoint_is_not_run(attack, tmp_path: Path, function: tuple[Any, ...]) -> None:
    """A checkpoint with a call in it is refused in one line by everything that reads checkpoints."""
    import torch

    attack(lambda config: None, "action=list")  # copies the run
    for name in ("best.pt", "last.pt"):
        torch.save({"format": 1, "model": Touch(*function)}, tmp_path / "run" / "checkpoints" / name)
    for words in (["resume=run"], ["run=run"], ["action=predict", "run=run"]):
        done = attack_again(attack, tmp_path, words)
        assert (done.rc, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert "holds more than tensors and plain values; it was not loaded" in done.stderr


def attack_again(attack, tmp_path: Path, words: list[str]) -> Any:
    """Calls the command line on the run as it stands, checkpoints included."""
    kept = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}

    def change(config: dict[str, Any]) -> None:
        for path, content in kept.items():
            path.write_bytes(content)

    return attack(change, *words)


FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\ufeff=1", "\u200b=1", "\xa0-x",
            "\uff1d1", "\uff0b1", "\uff0d1", "\uff201", "\u22121+1", "-inf", "+nan", "-1_000", "-\u0661", "a;=1", "a\t=1",
            "a\n=1", "a\r\n @x", "x;\t;=1", "\x00=1", "- 5", "--5", "+-5", "=", "-"]  # fmt: skip
HARMLESS = ["-1", "+2.5", "-1e-4", ".5", "-.5", "1e9", "0", "", "cat", "a=b", "a-b", "don't", "1,5", "x@y", "ünïcode", "'=1",
            "a; b", "lr=1"]  # fmt: skip


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet might take a cell, or what it makes of it where columns are split at semicolons, tabs and lines,
    for a formula."""
    import re
    import unicodedata

    if re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?", cell):
        return False
    for piece in re.split("[;\t\r\n]", cell):
        visible = [c for c in piece if not c.isspace() and unicodedata.category(c)[0] != "C"]
        if visible and unicodedata.normalize("NFKC", visible[0])[0] in "=+-@\u2212":
            return True
    return cell[:1] in ("\t", "\r", "\n")


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    """Text that a spreadsheet would run gets an apostrophe and stays readable; harmless text and numbers stay as they are."""
    assert all(map(is_formula, FORMULAS))
    assert not any(map(is_formula, HARMLESS))
    numbers = [-1, -2.5, 1e-30, True, None, float("-inf")]
    assert rundir.write_csv(tmp_path / "a.csv", [FORMULAS, HARMLESS, numbers]) == 3
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        formulas, harmless, shown = csv.reader(file)
    for before, after in zip(FORMULAS, formulas, strict=True):
        assert not is_formula(after), (before, after)
        assert after.replace("'", "") == before.replace("'", "")
    assert harmless == HARMLESS
    assert shown == ["-1", "-2.5", "1e-30", "True", "", "-inf"]


def test_predictions_hold_no_formula(cli, tmp_path: Path) -> None:
    """Class and column names of a table reach predictions.csv as text, probabilities as numbers."""
    names = ["=cmd|' /C calc'!A0", "-3+4", "plain"]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "=kind"])
        writer.writerows([[i % 7, i % 5, names[i % 3]] for i in range(90)])
    words = ["model=mlp", "model.hidden=[4]", "device=cpu", "trainer.epochs=1", "callbacks=none", "hydra.run.dir=run"]
    done = cli("data=csv", "data.path=t.csv", "data.target='=kind'", *words)
    assert done.rc == 0, done.stderr
    done = cli("action=predict", "run=run")
    assert done.rc == 0, done.stderr
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert sorted(header[2:5]) == sorted(f"p_{name}" for name in names)
    assert {row[-1] for row in rows} == {"'=cmd|' /C calc'!A0", "'-3+4", "plain"}
    for row in rows:
        assert not any(map(is_formula, row))
        assert sum(map(float, row[2:5])) == pytest.approx(1, abs=1e-5)


def test_the_leaderboard_holds_no_formula(tmp_path: Path) -> None:
    """Overrides and names of runs reach leaderboard.csv as text, learning rates and values as numbers."""
    from dlrun.sweeps.leaderboard import Job, Leaderboard

    jobs = [
        Job(tmp_path / "=1+1", {"data.path": f"@{n}", "optimizer.lr": f"-{n}e-3"}, "finished", "val/loss", -0.5 * n, {})
        for n in range(1, 3)
    ]
    Leaderboard(tmp_path, jobs).write_csv()
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["run", "status", "data.path", "optimizer.lr", "val/loss"]
    assert rows == [["'=1+1", "finished", "'@2", "-2e-3", "-1.0"], ["'=1+1", "finished", "'@1", "-1e-3", "-0.5"]]
