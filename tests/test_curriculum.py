"""The rows of the courses: every one has a test or a reason, and a command that is accepted (`make curriculum` runs them)."""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dlrun.arguments import sort_arguments
from dlrun.repeats import expand
from dlrun.settings import config_dir

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def curriculum() -> ModuleType:
    """The module scripts/curriculum.py."""
    spec = importlib.util.spec_from_file_location("curriculum_script", ROOT / "scripts" / "curriculum.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tested(curriculum: ModuleType) -> set[str]:
    """The rows that have a test."""
    return set(curriculum.marked_tests())


@pytest.fixture(scope="module")
def rows(curriculum: ModuleType) -> dict[str, dict[str, Any]]:
    return curriculum.read_rows()


def test_the_table_is_whole(rows: dict[str, dict[str, Any]]) -> None:
    """As many rows in each group as the courses have, numbered without gaps; names are short and their own."""
    sizes = {"T": 31, "D": 19, "M": 54, "L": 24, "O": 26, "R": 17, "U": 27, "P": 37, "H": 21, "X": 29}
    assert list(rows) == [f"{group}{number:02}" for group, size in sizes.items() for number in range(1, size + 1)]
    assert {row["status"] for row in rows.values()} == {"taught", "mentioned", "quoted", "later"}
    taught = Counter(name[0] for name, row in rows.items() if row["status"] == "taught")
    assert taught == {"T": 21, "D": 15, "M": 50, "L": 22, "O": 21, "R": 13, "X": 1}
    waiting = [name for name, row in rows.items() if row.get("waits")]
    assert waiting == ["T09", "T10", "T13", "T15", "T16", "T30", "O19", "R08", "R15"]
    for name, row in rows.items():
        assert set(row) <= {"status", "waits", "where", "name", "command", "gives"}, name
        assert 0 < len(row["name"]) <= 60, name
        assert re.fullmatch(r"S[0-4]:\d+( S[0-4]:\d+)*", row["where"]), name


def test_every_mark_names_a_row(tested: set[str], rows: dict[str, dict[str, Any]]) -> None:
    """No test bears a row that does not exist."""
    assert tested <= set(rows)


def test_every_row_has_a_verdict(curriculum: ModuleType, tested: set[str], rows: dict[str, dict[str, Any]]) -> None:
    """A taught row that does not wait has a test; a mentioned row has a test or a line in docs/scope.md, and none has both."""
    left_out = set(curriculum.read_scope())
    assert not tested & left_out
    assert left_out <= {name for name, row in rows.items() if row["status"] == "mentioned" and not row.get("waits")}
    wanted = {name for name, row in rows.items() if row["status"] in ("taught", "mentioned") and not row.get("waits")}
    assert sorted(wanted - tested - left_out) == []


def test_rows_that_are_run_have_a_command(curriculum: ModuleType, rows: dict[str, dict[str, Any]]) -> None:
    """Whoever reads a row can type something, but for those that wait, come later, or are left out or only quoted."""
    left_out = curriculum.read_scope()
    silent = [name for name, row in rows.items() if "command" not in row and row["status"] in ("taught", "mentioned")]
    assert [name for name in silent if name not in left_out and not rows[name].get("waits")] == []
    assert [name for name in left_out if "command" in rows[name]] == []


def test_the_page_of_the_courses_is_fresh(curriculum: ModuleType, rows: dict[str, dict[str, Any]]) -> None:
    """docs/course.md has the rows' commands and what they give (else: python scripts/curriculum.py --page)."""
    text = curriculum.PAGE.read_text()
    assert curriculum.course_page(text, rows) == text


def test_commands_compose(hydra_clean: None, rows: dict[str, dict[str, Any]]) -> None:
    """Every row's command composes and passes the check that a run makes before it reads any data."""
    from dlrun.build import check

    OmegaConf.register_new_resolver("dlrun.run_dir", lambda action, wanted: wanted, replace=True)
    commands = {row["command"]: name for name, row in rows.items() if "command" in row}
    refused = {}
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for command, name in commands.items():
            program, *words = shlex.split(command)
            assert program == "dlrun", name
            if "--config-dir" in words:
                continue  # composes with the reader's own files
            try:
                check(composed([word for word in sort_arguments(expand(words)) if not word.startswith("-")]))
            except Exception as error:
                refused[name] = f"{command}: {error}"
    assert refused == {}


def composed(words: list[str]) -> dict[str, Any]:
    """The configuration of a command, of values that are swept with the first one. Choices of options are composed once."""
    overrides = [OverridesParser.create().parse_override(first_value(word)) for word in words]
    chooses = [(config_dir() / override.key_or_group).is_dir() for override in overrides]
    config = copy.deepcopy(base(tuple(o.input_line for o, choice in zip(overrides, chooses, strict=True) if choice)))
    values = [override for override, choice in zip(overrides, chooses, strict=True) if not choice]
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    found: Any = OmegaConf.to_container(config, throw_on_missing=False)
    return found


@functools.cache
def base(choices: tuple[str, ...]) -> DictConfig:
    """The configuration with these options."""
    return compose("config", list(choices))


def first_value(word: str) -> str:
    """An override; of one that is swept, with its first value."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return word
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


@pytest.mark.parametrize(
    ("row", "outcomes", "left_out", "expected"),
    [
        ({"status": "taught"}, {"passed": 2}, False, "pass"),
        ({"status": "taught"}, {"passed": 2, "failed": 1}, False, "fail"),
        ({"status": "taught"}, {"passed": 1, "skipped": 1}, False, "pass"),
        ({"status": "taught"}, {"skipped": 1}, False, "skipped"),
        ({"status": "taught"}, {}, False, "no test"),
        ({"status": "taught", "waits": True}, {}, False, "waits"),
        ({"status": "taught", "waits": True}, {"failed": 1}, False, "fail"),
        ({"status": "mentioned"}, {}, True, "out of scope"),
        ({"status": "mentioned"}, {}, False, "no test"),
        ({"status": "later"}, {}, False, "later"),
        ({"status": "quoted"}, {"passed": 1}, False, "pass"),
    ],
)
def test_verdicts(curriculum: ModuleType, row: dict[str, Any], outcomes: dict[str, int], left_out: bool, expected: str):
    """One failed test is enough for a fail; a row whose tests were all skipped is not proven."""
    assert curriculum.verdict(row, Counter(outcomes), left_out) == expected


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_command_runs_tests_and_judges_rows(tmp_path: Path, workers: str) -> None:
    """Rows are joined with the outcomes of their tests, in worker processes too; one row that fails ends with code 1."""
    for folder in ("scripts", "tests", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scripts" / "curriculum.py").write_bytes((ROOT / "scripts" / "curriculum.py").read_bytes())
    (tmp_path / "docs" / "scope.md").write_text("| X01 | named | Not run. |\n")
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["curriculum(*rows): rows"]\n')
    (tmp_path / "tests" / "curriculum.yaml").write_text(
        "".join(f"{row}: {{status: taught, where: 'S0:1', name: a}}\n" for row in ("M01", "M02", "M03", "M04"))
        + "X01: {status: mentioned, where: 'S0:1', name: a}\n"
    )
    (tmp_path / "tests" / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.curriculum('M01')\n"
        "@pytest.mark.parametrize('x', [1, pytest.param(2, marks=pytest.mark.curriculum('M02'))])\n"
        "def test_a(x): assert x == 1\n"
        "@pytest.mark.curriculum('M03')\n@pytest.mark.skip\ndef test_b(): pass\n"
        "def test_c(): assert False\n"
    )

    def run(*words: str) -> tuple[int, dict[str, str]]:
        command = [sys.executable, "scripts/curriculum.py", "-n", workers, *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        lines = re.findall(r"^([MX]\d\d)  (.{12}) +([-/\d]+)  a", done.stdout, re.MULTILINE)
        return done.returncode, {row: f"{text.strip()} {tests}" for row, text, tests in lines}

    judged = {"M01": "fail 1/2", "M02": "fail 0/1", "M03": "skipped 0/1", "M04": "no test -", "X01": "out of scope -"}
    assert run() == (1, judged)
    assert run("--collect") == (1, {**judged, "M01": "tested 1/1", "M02": "tested 1/1", "M03": "tested 1/1"})
    assert run("X") == (0, {"X01": "out of scope -"})
    assert run("M05")[0] == 2
