"""Where the figures go: docs/benchmarks/<section>.json and .png, and one page of all sections."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmark.ratios import met

ORDER = ("epoch", "step", "process", "logging", "streaming", "settings", "sweeps")
PACKAGES = ("dlrun", "torch", "torchvision", "numpy", "lightning", "pytorch-ignite", "keras", "skorch")
HEAD = """# Benchmarks

Written by `make benchmark` (scripts/benchmark.py). Every figure is the median over n interleaved rounds of the ratio to the
base of the same round, or of the difference; in brackets its 90 % interval (percentile bootstrap of the median, 10,000
resamples). A floor counts as met when the lower end of the interval is at or under it.
"""


@dataclass
class Section:
    """What one sub-command found.

    Attributes:
        name: of its files.
        title: above its tables.
        note: what was measured, and how.
        base: what the others are compared with.
        rows: `{"group", "name", "measures": {measure: see ratios.compare}, "facts": {name: value}}`.
        left: one line for each contestant that could not take part.
        threads: of PyTorch, where the section has its own; else as asked for.
        machine, versions, date, command: where it comes from.
    """

    name: str
    title: str
    note: str
    base: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    threads: int | None = None
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    date: str = ""
    command: str = ""


def say(line: str) -> None:
    """What is going on, for the person who waits."""
    print(line, file=sys.stderr, flush=True)


def publish(section: Section, folder: Path, device: str, threads: int | None) -> None:
    """Writes the section's files and the page of all sections; prints its tables. Groups that were measured before, and not
    anew, stay."""
    section.machine, section.versions = machine(device, section.threads or threads), versions()
    section.left = [re.sub(r"(?<!\S)['\"]?/[^\s:]+", "<path>", line) for line in section.left]  # of this machine
    section.date = date.today().isoformat()
    section.command = f"scripts/benchmark.py {' '.join(shown_words(sys.argv[1:]))}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{section.name}.json"
    for row in section.rows:
        row["command"] = f"{section.date}: `{section.command}`"
    print(markdown(asdict(section)))
    anew = {row["group"] for row in section.rows}
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    section.rows = [row for row in earlier if row["group"] not in anew] + section.rows
    path.write_text(json.dumps(asdict(section), indent=1) + "\n")
    if importlib.util.find_spec("matplotlib"):
        from benchmark.plot import plot

        plot(asdict(section), path.with_suffix(".png"))
    else:
        say("matplotlib is not installed: no plot")
    sections = [json.loads(file.read_text()) for name in ORDER if (file := folder / f"{name}.json").exists()]
    pages = [markdown(found, folder) for found in sections]
    (folder / "README.md").write_text("\n".join([HEAD, *pages]).rstrip() + "\n")


def shown_words(words: list[str]) -> list[str]:
    """The command line without the options that name a path of this machine."""
    kept: list[str] = []
    for word in words:
        if os.sep in word:
            if "=" not in word and kept and kept[-1].startswith("--"):
                kept.pop()
        else:
            kept.append(word)
    return kept


def markdown(section: dict[str, Any], folder: Path | None = None) -> str:
    """A section as text with one table for each group; with its plot where `folder` has it."""
    about, lines = section["machine"], [f"## {section['title']}", "", section["note"], ""]
    names = ", ".join(f"{name} {version}" for name, version in section["versions"].items())
    lines += [f"{about['description']}; {names}.", ""]
    for group in dict.fromkeys(row["group"] for row in section["rows"]):
        rows = [row for row in section["rows"] if row["group"] == group]
        lines += [f"### {group}", "", *table(rows, section["base"]), ""]
        lines += [rows[0]["command"], ""] if "command" in rows[0] else []
    lines += [f"- {line}" for line in section["left"]] + ([""] if section["left"] else [])
    if folder and (folder / f"{section['name']}.png").exists():
        lines += [f"![{section['title']}]({section['name']}.png)", ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], base: str) -> list[str]:
    """The lines of a table: a row for each contestant, two columns for each measure, floors, facts. Measures of the same
    values (such as over two bases) show them once."""
    measures = list(dict.fromkeys(name for row in rows for name in row["measures"]))
    seen: list[Any] = []
    for name in measures:
        seen.append([row["measures"].get(name, {}).get("values") for row in rows])
    once = [seen.index(values) == i for i, values in enumerate(seen)]
    facts = list(dict.fromkeys(name for row in rows for name in row.get("facts", {})))
    floors = any(m["floor"] is not None for row in rows for m in row["measures"].values())
    head = [f"over: {base}"]
    for name, shown in zip(measures, once, strict=True):
        first = next(row["measures"][name] for row in rows if name in row["measures"])
        head += [f"{name}, {first['kind']}", *([f"{name}, {first['unit']}"] if shown else [])]
    head += [*(["floor"] if floors else []), "n", *facts]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        found = [row["measures"].get(name) for name in measures]
        cells = [text for measure, shown in zip(found, once, strict=True) for text in cells_of(measure)[: 1 + shown]]
        floor = [floor_of(row["measures"].values())] if floors else []
        n = str(max(measure["n"] for measure in row["measures"].values()))
        lines.append([row["name"], *cells, *floor, n, *(str(row.get("facts", {}).get(name, "")) for name in facts)])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def cells_of(measure: dict[str, Any] | None) -> list[str]:
    """`0.93 (0.91-0.95)` and the median in its unit."""
    if measure is None:
        return ["", ""]
    digits = 2 if measure["kind"] == "ratio" else 1
    middle, low, high = (f"{measure[key]:.{digits}f}" for key in ("median", "low", "high"))
    return [
        f"{middle} ({low} to {high})",
        f"{measure['value']:.3g}" if measure["value"] < 100 else f"{measure['value']:.0f}",
    ]


def floor_of(measures: Iterable[dict[str, Any]]) -> str:
    """`<= 0.90 met`."""
    texts = [f"<= {m['floor']:g} {'met' if met(m) else '**not met**'}" for m in measures if m["floor"] is not None]
    return ", ".join(texts)


def machine(device: str, threads: int | None) -> dict[str, Any]:
    """The processor and what is used of it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = f"{threads} thread{'s' if threads and threads > 1 else ''}" if threads else "PyTorch's own number of threads"
    text = f"{model}, {cores} cores, {used}, {platform.system()}, Python {platform.python_version()}"
    return {"processor": model, "cores": cores, "device": device, "description": text + _gpu(device)}


def _gpu(device: str) -> str:
    if device != "cuda":
        return ""
    program = "import torch; print(torch.cuda.get_device_name())"  # not here: the driver shall hold no device memory
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return f", {done.stdout.strip()}"


def versions() -> dict[str, str]:
    """Of what is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
