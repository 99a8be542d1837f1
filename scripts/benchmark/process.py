"""`process`: whole processes, seconds and peak memory, over a bare script and over Lightning; launch to the first step."""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmark.ratios import compare
from benchmark.report import Section, say
from benchmark.turns import Terminal, environment

HERE = Path(__file__).parent
BARE, DLRUN, TORCH = "bare script", "dlrun", "import torch alone"
VISION, TENSORS = "Lightning, torchvision data set", "Lightning, equal tensors"
Measured = dict[str, float]
NOTE = (
    "On the CPU. From launch to exit, one process after the other, in a new random order each round; standard error is a "
    "terminal. `bare script`: scripts/benchmark/bare_lenet.py, which imports, reads the compressed files, trains "
    "LeNet-5 for an epoch with batch 128 and default Adam on 54,000 samples, validates on 6,000 and tests on 10,000. "
    "dlrun does the same with `model=lenet model.dropout=0 data=mnist data.batch_size=128` and writes all it does by "
    "default; what it caches is warm. Lightning (scripts/benchmark/lightning_lenet.py) trains with "
    "`Adam(fused=True)`, without workers, logger, checkpoints or progress bar. `first step`: from launch until the "
    "first optimizer step of `dlrun model=mlp data=digits` is done, told by a callback of the benchmark's own that "
    "comes before the others; its base is the time from launch until `import torch` has returned."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of this measurement."""
    parser.add_argument("--epochs", type=int, default=5, help="process: of dlrun and Lightning")
    parser.add_argument("--samples", type=int, default=54_000, help="process: training samples")
    parser.add_argument(
        "--parts", nargs="*", default=["bare", "lightning", "launch"], help="process: which comparisons"
    )


def measure(options: argparse.Namespace) -> Section:
    """The three comparisons."""
    from dlrun.settings import data_root

    section = Section("process", "Whole processes", NOTE, "the row with ratio 1")
    raw = data_root() / "MNIST" / "raw"
    if not raw.is_dir() and set(options.parts) - {"launch"}:
        sys.exit(f"{raw}: not there; run once: dlrun data=mnist trainer.fast_dev_run=true")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        here = Path(name)
        more = {"DLRUN_DATA_DIR": str(data_root()), "XDG_CACHE_HOME": str(here / "cache"), "CUDA_VISIBLE_DEVICES": ""}
        if "bare" in options.parts:
            _bare(section, options, raw, here, more)
        if "lightning" in options.parts:
            _lightning(section, options, raw, here, more)
        if "launch" in options.parts:
            _launch(section, options, here, more)
    return section


def _bare(section: Section, options: argparse.Namespace, raw: Path, here: Path, more: dict[str, str]) -> None:
    runs = {
        BARE: lambda: run([str(HERE / "bare_lenet.py"), str(raw), str(options.samples)], more),
        DLRUN: lambda: run(lenet(options, 1, here), more),
    }
    say("whole processes: one epoch, bare script and dlrun")
    found = interleaved(runs, options.rounds)
    floors = {"wall": 1.1, "peak memory": 1.15}
    group = f"LeNet-5 on MNIST, epochs: 1, of {options.samples:,} samples"
    section.rows += [_row(group, name, found, BARE, floors if name == DLRUN else {}) for name in found]


def _lightning(section: Section, options: argparse.Namespace, raw: Path, here: Path, more: dict[str, str]) -> None:
    if not importlib.util.find_spec("lightning"):
        section.left.append("Lightning is left out: it is not installed")
        return
    plain = here / "MNIST" / "raw"  # torchvision takes nothing but uncompressed files
    plain.mkdir(parents=True, exist_ok=True)
    for file in raw.glob("*-ubyte.gz"):
        (plain / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    for file in raw.glob("*-ubyte"):
        (plain / file.name).write_bytes(file.read_bytes())
    script, numbers = str(HERE / "lightning_lenet.py"), (str(here), str(options.epochs), str(options.samples))
    runs = {
        VISION: lambda: run([script, "torchvision", *numbers], more),
        TENSORS: lambda: run([script, "tensors", *numbers], more),
        DLRUN: lambda: run(lenet(options, options.epochs, here), more),
    }
    say(f"whole processes: {options.epochs} epochs, Lightning and dlrun")
    found = interleaved(runs, options.rounds)
    group = f"LeNet-5 on MNIST, epochs: {options.epochs}, of {options.samples:,} samples"
    for base, floor in ((VISION, 0.4), (TENSORS, 0.9)):
        title = f"{group}: over {base}"
        section.rows += [
            _row(title, name, found, base, {"wall": floor} if name == DLRUN else {}) for name in (base, DLRUN)
        ]


def _launch(section: Section, options: argparse.Namespace, here: Path, more: dict[str, str]) -> None:
    told = here / "first_step"
    more = {**more, "BENCHMARK_FIRST_STEP": str(told)}
    clock = "import torch, time; print(repr(time.monotonic()), file=open({!r}, 'w'))"
    launches = {
        TORCH: lambda: launch(["-c", clock.format(str(told))], told, more),
        DLRUN: lambda: launch(first_step(here), told, more),
    }
    say("launch to the first step")
    found = interleaved(launches, options.rounds)
    group = "launch to the first optimizer step, model=mlp data=digits"
    section.rows += [_row(group, name, found, TORCH, {"first step": 1.8} if name == DLRUN else {}) for name in found]


def lenet(options: argparse.Namespace, epochs: int, here: Path) -> list[str]:
    """dlrun's command for LeNet on MNIST."""
    words = [
        "-m",
        "dlrun",
        "model=lenet",
        "model.dropout=0",
        "data=mnist",
        "data.batch_size=128",
        "device=cpu",
    ]
    limit = [f"data.limit_train={options.samples}"] if options.samples < 54_000 else []
    return [*words, *limit, f"trainer.epochs={epochs}", f"hydra.run.dir={_new(here)}"]


def first_step(here: Path) -> list[str]:
    """dlrun's command that ends after the first step; all callbacks that come by default are there."""
    words = ["-m", "dlrun", "--config-dir", str(HERE / "configs"), "model=mlp", "data=digits"]
    return [*words, "callbacks=[first_step,progress,metrics_file,tensorboard]", f"hydra.run.dir={_new(here)}"]


def _new(here: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=here)) / "run"


def run(words: list[str], more: Mapping[str, str]) -> Measured:
    """Seconds and peak memory (MiB) of `python <words>`, its children's own peak included; ends the benchmark if it fails."""
    terminal = Terminal()
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *words], env=environment(**more), stdout=subprocess.DEVNULL, stderr=terminal.slave
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    said = terminal.close()
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}:\n{said[-2000:]}")
    scale = 1 if sys.platform == "darwin" else 1024
    return {"wall": wall, "peak memory": usage.ru_maxrss * scale / 2**20}


def launch(words: list[str], told: Path, more: Mapping[str, str]) -> Measured:
    """Seconds from launching `python <words>` to the time that it writes into the file `told`."""
    told.unlink(missing_ok=True)
    start = time.monotonic()
    run(words, more)
    return {"first step": float(told.read_text()) - start}


def interleaved(runs: Mapping[str, Callable[[], Measured]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """What each run measured, by name and measure; a first round for warming up is left out."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    chooser = random.Random(0)
    for number in range(rounds + 1):
        for name in chooser.sample(list(runs), len(runs)):
            measured = runs[name]()
            for key, value in measured.items() if number else ():
                found[name].setdefault(key, []).append(value)
    return found


def _row(
    group: str, name: str, found: dict[str, dict[str, list[float]]], base: str, floors: Mapping[str, float]
) -> dict[str, Any]:
    measures = {
        key: compare(values, found[base][key], "MiB" if key == "peak memory" else "s", floors.get(key))
        for key, values in found[name].items()
    }
    return {"group": group, "name": name, "measures": measures}
