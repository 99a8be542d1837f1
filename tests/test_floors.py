"""Who may import whom, and other policy on the source text."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "dlrun"
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = (
    "registry schema spec settings files shell code_version",
    "streams device auto background checkpoint rundir provenance signals repeats",
    "data models losses optimizers schedulers regularization metrics averaging early_stopping divergence transfer",
    "tasks callbacks memory",
    "trainer",
    "build",
    "sweeps",
    "actions",
    "catalogue arguments stacking",
    "suggest saved_run completion",
    "saved_sweep",
    "command worker",
    "cli",
    "__main__",
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
LONG = {"trainer/loop.py"}  # the loop
BESIDE = {("registry", "schema"), ("provenance", "device"), ("__main__", "cli")}  # one builds on the other
EXITS = {"cli.py", "__main__.py", "worker.py"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """`models` for models/lenet.py, `trainer` for trainer.py and trainer/_loop.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules of dlrun that a syntax tree imports (without `dlrun.`), those for type checkers only left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            modules = [f"{node.module}.{a.name}" for a in node.names] if node.module == "dlrun" else [str(node.module)]
        yield from (module.removeprefix("dlrun.") for module in modules if module.startswith("dlrun."))
        yield from imports(node)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    """A module imports only from lower floors, its own room, or the `_base` of another room of its floor."""
    room = room_of(path)
    if room == "__init__":
        return
    for module in imports(ast.parse(path.read_text())):
        other = module.split(".")[0]
        if other not in FLOOR or other == room or (room, other) in BESIDE:
            continue
        shared = FLOOR[other] == FLOOR[room] and module.endswith("._base")
        assert shared or FLOOR[other] < FLOOR[room], f"{name_of(path)} imports dlrun.{module}"


def test_every_room_has_a_floor() -> None:
    """A new room must be given its floor."""
    assert {room_of(path) for path in FILES} - {"__init__"} <= set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_standard_library_names(path: Path) -> None:
    """No file bears the name of a standard-library module."""
    assert path.stem.startswith("_") or path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("path", [p for p in FILES if name_of(p) not in EXITS], ids=name_of)
def test_no_exit(path: Path) -> None:
    """Only the command line ends the process."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("sys.exit", "exit", "quit", "os._exit")
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert not ast.unparse(node.exc).startswith("SystemExit")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_short(path: Path) -> None:
    """At most 250 lines but for the loop: a longer file is two rooms."""
    assert name_of(path) in LONG or len(path.read_text().splitlines()) <= 250


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_classes_say_what_they_are(path: Path) -> None:
    """Every public class has a docstring."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
