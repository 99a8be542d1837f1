"""scripts/course.py: what the commands of docs/course.md give is written down as they printed it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module scripts/course.py."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("course")
    for name in ("course", "curriculum"):
        sys.modules.pop(name, None)


def test_a_command_that_runs_is_written_down(
    course: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run gives its test metric, a summary its counts; one that fails, or needs the reader's files, gives nothing."""
    rows = tmp_path / "curriculum.yaml"
    lines = {
        "A01": "dlrun data=two_moons model=mlp_plain model.hidden=[16] optimizer.lr=0.05 trainer.epochs=30",
        "A02": "dlrun action=summary model=lenet action.input_shape=[1,28,28] action.outputs=10",
        "A03": "dlrun data=csv data.path=table.csv model=mlp",
        "A04": "dlrun data=two_moons model=lenet",
    }
    rows.write_text(
        "".join(f'{row}: {{name: "it\'s {row}", command: "{command}"}}\n' for row, command in lines.items())
    )
    monkeypatch.setattr(course, "ROWS", rows)
    monkeypatch.setattr(sys.modules["curriculum"], "ROWS", rows)
    monkeypatch.setattr(course, "FOLDER", tmp_path / "made")
    assert course.run_rows([]) == ["A04"]
    found = course.read_rows()
    results = json.loads((tmp_path / "made" / "A01" / "results.json").read_text())
    assert found["A01"]["gives"] == f"accuracy {100 * results['metrics']['test']['accuracy']:.1f} %"
    assert results["metrics"]["test"]["accuracy"] > 0.9
    assert found["A02"]["gives"] == "first maps 6x28x28, 61,706 parameters, 416,520 multiplications"
    assert "gives" not in found["A03"] | found["A04"]
    assert found["A02"]["command"] == lines["A02"]


def test_a_sweep_gives_means_over_seeds(course: ModuleType, tmp_path: Path) -> None:
    """In the order of the runs; a run that did not finish is said to be so."""
    (tmp_path / "leaderboard.csv").write_text(
        "run,status,optimizer.lr,seed,val/loss,test/loss\n"
        "3,finished,0.1,1,0.5,\n2,finished,0.1,0,0.25,1\n0,finished,0.01,0,2,\n1,finished,0.01,1,4,\n4,diverged,10,0,,\n"
    )
    assert course.of_sweep(tmp_path) == "val/loss 3 (0.01), 0.375 (0.1), diverged (10)"


def test_the_pictures_of_the_page_are_those_of_the_script(course: ModuleType) -> None:
    """docs/course.md shows every picture beside its command, and no other."""
    text = course.PAGE.read_text()
    shown = re.findall(r"!\[[^\]]+\]\(images/course/(\w+)\.png\)", text)
    assert sorted(shown) == sorted(course.PICTURES)
    for name, (command, _) in course.PICTURES.items():
        assert (course.PICTURE_FOLDER / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"`{command}`" in text, name
