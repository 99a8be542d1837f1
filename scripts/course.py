"""Runs the commands of docs/course.md and writes what they give: `make course`.

    python scripts/course.py                 run the commands of all rows that say nothing yet, then write the page
    python scripts/course.py M46 R           anew those of row M46 and group R
    python scripts/course.py --page          run nothing; write the tables of docs/course.md from tests/curriculum.yaml
    python scripts/course.py --pictures      run the commands of PICTURES; write docs/images/course

Every command runs with seed 0 on one CPU thread, into outputs/course/<row>; what it gives goes into `gives` of
tests/curriculum.yaml. Data sets are read below DLRUN_DATA_DIR. Commands that name files of the reader's own are left out.
"""

from __future__ import annotations

import argparse
import base64
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

PICTURE_FOLDER = ROOT / "docs" / "images" / "course"
FOLDER = ROOT / "outputs" / "course"
OWN_FILES = (
    "--config-dir",
    "table.csv",
    "outputs/",
    "action=list",
    "device=auto",
)  # of the reader, or nothing to measure
PICTURES = {  # file: command, what to take of what it draws for TensorBoard, or the first picture of a comparison
    "filters": ("dlrun data=mnist model=lenet", "images/first_layer"),
    "misclassified": ("dlrun data=mnist model=lenet", "images/misclassified"),
    "augmentation": (
        "dlrun data=mnist model=lenet regularization=[augmentation] trainer.epochs=1",
        "images/training_batch",
    ),
    "reconstructions": ("dlrun data=mnist model=autoencoder", "images/reconstructions"),
    "face_off": ("dlrun -m experiment=face_off seeds=3", "compare"),
    "vanishing_gradients": ("dlrun -m experiment=vanishing_gradients seeds=3", "compare"),
}
METRICS = ("accuracy", "rmse", "nll", "squared_error", "loss")  # the first that a run has is what it gives


def main(argv: list[str] | None = None) -> int:
    """Runs what is asked for; gives the exit code: 1 if a command failed."""
    parser = argparse.ArgumentParser(description="Runs the commands of docs/course.md and writes what they give.")
    parser.add_argument(
        "rows", nargs="*", help="rows or groups, such as M46 R; those that say nothing yet if none is named"
    )
    parser.add_argument("--page", action="store_true", help="write docs/course.md only")
    parser.add_argument("--pictures", action="store_true", help="write docs/images/course only")
    args = parser.parse_args(argv)
    if args.pictures:
        draw_pictures(args.rows or list(PICTURES))
        return 0
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
    made = dlrun(folder, words)
    if made.returncode and not (folder / "leaderboard.csv").exists():  # in a sweep one setting may diverge, and say so
        return ""
    if "action=summary" in words:
        return of_summary(made.stdout)
    return of_sweep(folder) if (folder / "leaderboard.csv").exists() else of_run(folder, command)


def dlrun(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs one command, a run or a sweep in `folder`; what it prints goes beside it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not any(word.startswith("action=") for word in words):
        words = [*words, "device=cpu", "trainer.threads=1", f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    made = subprocess.run(
        [sys.executable, "-m", "dlrun", *words], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    folder.with_suffix(".log").write_text(made.stdout + made.stderr)
    return made


def draw_pictures(names: list[str]) -> None:
    """Runs the commands of the pictures, each once, and writes the files."""
    folders: dict[str, Path] = {}
    PICTURE_FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        command, tag = PICTURES[name]
        if command not in folders:
            folders[command] = FOLDER / name
            run(name, command)
        (PICTURE_FOLDER / f"{name}.png").write_bytes(picture(folders[command], tag))


def picture(folder: Path, tag: str) -> bytes:
    """The last picture of a tag in the event file of a run, or the first one of the page that compares a sweep."""
    if tag == "compare":
        dlrun(folder / "compare", ["action=compare", f"sweep={folder}"])
        found = re.search(r"data:image/png;base64,([^\"']+)", (folder / "compare" / "compare.html").read_text())
        assert found
        return base64.b64decode(found[1])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    images: bytes = events.Reload().Images(tag)[-1].encoded_image_string
    return images


def of_summary(table: str) -> str:
    """Size of the maps of the first convolution, where there is one; parameters and multiplications of the model."""
    maps = re.search(r"Conv2d +(\S+)", table)
    field = re.search(r"receptive field of the last maps: (\d+)", table)
    parameters, products = table.split("in all")[-1].split()[:2]
    found = [f"first maps {maps[1]}"] if maps else []
    found += [f"receptive field {field[1]}x{field[1]}"] if field else []
    return ", ".join([*found, f"{parameters} parameters", f"{products} multiplications"])


def of_run(folder: Path, command: str) -> str:
    """The metrics of the test set that belong to the kind of task."""
    metrics: dict[str, float] = json.loads((folder / "results.json").read_text())["metrics"]["test"]
    main = "nll" if "model=gaussian " in command else next(name for name in METRICS if name in metrics)
    also = [
        name for name in ("nll",) if name in metrics and main == "rmse" and ("nll" in command or "hetero" in command)
    ]
    return ", ".join(shown(name, metrics[name]) for name in (main, *also))


def of_sweep(folder: Path) -> str:
    """The metric that the sweep ranks by for each setting, the mean over seeds, in the order of the runs."""
    rows = sorted(csv.DictReader((folder / "leaderboard.csv").open()), key=lambda row: int(row["run"]))
    monitor = next(key for key in rows[0] if key.startswith("val/"))
    settings = [
        key for key in rows[0] if key not in ("run", "status", "seed") and not key.startswith(("val/", "test/"))
    ]
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
    return (
        f"accuracy {100 * value:.1f} %"
        if name == "accuracy"
        else f"{name.replace('nll', 'NLL').replace('_', ' ')} {value:.3g}"
    )


def written(text: str, name: str, gives: str) -> str:
    """tests/curriculum.yaml with what the command of one row gives."""
    line = re.search(rf"^{name}: .*$", text, re.MULTILINE)
    assert line, name
    kept = re.sub(r', gives: "[^"]*"', "", line[0])
    return text.replace(line[0], f'{kept[:-1]}, gives: "{gives}"}}')


if __name__ == "__main__":
    sys.exit(main())
