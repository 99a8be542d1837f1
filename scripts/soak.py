"""Kills runs at random moments, resumes them, and compares them bit for bit with runs that were never stopped.

python scripts/soak.py --kills 300 --jobs 2 --seed 0        # about a quarter of an hour on two cores
python scripts/soak.py --kills 20 --only lenet,autoencoder  # some of the configurations of soak_runs.py

Every kill is a SIGKILL: a third of them at a random moment of the run, a third right after a temporary file of a save has
appeared, a third within the two milliseconds before or after such a file is gone. A run resumed after a kill is killed
again with a probability of a quarter; those kills come on top of the number asked for. So `--kills N` compares N resumed
runs. Each process is forked from one that has imported everything but trained nothing, and starts with other global
random numbers. Exit code 1 unless all runs end identical, every checkpoint found after a kill can be loaded and no worker
process stays.
"""

# ruff: noqa: E402 - the number of threads is set before anything is imported that starts them

from __future__ import annotations

import argparse
import functools
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"  # no thread may exist in the process that is forked

from soak_processes import WAYS, is_saving, kill, left_behind, start
from soak_runs import RUNS, compose_all, make_data

from dlrun import checkpoint, rundir
from dlrun.actions._contents import read_run
from dlrun.actions._identical import compare
from dlrun.registry import ConfigError

IMPORTED = (  # by runs when they need them: here once for all
    "sklearn.datasets", "torch._inductor", "torch.utils.tensorboard.summary", "torch.utils.tensorboard._pytorch_graph",
    "tensorboard.plugins.hparams.plugin_data_pb2", "tensorboard.summary.writer.record_writer", "torch.utils.data",
)  # fmt: skip
AGAIN = 0.25  # probability that a resumed run is killed again
COLUMNS = ("kills", "in a save", "before a checkpoint", "before the config", "identical", "different", "unreadable")


def resumed(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of the next process: as saved, to go on, or as given if none was saved yet."""
    if not rundir.is_run(folder):
        return config
    return {**config, **rundir.read_config(folder, "resume"), "resume": str(folder)}


def unreadable(folder: Path) -> int:
    """How many of the checkpoints that are there cannot be loaded."""
    bad = 0
    for name in (rundir.LAST, rundir.BEST, rundir.LAST.with_name(checkpoint.PREVIOUS)):
        try:
            if (folder / name).exists():
                checkpoint.load(folder / name)
        except ConfigError:
            bad += 1
    return bad


def train_twin(name: str, config: dict[str, Any], folder: Path) -> tuple[str, float]:
    """Trains a run that is never stopped. Returns its name and how many seconds it took."""
    folder.mkdir(parents=True)
    log, begin = folder.with_suffix(".log"), time.monotonic()
    pid = start(config, folder, 0, log)
    if code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit(f"{name}: exit code {code}\n{log.read_text()}")
    return name, time.monotonic() - begin


def cycle(name: str, config: dict[str, Any], twin: Path, folder: Path, number: int, seed: int, duration: float) -> Any:
    """One run killed (perhaps several times), resumed to its end and compared. Returns (name, counts, what differs)."""
    draw = random.Random(f"{seed}/{name}/{number}")
    folder.mkdir(parents=True)
    log, counts = folder.with_suffix(".log"), Counter[str]()
    found: list[str] = []
    groups: list[int] = []
    share = 1.0
    while True:
        pid = start(resumed(config, folder), folder, draw.randrange(2**31), log)
        last = counts["kills"] and draw.random() >= AGAIN
        killed = False
        if not last:
            killed = kill(pid, folder, WAYS[(number + counts["kills"]) % 3], draw, duration * share)
            counts["kills"] += killed
        if killed:
            groups.append(pid)
            counts["in a save"] += is_saving(folder)
            counts["before a checkpoint"] += rundir.is_run(folder) and not (folder / rundir.LAST).exists()
            counts["before the config"] += not rundir.is_run(folder)
            counts["unreadable"] += unreadable(folder)
            continue
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            found = [f"exit code {code}: {log.read_text()[-2000:]}"]
        elif not counts["kills"]:  # it was quicker: once more, from the start
            shutil.rmtree(folder)
            folder.mkdir()
            share *= 0.8
            continue
        break
    found = found or [str(difference) for difference in compare(read_twin(twin), read_run(folder))]
    counts["workers left"] = left_behind(groups)
    counts["different" if found else "identical"] += 1
    if not found:
        shutil.rmtree(folder)
    return name, counts, found


read_twin = functools.lru_cache(maxsize=None)(read_run)


def results(pool: ProcessPoolExecutor, jobs: list[tuple[Any, ...]]) -> Iterator[Any]:
    """What the jobs (function, arguments) give, as they end."""
    for future in as_completed([pool.submit(*job) for job in jobs]):
        yield future.result()


def table(counts: dict[str, Counter[str]]) -> str:
    width = max(map(len, counts))
    rows = [f"{'':{width}}  " + "  ".join(COLUMNS)]
    total: Counter[str] = Counter()
    for name, found in counts.items():
        total += found
        rows.append(f"{name:{width}}  " + "  ".join(f"{found[c]:{len(c)}}" for c in COLUMNS))
    rows.append(f"{'total':{width}}  " + "  ".join(f"{total[c]:{len(c)}}" for c in COLUMNS))
    return "\n".join(rows)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="resumed runs to compare")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", default="", help="names of configurations, separated by commas")
    parser.add_argument("--keep", type=Path, help="folder for the runs that differ and their logs")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(RUNS)
    if unknown := [name for name in names if name not in RUNS]:
        parser.error(f"--only: unknown '{unknown[0]}'; allowed: {', '.join(RUNS)}")
    begin = time.monotonic()
    for module in IMPORTED:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).absolute()
        make_data(folder / "data")
        configs = compose_all(folder / "data", names)
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("fork")) as pool:
            twins = [(train_twin, name, configs[name], folder / "twins" / name) for name in names]
            seconds = dict(results(pool, twins))
            print(f"{len(names)} runs never stopped: {sum(seconds.values()):.0f} s", flush=True)
            cycles: list[tuple[Any, ...]] = [
                (cycle, n, configs[n], folder / "twins" / n, folder / n / str(i), i, given.seed, seconds[n])
                for i, n in ((i, names[i % len(names)]) for i in range(given.kills))
            ]
            counts = {name: Counter[str]() for name in names[: given.kills]}
            for name, found, differences in results(pool, cycles):
                counts[name] += found
                for line in differences[:3]:
                    print(f"{name}: {line}", flush=True)
    print(table(counts))
    total = sum(counts.values(), Counter[str]())
    print(
        f"{total['identical']} of {given.kills} resumed runs identical to their twins after {total['kills']} kills, "
        f"{total['unreadable']} checkpoints unreadable, {total['workers left']} worker processes left behind; "
        f"{time.monotonic() - begin:.0f} s, {given.jobs} at a time, seed {given.seed}"
    )
    return int(total["identical"] != given.kills or total["unreadable"] > 0 or total["workers left"] > 0)


if __name__ == "__main__":
    sys.exit(main())
