"""The benchmark's statistics, its tables, its choice of settings, and one tiny run of it."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.append(str(SCRIPTS))  # the package `benchmark`

from benchmark import pace, ratios, report, settings  # noqa: E402
from benchmark.epoch import floor_of, rows  # noqa: E402
from benchmark.turns import take_turns  # noqa: E402
from benchmark.workload import Workload, build_model  # noqa: E402


@pytest.mark.parametrize("values", [[7, 1, 4, 3, 6, 2, 5], [1, 2, 3, 4, 5, 6, 7]])
def test_the_interval_of_seven_values_goes_from_the_second_to_the_sixth(values: list[float]) -> None:
    """By hand: a resample's median is the smallest of 7 with P(Bin(7, 1/7) >= 4) = 0.010, at most the second with 0.100."""
    assert ratios.estimate(values) == {"median": 4, "low": 2, "high": 6, "n": 7}


def test_one_value_is_its_own_interval() -> None:
    """Neither one value nor equal values have a spread."""
    assert ratios.interval([3.0]) == (3.0, 3.0)
    assert ratios.interval([2.0] * 5) == (2.0, 2.0)


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is ten times slower in the second round changes no ratio; the median of the ratios is not that of the
    medians."""
    found = ratios.compare([1.0, 20.0, 3.0], [2.0, 20.0, 2.0], "s", 0.9)
    assert (found["median"], found["value"], found["n"]) == (1.0, 3.0, 3)
    assert (found["low"], found["high"]) == (0.5, 1.5)
    assert ratios.met(found)
    assert ratios.met({**found, "low": 0.91}) is False
    assert ratios.met({**found, "floor": None}) is None
    assert ratios.subtract([5.0, 7.0, 9.0], [1.0, 2.0, 3.0], "µs")["median"] == 5.0


def test_a_round_that_lacks_a_turn_is_refused() -> None:
    """Values of different rounds are never compared."""
    with pytest.raises(ValueError, match="zip"):
        ratios.compare([1.0], [1.0, 2.0], "s")


def _row(name: str, value: float, floor: float | None = None) -> dict[str, Any]:
    return {
        "group": "LeNet-5, batch 128",
        "name": name,
        "measures": {"epoch": ratios.compare([value], [2.0], "s", floor)},
    }


def test_a_table_has_ratio_value_and_floor() -> None:
    """Two decimals, the interval in brackets, and whether the floor is met; without floors there is no such column."""
    found = report.table([_row("bare loop", 2.0), _row("dlrun", 2.5, 1.0), _row("other", 1.0, 0.9)], "bare loop")
    assert found == [
        "| over: bare loop | epoch, ratio | epoch, s | floor | n |",
        "| --- | --- | --- | --- | --- |",
        "| bare loop | 1.00 (1.00 to 1.00) | 2 |  | 1 |",
        "| dlrun | 1.25 (1.25 to 1.25) | 2.5 | <= 1 **not met** | 1 |",
        "| other | 0.50 (0.50 to 0.50) | 1 | <= 0.9 met | 1 |",
    ]
    assert report.table([_row("bare loop", 2.0)], "bare loop")[0] == "| over: bare loop | epoch, ratio | epoch, s | n |"


def test_a_measure_over_two_bases_shows_its_values_once() -> None:
    """The second difference of the same microseconds has no column of its own for them."""
    measures = {f"over {base}": ratios.subtract([base + 1.0], [float(base)], "µs") for base in (1, 1)}
    measures["over 2"] = ratios.subtract([2.0], [2.0], "µs")
    head = report.table([{"group": "", "name": "dlrun", "measures": measures}], "base")[0]
    assert head == "| over: base | over 1, difference | over 1, µs | over 2, difference | n |"


def test_groups_that_are_not_measured_anew_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part can be measured again; the others keep their figures and the command they come from."""
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)  # no plot
    for group, value in (("first", 2.0), ("second", 3.0), ("first", 4.0)):
        section = report.Section("epoch", "An epoch", "", "bare loop", [{**_row("bare loop", value), "group": group}])
        report.publish(section, tmp_path, "cpu", None)
    found = json.loads((tmp_path / "epoch.json").read_text())["rows"]
    assert [(row["group"], row["measures"]["epoch"]["value"]) for row in found] == [("second", 3.0), ("first", 4.0)]
    assert all("scripts/benchmark.py" in row["command"] for row in found)
    page = (tmp_path / "README.md").read_text()
    assert page.index("### second") < page.index("### first")


def test_a_path_of_this_machine_is_not_published() -> None:
    """The options that name one are left out of the command, whichever way they are written."""
    words = ["epoch", "--rounds", "2", "--output", f"{os.sep}home{os.sep}x", f"--table={os.sep}t", "--compile"]
    assert report.shown_words(words) == ["epoch", "--rounds", "2", "--compile"]


def test_floors_are_those_promised() -> None:
    """Those of the table of figures, and nothing for the others."""
    assert floor_of(Workload("mlp", 128), "dlrun") == 0.9
    assert floor_of(Workload("lenet", 128), "dlrun") == floor_of(Workload("mlp", 512), "dlrun") == 1.0
    assert floor_of(Workload("lenet", 128), "dlrun, compile") == 0.8
    assert floor_of(Workload("lenet", 128), "Lightning") is None


def test_rows_need_their_base() -> None:
    """Without the bare loop's turns there is nothing to compare with."""
    turns = [{"train": 1.0, "epoch": 2.0, "accuracy": 0.5}]
    assert rows(Workload(), {"dlrun": turns}) == []
    (_, found) = rows(Workload(), {"bare loop": turns, "dlrun": [{"train": 3.0, "epoch": 5.0}]})
    assert (found["measures"]["train"]["median"], found["measures"]["epoch"]["median"]) == (3.0, 2.5)


def test_work_after_the_end_of_an_epoch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU seconds are added up until there come no more."""
    clock = iter([1.0, 1.0, 1.5, 1.5, 1.5, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9, 99.0])
    monkeypatch.setattr(pace, "busy_seconds", lambda: next(clock))
    monkeypatch.setattr(pace.time, "sleep", lambda seconds: None)
    assert pace.wait_until_quiet() == pytest.approx(0.9)


def test_a_contestant_that_fails_is_left_out_with_one_line() -> None:
    """The others would go on."""
    found, left = take_turns(["nobody"], Workload(), rounds=1)
    assert (found, left) == ({}, ["nobody is left out: KeyError: 'nobody'"])


def _measured(median: float, high: float) -> dict[str, float]:
    return {"median": median, "low": median, "high": high}


@pytest.mark.parametrize(
    ("together", "expected"),
    [(0.4, {"precision": "bf16", "compile": True}), (0.7, {"precision": "bf16", "compile": False})],
)
def test_only_resolved_gains_are_chosen(
    monkeypatch: pytest.MonkeyPatch, together: float, expected: dict[str, Any]
) -> None:
    """An interval that reaches 0.97 is no gain; two gains are chosen together only where that beats the better one."""
    alone = {"implementation=foreach": _measured(0.5, 0.98), "precision=bf16": _measured(0.6, 0.7)}
    alone["compile=true"] = _measured(0.8, 0.9)

    def compared(family: str, batch: int, tried: dict[str, Any], options: Any) -> dict[str, Any]:
        return {name: alone.get(name) or _measured(0.6 if name == "best" else together, 0.8) for name in tried}

    monkeypatch.setattr(settings, "_compared", compared)
    options = argparse.Namespace(no_compile=False, device="cpu", threads=1)
    chosen, _ = settings._choose("mlp", 128, options)
    assert chosen == {**settings.DEFAULT, **expected}


def test_rows_not_measured_anew_stay_in_the_table(tmp_path: Path) -> None:
    """The same device, family and batch are replaced; the file is sorted JSON."""
    path = tmp_path / "table.json"
    row = {"device": "cpu", "family": "mlp", "batch": 128, "implementation": "fused"}
    settings.write_table(path, [row, {**row, "batch": 32}], "cpu", 1, n=7)
    settings.write_table(path, [{**row, "implementation": "foreach"}, {**row, "device": "cuda"}], "cpu", 1, n=9)
    table = json.loads(path.read_text())
    found = [(row["device"], row["batch"], row["implementation"]) for row in table["rows"]]
    assert found == [("cpu", 32, "fused"), ("cpu", 128, "foreach"), ("cuda", 128, "fused")]
    assert table["measured"]["cpu"]["n"] == 9


def test_the_bare_script_trains_the_same_network() -> None:
    """The shapes of the weights, in order, are those of `model=lenet`; so is the output for equal weights."""
    import torch

    sys.path.append(str(SCRIPTS / "benchmark"))
    from bare_lenet import lenet

    ours = build_model({"model": {"name": "lenet", "dropout": 0.0}}, (1, 28, 28)).eval()
    bare = lenet().eval()
    assert [p.shape for p in bare.parameters()] == [p.shape for p in ours.parameters()]
    with torch.no_grad():
        for a, b in zip(bare.parameters(), ours.parameters(), strict=True):
            a.copy_(b)
        inputs = torch.randn(3, 1, 28, 28)
        torch.testing.assert_close(bare(inputs), ours(inputs))


def test_a_tiny_benchmark(tmp_path: Path) -> None:
    """`epoch` with the bare loops and dlrun on the digits writes its table; every contestant did its validation."""
    words = ["epoch", "--models", "mlp", "--batches", "64", "--peers", "--data", "digits", "--limit-train", "256"]
    words += ["--rounds", "2", "--threads", "1", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "benchmark.py"), *words], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    section = json.loads((tmp_path / "epoch.json").read_text())
    assert section["left"] == []
    found = {row["name"]: row for row in section["rows"]}
    assert list(found) == ["bare loop", "bare loop, fused Adam", "dlrun"]
    for row in found.values():
        assert 0.1 < row["facts"]["validation accuracy"] <= 1
        train, epoch = row["measures"]["train"], row["measures"]["epoch"]
        assert train["n"] == epoch["n"] == 2
        assert all(0 < a < b < math.inf for a, b in zip(train["values"], epoch["values"], strict=True))
    assert found["bare loop"]["measures"]["epoch"]["values"] != found["dlrun"]["measures"]["epoch"]["values"]
    assert found["bare loop"]["measures"]["epoch"]["median"] == 1
    page = (tmp_path / "README.md").read_text()
    assert "### MLP 512-256 on digits, batch 64, 256 samples" in page
    assert "| dlrun |" in page
    assert str(tmp_path) not in page + (tmp_path / "epoch.json").read_text()
