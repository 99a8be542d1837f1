"""`settings`: which settings make a step and an evaluation fastest; writes the table that `auto` reads."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from benchmark.ratios import compare
from benchmark.report import Section, machine, say, versions

TABLE = Path(__file__).resolve().parents[2] / "src" / "dlrun" / "auto_settings.json"
FAMILIES = {"mlp": "mlp", "cnn": "lenet", "resnet": "resnet8"}
DEFAULT: dict[str, Any] = {
    "implementation": "fused",
    "memory_format": "contiguous",
    "precision": "fp32",
    "compile": False,
    "threads": None,
}
OTHERS: dict[str, Any] = {
    "implementation": "foreach",
    "memory_format": "channels_last",
    "precision": "bf16",
    "compile": True,
    "threads": 1,
}
EVALUATION, EVALUATIONS = 1024, (256, 512, 2048, 4096)
GAIN = 0.03  # what the interval of a ratio must clear
Ratios = dict[str, dict[str, Any]]
NOTE = (
    "Steps (batch in memory, forward, cross-entropy, backward, Adam) and evaluations of random 28x28 images in one "
    "process, each setting in turns with the default in random order. What is compared differs from the default in "
    "one setting, `chosen together` in all that gained alone. A setting is chosen where its 90 % interval lies below "
    f"{1 - GAIN:g}. threads=1 is over PyTorch's own number; the time to compile is left out."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of this measurement."""
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--batches", nargs="*", type=int, default=[32, 128, 512])
    parser.add_argument(
        "--no-compile", action="store_true", help="do not try trainer.compile=true, which takes minutes"
    )
    parser.add_argument("--table", type=Path, default=TABLE, help="the file to write; rows not measured anew stay")


def measure(options: argparse.Namespace) -> Section:
    """All families and batch sizes."""
    section, rows = Section("settings", "Settings", NOTE, "default"), []
    for family in options.families:
        evaluations = _evaluations(family, options)
        section.rows += [_line(f"{family}, evaluation", name, found) for name, found in evaluations.items()]
        batches = {name: found for name, found in evaluations.items() if gains(found)}
        evaluation = min(batches, key=lambda name: batches[name]["median"], default=f"batch={EVALUATION}")
        for batch in options.batches:
            chosen, ratios = _choose(family, batch, options)
            section.rows += [_line(f"{family}, batch {batch}", name, found) for name, found in ratios.items()]
            row = {"device": options.device, "family": family, "batch": batch, **chosen}
            del row["threads"]  # which is the user's to set
            row["evaluation_batch_size"] = int(evaluation.partition("=")[2])
            ratios |= {f"evaluation {name}": found for name, found in evaluations.items()}
            row["ratio"] = {
                name: [round(found[key], 3) for key in ("median", "low", "high")] for name, found in ratios.items()
            }
            rows.append(row)
            say(json.dumps(row))
    write_table(options.table, rows, options.device, options.threads, options.rounds)
    return section


def gains(measure: Mapping[str, Any]) -> bool:
    """Whether the gain is resolved."""
    return bool(measure["high"] < 1 - GAIN)


def _choose(family: str, batch: int, options: argparse.Namespace) -> tuple[dict[str, Any], Ratios]:
    """The settings for a family and batch size, and the ratios they rest on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tried = {name: {name: value} for name, value in OTHERS.items()}
    if family == "mlp":
        del tried["memory_format"]
    if options.no_compile:
        del tried["compile"]
    if options.device != "cpu" or options.threads or cores == 1:
        del tried["threads"]
    say(f"{family}, batch {batch}: {', '.join(tried)}")
    alone = _compared(family, batch, {_label(changes): changes for changes in tried.values()}, options)
    winners = {
        label: changes
        for label, changes in zip(alone, tried.values(), strict=True)
        if gains(alone[label]) and "threads" not in changes
    }
    if not winners:
        return dict(DEFAULT), alone
    best = min(winners, key=lambda label: alone[label]["median"])
    together = {key: value for changes in winners.values() for key, value in changes.items()}
    if len(winners) == 1:
        return {**DEFAULT, **together}, alone
    label = f"chosen together: {_label(together)}"
    again = _compared(family, batch, {"best": winners[best], label: together}, options)
    better = gains(again[label]) and again[label]["median"] < again["best"]["median"]
    return {**DEFAULT, **(together if better else winners[best])}, {**alone, label: again[label]}


def _label(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={str(value).lower()}" for name, value in changes.items())


def _compared(family: str, batch: int, tried: Mapping[str, Any], options: argparse.Namespace) -> Ratios:
    """The ratio of a step with each of the changes to the default, by label."""
    from benchmark.steps import Steps, take_turns  # not above: the benchmarks of processes shall not hold PyTorch

    steps = {"default": Steps(FAMILIES[family], batch, options.device, DEFAULT)}
    steps |= {
        label: Steps(FAMILIES[family], batch, options.device, {**DEFAULT, **changes})
        for label, changes in tried.items()
    }
    return _ratios(take_turns(steps, "default", options.rounds))


def _evaluations(family: str, options: argparse.Namespace) -> Ratios:
    from benchmark.steps import Evaluation, take_turns

    say(f"{family}: evaluation")
    model = FAMILIES[family]
    tried = {f"batch={batch}": Evaluation(model, batch, options.device) for batch in (EVALUATION, *EVALUATIONS)}
    return _ratios(take_turns(tried, f"batch={EVALUATION}", options.rounds), f"batch={EVALUATION}")


def _ratios(seconds: Mapping[str, list[float]], base: str = "default") -> Ratios:
    milliseconds = {name: [1e3 * s for s in values] for name, values in seconds.items()}
    return {n: compare(values, milliseconds[base], "ms") for n, values in milliseconds.items() if n != base}


def _line(group: str, name: str, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "group": group,
        "name": name,
        "measures": {"time": found},
        "facts": {"chosen": "yes" if gains(found) else ""},
    }


def write_table(path: Path, rows: list[dict[str, Any]], device: str, threads: int | None, n: int) -> None:
    """Puts `rows` in place of those for the same device, family and batch."""
    table: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"measured": {}, "rows": []}
    key = ("device", "family", "batch")
    new = {tuple(row[k] for k in key): row for row in rows}
    kept = {tuple(row[k] for k in key): row for row in table["rows"]}
    about = {
        "machine": machine(device, threads)["description"],
        "versions": versions(),
        "n": n,
        "date": date.today().isoformat(),
    }
    table.setdefault("measured", {})[device] = about
    table["rows"] = [row for _, row in sorted({**kept, **new}.items())]
    lines = ",\n".join("  " + json.dumps(row) for row in table["rows"])
    path.write_text(f'{{\n "measured": {json.dumps(table["measured"])},\n "rows": [\n{lines}\n ]\n}}\n')
