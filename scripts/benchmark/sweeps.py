"""`sweeps`: whole sweeps, over Hydra's basic launcher and over separate processes; two workers over one."""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from benchmark.process import HERE, Measured, _row, interleaved, run
from benchmark.report import Section, say

LRS, SEEDS = (1e-4, 3e-4, 1e-3, 3e-3), (0, 1, 2, 3)
ORDINARY, SEPARATE, DLRUN = "ordinary script, Hydra's basic launcher", "ordinary script, 16 processes", "dlrun"
BASIC, ONE, TWO = "dlrun, Hydra's basic launcher", "dlrun, one worker", "dlrun, two workers"
WORDS = ("device=cpu", f"optimizer.lr={','.join(map(str, LRS))}", f"seed={','.join(map(str, SEEDS))}", "-m")
MLP = (
    "-m", "dlrun", "model=mlp", "model.dropout=0", "data=mnist", "data.batch_size=128", "data.limit_train=10000",
    "data.limit_val=2000", "trainer.epochs=1", *WORDS,
)  # fmt: skip
TRIVIAL = ("-m", "dlrun", "model=linear", "data=xor", "trainer.fast_dev_run=true", "callbacks=none", *WORDS)
NOTE = (
    "On the CPU, from launch to exit. 16 runs: 4 learning rates, 4 seeds. The MLP has 784-512-256-10 units and is trained "
    "for an epoch on 10,000 images of MNIST, validated on 2,000 and tested on the 10,000 of the test set. `ordinary script` is "
    "scripts/benchmark/hydra_mlp.py: Hydra, torchvision's data set, a DataLoader, one checkpoint, nothing else. dlrun "
    "writes all it does by default. A trivial job trains two minibatches of XOR without callbacks. `one worker` and `two "
    "workers` have one thread each; their time goes from the first run's beginning to the last one's end."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of this measurement."""
    parser.add_argument("--sweeps", nargs="*", default=["mlp", "trivial", "workers"], help="sweeps: which comparisons")
    parser.add_argument("--separate", type=int, default=3, help="sweeps: rounds of the separate processes")


def measure(options: argparse.Namespace) -> Section:
    """The comparisons."""
    from dlrun.settings import data_root

    section = Section("sweeps", "Sweeps", NOTE, "the row with ratio 1")
    raw = data_root() / "MNIST" / "raw"
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        here = Path(name)
        more = {
            "DLRUN_DATA_DIR": str(data_root()),
            "MNIST_ROOT": str(here),
            "XDG_CACHE_HOME": str(here / "cache"),
            "CUDA_VISIBLE_DEVICES": "",
        }
        if "mlp" in options.sweeps:
            _mlp(section, options, raw, here, more)
        if "trivial" in options.sweeps:
            _trivial(section, options, here, more)
        if "workers" in options.sweeps:
            _workers(section, options, here, more)
    return section


def _mlp(section: Section, options: argparse.Namespace, raw: Path, here: Path, more: Mapping[str, str]) -> None:
    plain = here / "MNIST" / "raw"
    plain.mkdir(parents=True)
    for file in raw.glob("*-ubyte.gz"):
        (plain / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    script = str(HERE / "hydra_mlp.py")
    grid = [f"lr={','.join(map(str, LRS))}", f"seed={','.join(map(str, SEEDS))}"]

    def separate() -> Measured:
        words = [[f"lr={lr}", f"seed={seed}"] for lr in LRS for seed in SEEDS]
        done = [run([script, *one, f"hydra.run.dir={_new(here)}"], more) for one in words]
        return {"wall": sum(one["wall"] for one in done)}

    def ordinary() -> Measured:
        return {"wall": run([script, "-m", *grid, f"hydra.sweep.dir={_new(here)}"], more)["wall"]}

    say("16 runs of an MLP: dlrun, an ordinary script with Hydra's basic launcher")
    found = interleaved({ORDINARY: ordinary, DLRUN: lambda: _sweep(MLP, here, more)}, options.rounds)
    group = "MLP on 10,000 images of MNIST, 16 runs of an epoch"
    section.rows += [_row(group, name, found, ORDINARY, {"wall": 0.25} if name == DLRUN else {}) for name in found]
    if options.separate:
        say("16 runs of an MLP: dlrun, separate processes")
        found = interleaved({SEPARATE: separate, DLRUN: lambda: _sweep(MLP, here, more)}, options.separate)
        group += ": over separate processes"
        section.rows += [_row(group, name, found, SEPARATE, {"wall": 0.1} if name == DLRUN else {}) for name in found]


def _trivial(section: Section, options: argparse.Namespace, here: Path, more: Mapping[str, str]) -> None:
    say("16 trivial jobs")
    basic = (*TRIVIAL, "hydra/launcher=basic", "hydra/sweeper=basic")
    runs = {BASIC: lambda: _sweep(basic, here, more), DLRUN: lambda: _sweep(TRIVIAL, here, more)}
    found = interleaved(runs, options.rounds)
    group = "trivial jobs, 16"
    section.rows += [_row(group, name, found, BASIC, {"wall": 0.75} if name == DLRUN else {}) for name in found]


def _workers(section: Section, options: argparse.Namespace, here: Path, more: Mapping[str, str]) -> None:
    say("one worker and two")
    one, two = (*MLP, "launcher.workers=1", "launcher.threads=1"), (*MLP, "launcher.workers=2", "launcher.threads=1")
    runs = {ONE: lambda: _sweep(one, here, more, True), TWO: lambda: _sweep(two, here, more, True)}
    found = interleaved(runs, options.rounds)
    group = "one worker and two, of one thread each; start-up left out"
    section.rows += [_row(group, name, found, ONE, {"wall": 1 / 1.5} if name == TWO else {}) for name in found]


def _sweep(words: tuple[str, ...], here: Path, more: Mapping[str, str], inside: bool = False) -> Measured:
    """Seconds of a sweep, `inside`: without its start and its end."""
    folder = _new(here)
    wall = run([*words, f"hydra.sweep.dir={folder}"], more)["wall"]
    results = [json.loads(path.read_text())["status"] for path in folder.glob("*/results.json")]
    if results != ["finished"] * 16:
        sys.exit(f"{' '.join(words)}: {results}")
    if inside:
        lines = map(json.loads, (folder / "jobs.jsonl").read_text().splitlines())
        times = [datetime.fromisoformat(line["at"]).timestamp() for line in lines if "at" in line]
        wall = max(times) - min(times)
    shutil.rmtree(folder)
    return {"wall": wall}


def _new(here: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=here)) / "run"
