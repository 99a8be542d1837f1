"""How many bad inputs the tables of this folder hold."""

from __future__ import annotations

import runpy
from pathlib import Path

FLOORS = {"configuration": 80, "data_files": 70, "checkpoints": 50, "predict_inputs": 15, "environment": 12}


def test_the_tables_are_long_enough() -> None:
    """At least 80 different rows in all four categories together; each file keeps what it has."""
    rows = {name: runpy.run_path(str(Path(__file__).parent / f"test_{name}.py"))["ROWS"] for name in FLOORS}
    different = {name: len({repr(row) for row in found}) for name, found in rows.items()}
    assert different == {name: len(found) for name, found in rows.items()}, "a row stands twice"
    assert {name for name, floor in FLOORS.items() if different[name] < floor} == set()
    assert sum(different.values()) >= 80
