"""Kills sweeps and their workers at random moments, gives the same command again, and compares with a sweep never stopped.

python scripts/soak_sweeps.py --sweeps 50 --workers 50      # 100 SIGKILLs, some minutes on two cores
python scripts/soak_sweeps.py --failing                     # 200 jobs, 10 of which fail

Each round is a sweep of 12 short runs by two workers. In half of the rounds the main process is killed, in the others one of
its workers, at a random moment between its start and the end of a sweep that nobody kills; then the same command is given
again until it ends with exit code 0. At the end every job must be finished, with the metrics and weights of the sweep that
was never stopped, noted as finished exactly once, in a folder of its own, and no process may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

JOBS = 12
LEAVING_S = 60  # a fork server notices that it is alone when it has imported torch, which takes long on a busy machine
WORDS = (
    "model=mlp", "model.hidden=[16]", "data=digits", "device=cpu", "trainer.epochs=15", "trainer.checkpoint_every_steps=20",
    "callbacks=[metrics_file]", "launcher.workers=2", "launcher.threads=1", f"seed=range({JOBS})", "-m",
)  # fmt: skip
FAILING = """
from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback


@CALLBACKS.register("failing")
class Failing(Callback):
    def on_epoch_start(self, run):
        if run.config["seed"] % 20 == 7:
            raise RuntimeError(f"seed {run.config['seed']} fails")
"""


def command(folder: Path, words: tuple[str, ...] = WORDS) -> list[str]:
    """The sweep in `folder`."""
    return [sys.executable, "-m", "dlrun", *words, f"hydra.sweep.dir={folder}"]


def group(leader: int) -> list[int]:
    """The living processes of a process group but its leader."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if entry.name.isdigit() and state[0] != "Z" and int(state[2]) == leader and int(entry.name) != leader:
            found.append(int(entry.name))
    return found


def at_work(folder: Path) -> list[int]:
    """The processes that hold the folder of a job."""
    found = []
    for lock in folder.glob("*/.lock"):
        try:
            found.append(int(lock.read_text().split()[1]))
        except (OSError, IndexError, ValueError):
            continue
    return found


def killed_once(folder: Path, who: str, after: float, chooser: random.Random) -> bool:
    """Starts the sweep and kills the main process or a worker after so many seconds. Whether there was one to kill."""
    process = subprocess.Popen(
        command(folder), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    time.sleep(after)
    victims = [process.pid] if who == "sweep" else at_work(folder)
    while who == "worker" and not victims and process.poll() is None:
        time.sleep(0.005)
        victims = at_work(folder)
    hit = bool(victims) and process.poll() is None
    if hit:
        os.kill(chooser.choice(victims), signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + LEAVING_S
    while (left := group(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        sys.exit(f"{len(left)} processes are left {LEAVING_S} s after the end of the sweep")
    return hit


def problems(folder: Path, twin: Path) -> list[str]:
    """What differs from the sweep that was never stopped."""
    found = []
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if names != sorted(map(str, range(JOBS))):
        found.append(f"folders {names}")
    ended: Counter[int] = Counter()
    for line in (folder / "jobs.jsonl").read_text().splitlines():
        try:
            state = json.loads(line)
        except ValueError:
            continue  # cut short by a kill
        ended[state["job"]] += state.get("state") == "finished"
    found += [f"job {n} is noted as finished {ended[n]} times" for n in range(JOBS) if ended[n] > 1]
    for number in range(JOBS):
        mine, other = folder / str(number), twin / str(number)
        results, wanted = (json.loads((path / "results.json").read_text()) for path in (mine, other))
        if results["status"] != "finished" or results["metrics"] != wanted["metrics"]:
            found.append(f"job {number}: {results['status']}, {results['metrics']}")
        one, two = (torch.load(path / "checkpoints" / "last.pt", weights_only=True)["model"] for path in (mine, other))
        if any(not torch.equal(one[name], two[name]) for name in two):
            found.append(f"job {number}: other weights")
    return found


def kills(options: argparse.Namespace) -> int:
    """The rounds of kills. Returns how many went wrong."""
    chooser = random.Random(options.seed)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        here = Path(name)
        start = time.monotonic()
        subprocess.run(command(here / "twin"), check=True, capture_output=True)
        whole = time.monotonic() - start
        print(f"a sweep of {JOBS} runs that nobody kills: {whole:.1f} s", flush=True)
        hits: Counter[str] = Counter()
        while hits["sweep"] < options.sweeps or hits["worker"] < options.workers:
            who = (
                "sweep"
                if hits["sweep"] < options.sweeps
                and (hits["sweep"] <= hits["worker"] or hits["worker"] >= options.workers)
                else "worker"
            )
            folder = here / "sweep"
            again = 0
            while True:
                hit = killed_once(folder, who, chooser.uniform(0.0, whole), chooser)
                hits[who] += hit
                again += hit
                if not hit or chooser.random() < 0.5:
                    break
            done = subprocess.run(command(folder), capture_output=True, text=True)
            if done.returncode == 4:  # a worker was killed in the last command too
                done = subprocess.run(command(folder), capture_output=True, text=True)
            found = (
                [f"exit code {done.returncode}: {done.stderr[-500:]}"]
                if done.returncode
                else problems(folder, here / "twin")
            )
            wrong += bool(found)
            print(f"{who} killed {again} times: {'; '.join(found) or 'as never stopped'}", flush=True)
            shutil.rmtree(folder)
    print(f"{hits['sweep']} kills of the sweep, {hits['worker']} of workers; {wrong} rounds went wrong")
    return wrong


def failing() -> int:
    """200 jobs, 10 of which fail: 190 results and 10 tracebacks. Returns how many things are wrong."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        here = Path(name)
        (here / "failing.py").write_text(FAILING)
        (here / "mine" / "callbacks").mkdir(parents=True)
        (here / "mine" / "callbacks" / "failing.yaml").write_text("failing:\n  name: failing\n  import: failing\n")
        words = [word for word in WORDS if not word.startswith(("callbacks", "seed", "trainer.epochs"))]
        words += ["--config-dir", "mine", "callbacks=[metrics_file,failing]", "seed=range(200)", "trainer.epochs=1"]
        start = time.monotonic()
        done = subprocess.run(command(Path("sweep"), tuple(words)), capture_output=True, text=True, cwd=here)
        seconds = time.monotonic() - start
        folders = [here / "sweep" / str(number) for number in range(200)]
        statuses = Counter(json.loads((folder / "results.json").read_text())["status"] for folder in folders)
        traces = sum(f"RuntimeError: seed {n} fails" in (f / "dlrun.log").read_text() for n, f in enumerate(folders))
        print(f"exit code {done.returncode}, {dict(statuses)}, {traces} tracebacks, {seconds:.0f} s")
        return (done.returncode, statuses["finished"], statuses["failed"], traces) != (4, 190, 10, 10)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=50, help="SIGKILLs of the main process")
    parser.add_argument("--workers", type=int, default=50, help="SIGKILLs of workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--failing", action="store_true", help="200 jobs of which 10 fail instead")
    options = parser.parse_args()
    sys.exit(1 if (failing() if options.failing else kills(options)) else 0)


if __name__ == "__main__":
    main()
