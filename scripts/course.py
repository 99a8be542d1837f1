"""Runs the commands of docs/course.md and writes what they give: `make course`.

    python scripts/course.py                 run the commands of all rows that say nothing yet, then write the page
    python scripts/course.py M46 R           anew those of row M46 and group R
    python scripts/course.py --page          run nothing; write the tables of docs/course.md from tests/curriculum.yaml

Every command runs with seed 0 on one CPU thread, into outputs/course/<row>; what it gives goes into `gives` of tests/curriculum.yaml. Data
sets are read below DLRUN_DATA_DIR. Commands that name files of the reader's own are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from curriculum import PAGE, ROOT, ROWS, course_page, is_chosen, read_rows

FOLDER = ROOT / "outputs" / "course"
OWN_FILES = ("--config-dir", "table.csv", "outputs/", "action=list", "device=auto")  # of the reader, or nothing to measure
METRICS = ("accuracy", "rmse", "nll", "squared_error", "loss")  # the first that a run has is what it gives


def main(argv: list[str] | None = None) -> int:
    """Runs what is asked for; gives the exit code: 1 if a command failed."""
    parser = argparse.ArgumentParser(description="Runs the commands of docs/course.md and writes what they give.")
    parser.add_argument("rows", nargs="*", help="rows or groups, such as M46 R; those that say nothing yet if none is named")
    parser.add_argument("--page", action="store_true", help="write docs/course.md only")
    args = parser.parse_args(argv)
    failed = [] if args.page else run_rows(args.rows)
    PAGE.write_text(course_page(PAGE.read_text(), read_rows()))
    for name in failed:
        print(f"{name}: failed; see {FOLDER / name}.log")
    return int(bool(failed))


def run_rows(chosen: list[str]) -> list[str]:
    """Runs each different command once and writes down what it gives at once. Gives the rows whose command failed."""
    rows = read_rows()
    wanted = [name for name, row in rows.items() if (is_chosen(name, chosen) if chosen else "gives" not in row)]
    failed, done = [], {}
    for name in wanted:
        command = rows[name].get("command", "")
        if not command or any(word in command for word in OWN_FILES):
            continue
        if command not in done:
            done[command] = run(name, command)
        if done[command]:
            print(f"{name}: {command}: {done[command]}", flush=True)
            ROWS.write_text(written(ROWS.read_text(), name, done[command]))
        else:
            failed.append(name)
    return failed


def run(name: str, command: str) -> str:
    """What one command gives, or nothing if it fails."""
    folder, words = FOLDER / name, shlex.split(command)[1:]
    shutil.rmtree(folder, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if "action=summary" not in words:
        words += ["device=cpu", "trainer.threads=1", f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    made = subprocess.run([sys.executable, "-m", "dlrun", *words], cwd=ROOT, env=environment, text=True, capture_output=True)
    folder.with_suffix(".log").write_text(made.stdout + made.stderr)
    if made.returncode:
        return ""
    if "action=summary" in words:
        parameters, products = made.stdout.split("in all")[-1].split()[:2]
        return f"{parameters} parameters, {products} multiplications"
    return of_sweep(folder) if (folder / "leaderboard.csv").exists() else of_run(folder, command)


def of_run(folder: Path, command: str) -> str:
    """The metrics of the test set that belong to the kind of task."""
    metrics: dict[str, float] = json.loads((folder / "results.json").read_text())["metrics"]["test"]
    main = next(name for name in METRICS if name in metrics)
    also = [name for name in ("nll",) if name in metrics and main == "rmse" and ("nll" in command or "hetero" in command)]
    return ", ".join(shown(name, metrics[name]) for name in (main, *also))


def of_sweep(folder: Path) -> str:
    """The metric that the sweep ranks by for each setting, the mean over seeds, in the order of the runs."""
    rows = sorted(csv.DictReader((folder / "leaderboard.csv").open()), key=lambda row: int(row["run"]))
    monitor = next(key for key in rows[0] if key.startswith("val/"))
    settings = [key for key in rows[0] if key not in ("run", "status", "seed") and not key.startswith(("val/", "test/"))]
    groups: dict[str, list[float | str]] = {}
    for row in rows:
        value = float(row[monitor]) if row[monitor] else row["status"]
        groups.setdefault(" ".join(row[key] for key in settings), []).append(value)
    means = {key: mean(values) for key, values in groups.items()}
    return f"{monitor} " + ", ".join(f"{value} ({key})" for key, value in means.items())


def mean(values: list[Any]) -> str:
    """Of numbers the mean; the status of a run that has none."""
    words = [value for value in values if isinstance(value, str)]
    return words[0] if words else f"{statistics.mean(values):.3g}"


def shown(name: str, value: float) -> str:
    """An accuracy in per cent, anything else with three digits."""
    return f"accuracy {100 * value:.1f} %" if name == "accuracy" else f"{name.replace('nll', 'NLL').replace('_', ' ')} {value:.3g}"


def written(text: str, name: str, gives: str) -> str:
    """tests/curriculum.yaml with what the command of one row gives."""
    line = re.search(rf"^{name}: .*$", text, re.MULTILINE)
    assert line, name
    kept = re.sub(r', gives: "[^"]*"', "", line[0])
    return text.replace(line[0], f'{kept[:-1]}, gives: "{gives}"}}')


if __name__ == "__main__":
    sys.exit(main())
