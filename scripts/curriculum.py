"""Which rows of the courses are proven by tests: `make curriculum`.

    python scripts/curriculum.py                    run the tests that bear rows, print the table
    python scripts/curriculum.py M46 R              row M46 and group R only
    python scripts/curriculum.py --collect          without running a test: which rows have one
    python scripts/curriculum.py --page             write the tables of docs/course.md from tests/curriculum.yaml

The rows are in tests/curriculum.yaml, those left out in docs/scope.md; a test bears rows by `@pytest.mark.curriculum("M46")`.
Exit code 1 unless every taught row that does not wait passes, and every mentioned row passes or is left out.

The file is also the plugin of pytest (`-p curriculum`) that tells, from worker processes too, which rows a test bears.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "tests" / "curriculum.yaml"
SCOPE = ROOT / "docs" / "scope.md"
PAGE = ROOT / "docs" / "course.md"
COURSES = {
    "S0": "Artificial intelligence, machine learning, deep learning",
    "S1": "Perceptron, multilayer perceptron, multiclass logistic regression",
    "S2": "Multilayer perceptron, architectures, convolution by numbers, training",
    "S3": "Multilayer perceptron, backpropagation, regularization, pretraining, convolutional networks",
    "S4": "From logistic regression to neural networks, automatic differentiation, depth",
}
MARK = "curriculum"
GOOD = ("pass", "tested", "out of scope", "waits", "later", "quoted")

# ---- the plugin -----------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: Any) -> None:
    """`--rows`: only tests that bear one of these rows."""
    parser.addoption("--rows", default="", help="rows or groups of the courses, such as M46,R")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keeps the tests that bear a chosen row, and has their reports say which rows they bear."""
    chosen, left = [word for word in config.getoption("rows").split(",") if word], []
    for item in items[:]:
        borne = {row for mark in item.iter_markers(MARK) for row in mark.args}
        item.user_properties.append((MARK, sorted(borne)))
        if not any(is_chosen(row, chosen) for row in borne):
            items.remove(item)
            left.append(item)
    config.hook.pytest_deselected(items=left)


class Outcomes:
    """Gathers the outcome of every test, in the main process."""

    def __init__(self) -> None:
        self.tests: dict[str, tuple[list[str], str]] = {}  # name: rows, outcome

    def pytest_runtest_logreport(self, report: Any) -> None:
        rows: list[str] = dict(report.user_properties).get(MARK, [])
        _, before = self.tests.get(report.nodeid, ([], "passed"))
        self.tests[report.nodeid] = rows, worse(before, report.outcome)

    def of(self, row: str) -> Counter[str]:
        """How many tests of a row passed, failed and were skipped."""
        return Counter(outcome for rows, outcome in self.tests.values() if row in rows)


def worse(a: str, b: str) -> str:
    """Of the outcomes of two phases of a test (setup, call, teardown) the one that counts."""
    return next(outcome for outcome in ("failed", "skipped", "passed") if outcome in (a, b))


# ---- rows, tests, verdicts ------------------------------------------------------------------------------------------------


def read_rows() -> dict[str, dict[str, Any]]:
    """Row -> status, name, command and where it stands, in the order of the file."""
    rows: dict[str, dict[str, Any]] = yaml.safe_load(ROWS.read_text())
    return rows


def read_scope() -> dict[str, str]:
    """Row -> why it is left out, from the table of docs/scope.md."""
    return dict(re.findall(r"^\| ([A-Z]\d\d) \| [^|]+ \| ([^|]+?) \|$", SCOPE.read_text(), re.MULTILINE))


def marked_tests(folder: Path = ROOT / "tests") -> dict[str, list[str]]:
    """Row -> the tests that bear it (`tests/test_x.py::test_y`), read from the sources."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text()
        if MARK not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                for row in sorted(set(rows_in(node.decorator_list))):
                    found.setdefault(row, []).append(f"{path.relative_to(folder.parent)}::{node.name}")
    return found


def rows_in(decorators: Iterable[ast.expr]) -> Iterator[str]:
    """The arguments of every `curriculum(...)` in the decorators, also inside `pytest.param(..., marks=...)`."""
    for decorator in decorators:
        for node in ast.walk(decorator):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == MARK:
                yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def is_chosen(row: str, chosen: Iterable[str]) -> bool:
    """Whether a row is among `chosen` rows and groups; all are if none is named."""
    return any(row.startswith(word) for word in chosen) or not list(chosen)


def verdict(row: dict[str, Any], outcomes: Counter[str], left_out: bool) -> str:
    """pass, fail, skipped, no test, out of scope, or why none is needed: waits, later, quoted."""
    if outcomes["failed"]:
        return "fail"
    if outcomes["passed"]:
        return "pass"
    if outcomes["skipped"]:
        return "skipped"
    if left_out:
        return "out of scope"
    if row.get("waits"):
        return "waits"
    return str(row["status"]) if row["status"] in ("later", "quoted") else "no test"


# ---- the page of the courses ----------------------------------------------------------------------------------------------


def course_page(text: str, rows: dict[str, dict[str, Any]]) -> str:
    """docs/course.md with the tables of the courses made anew; what stands above them stays."""
    parts = [text.partition("\n## Course ")[0].rstrip() + "\n"]
    for number, (course, title) in enumerate(COURSES.items()):
        places = [
            (int(place[3:]), name) for name in rows for place in rows[name]["where"].split() if place[:2] == course
        ]
        lines = [course_line(line, name, rows[name]) for line, name in sorted(places) if "command" in rows[name]]
        head = ["| line | row | what | command | gives |", "| --- | --- | --- | --- | --- |"]
        parts.append("\n".join([f"## Course {number}: {title}", "", *head, *lines, ""]))
    return "\n".join(parts)


def course_line(line: int, name: str, row: dict[str, Any]) -> str:
    return f"| {line} | {name} | {row['name']} | `{row['command']}` | {row.get('gives', '')} |"


# ---- the command ----------------------------------------------------------------------------------------------------------


def run_tests(chosen: list[str], workers: str) -> tuple[Outcomes, int]:
    """Runs the tests that bear the chosen rows. Gives their outcomes and the exit code of pytest."""
    import pytest

    outcomes = Outcomes()
    sys.path.insert(0, str(Path(__file__).parent))  # where workers find the plugin
    words = ["-p", Path(__file__).stem, "--rows", ",".join(chosen), "-m", MARK, str(ROOT / "tests")]
    parallel = ["-n", workers, "--maxprocesses", "8", "--dist", "loadgroup"]
    return outcomes, int(pytest.main(["--rootdir", str(ROOT), *parallel, *words], plugins=[outcomes]))


def collected() -> dict[str, Counter[str]]:
    """Row -> its tests, all taken to pass."""
    return {row: Counter(passed=len(tests)) for row, tests in marked_tests().items()}


def table(rows: dict[str, dict[str, Any]], counts: dict[str, Counter[str]], verdicts: dict[str, str]) -> Iterator[str]:
    """The lines of the table: row, name, tests, verdict, command."""
    yield f"{'row':4} {'verdict':12} {'tests':>7}  {'name':46} command"
    for name, row in rows.items():
        found = counts.get(name, Counter())
        total = sum(found.values())
        passed = f"{found['passed']}/{total}" if total else "-"
        yield f"{name:4} {verdicts[name]:12} {passed:>7}  {row['name']:46} {row.get('command', '')}".rstrip()


def summary(rows: dict[str, dict[str, Any]], verdicts: dict[str, str]) -> Iterator[str]:
    """One line for each group, and one for each verdict that must not be."""
    for group in dict.fromkeys(name[0] for name in rows):
        counts = Counter(verdicts[name] for name in rows if name[0] == group)
        yield f"{group}: " + ", ".join(f"{number} {text}" for text, number in counts.most_common())
    for text in sorted(set(verdicts.values()) - set(GOOD)):
        hint = " (is DLRUN_DATA_DIR, the folder of the published data sets, set?)" if text == "skipped" else ""
        yield f"{text}: " + " ".join(name for name in rows if verdicts[name] == text) + hint


def main(argv: list[str] | None = None) -> int:
    """Prints the table; gives the exit code."""
    parser = argparse.ArgumentParser(description="Which rows of the courses are proven by tests.")
    parser.add_argument("rows", nargs="*", help="rows or groups, such as M46 R; all if none is named")
    parser.add_argument("--collect", action="store_true", help="do not run the tests, only look which rows have one")
    parser.add_argument("--page", action="store_true", help="write the tables of docs/course.md")
    parser.add_argument("-n", default="auto", metavar="WORKERS", help="worker processes of pytest")
    args = parser.parse_args(argv)
    rows = {name: row for name, row in read_rows().items() if is_chosen(name, args.rows)}
    if args.page:
        PAGE.write_text(course_page(PAGE.read_text(), read_rows()))
        return 0
    if unknown := [word for word in args.rows if not any(name.startswith(word) for name in rows)]:
        parser.error(f"no such row: {' '.join(unknown)}; rows are T01 to X29, groups {' '.join('TDMLORUPHX')}")
    if args.collect:
        counts, code = collected(), 0
    else:
        outcomes, code = run_tests(args.rows, args.n)
        counts = {name: outcomes.of(name) for name in rows}
    left_out = read_scope()
    verdicts = {name: verdict(row, counts.get(name, Counter()), name in left_out) for name, row in rows.items()}
    if args.collect:
        verdicts = {name: "tested" if text == "pass" else text for name, text in verdicts.items()}
    print(*table(rows, counts, verdicts), "", *summary(rows, verdicts), sep="\n")
    return int(code not in (0, 5) or not set(verdicts.values()) <= set(GOOD))  # 5: no test was chosen


if __name__ == "__main__":
    sys.exit(main())
