"""What a search gains over chance, and what pruning saves.

python scripts/measure_search.py                  # about 12 minutes of one core; --repetitions 3 for a quick look

One problem, chosen by what the settings are and not by what came out: the digits, a multilayer perceptron, Adam, 8 epochs, and
the five settings that one would tune first, each over the whole range in which people try it. Each repetition is a search of 40
trials by each method, all with the seed of the repetition for the runs and for the sampler, one run after the other in this
process. The figure is the best validation loss that a search has found. Differences are paired by repetition; the interval is
that of Student's t at 95 %. Saved: the share of the epochs of 40 whole runs that were not trained.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dlrun import rundir
from dlrun.actions.train import train
from dlrun.callbacks._reporting import Pruned, Reporter
from dlrun.divergence import Diverged
from dlrun.settings import config_dir
from dlrun.sweeps.jobs import Job, Outcome
from dlrun.sweeps.search.objective import read_objective
from dlrun.sweeps.search.settings import Settings, check
from dlrun.sweeps.search.source import Search
from dlrun.sweeps.search.study import open_study
from dlrun.sweeps.search.words import read_space

FIXED = ("model=mlp", "data=digits", "optimizer=adam", "device=cpu", "callbacks=none", "trainer.threads=1")
SPACE = (
    "optimizer.lr=tag(log,interval(1e-5,1))",
    "optimizer.weight_decay=tag(log,interval(1e-6,1))",
    "model.dropout=interval(0,0.8)",
    "model.hidden=choice([16],[32],[64],[128],[64,64])",
    "data.batch_size=tag(log,int(interval(8,256)))",
)
METHODS = {
    "random": {"sampler": "random"},
    "tpe": {"sampler": "tpe"},
    "tpe, median": {"sampler": "tpe", "pruner": "median"},
    "tpe, halving": {"sampler": "tpe", "pruner": "halving"},
    "tpe, hyperband": {"sampler": "tpe", "pruner": "hyperband"},
}
PAIRS = (
    ("tpe", "random"), ("tpe, median", "tpe"), ("tpe, halving", "tpe"), ("tpe, hyperband", "tpe"),
)  # fmt: skip


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="seed of the first repetition")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--json", type=Path, help="file for the raw figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        rundir_resolver()
        words = [*FIXED, f"trainer.epochs={given.epochs}"]
        base: Any = OmegaConf.to_container(compose("config", overrides=words), resolve=True)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in given.methods}
    start = time.perf_counter()
    for repetition in range(given.first, given.first + given.repetitions):
        for name in given.methods:
            figures[name].append(one_search(base, METHODS[name], repetition, given.trials, given.epochs))
        shown = "  ".join(f"{name} {found[-1][0]:.4f} {found[-1][1]:.0%}" for name, found in figures.items())
        print(f"repetition {repetition} ({time.perf_counter() - start:.0f} s): {shown}", file=sys.stderr, flush=True)
        if given.json:
            given.json.write_text(json.dumps(figures))
    print(report(figures))


def rundir_resolver() -> None:
    """The resolver that the configuration needs."""
    OmegaConf.register_new_resolver("dlrun.run_dir", rundir.claim, replace=True)


def one_search(
    base: Mapping[str, Any], method: Mapping[str, Any], repetition: int, trials: int, epochs: int
) -> tuple[float, float]:
    """The best validation loss, and the share of the epochs that were trained."""
    settings = check({**vars(Settings()), **method, "trials": trials, "seed": repetition})
    space = read_space(OverridesParser.create().parse_overrides(list(SPACE)))
    objective = read_objective(None, "auto", "val/loss")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def make_job(number: int, words: list[str]) -> Job:
            (folder / str(number)).mkdir()
            return Job(number, words, configured(base, words, repetition), folder / str(number), str(number))

        study = open_study(settings, space, objective, folder)
        search = Search(settings, space, objective, study, make_job, epochs=epochs, say=lambda line: None)
        trained = 0
        while job := search.next():
            outcome = run(search, job)
            trained += outcome.epochs
            search.ended(job, outcome)
        return study.best_value, trained / (trials * epochs)


def run(search: Search, job: Job) -> Outcome:
    """Trains one run to its end, or until it is pruned or diverges."""
    reporter = Reporter(lambda epoch, metrics: search.reported(job, epoch, metrics))
    try:
        value = train(job.config, job.folder, [reporter] if search.reports else [])
        status = "finished"
    except (Pruned, Diverged) as error:
        value, status = None, "pruned" if isinstance(error, Pruned) else "diverged"
    results = rundir.read_results(job.folder) or {}
    if results.get("status") == "pruned":
        value, status = None, "pruned"
    return Outcome(status, value, str(results.get("message", "")), results.get("epochs") or 0)


def configured(base: Mapping[str, Any], words: Sequence[str], seed: int) -> dict[str, Any]:
    """The configuration with `a.b=value` put in."""
    config = {**copy.deepcopy(dict(base)), "seed": seed}
    for word in words:
        key, _, value = word.partition("=")
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node[part]
        node[last] = json.loads(value)
    return config


def report(figures: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A table of the methods, and of the pairs with intervals."""
    lines = [
        "| method | best validation loss, mean | standard deviation | n | epochs saved |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in figures.items():
        best = [value for value, _ in found]
        spread = statistics.stdev(best) if len(best) > 1 else float("nan")
        saved = 1 - statistics.fmean(share for _, share in found)
        lines.append(f"| {name} | {statistics.fmean(best):.4f} | {spread:.4f} | {len(best)} | {saved:.0%} |")
    lines += ["", "| difference, paired | mean | 95 % interval | better in |", "| --- | --- | --- | --- |"]
    for one, other in PAIRS:
        if one in figures and other in figures:
            differences = [a - b for (a, _), (b, _) in zip(figures[one], figures[other], strict=True)]
            lines.append(f"| {one} - {other} | {interval(differences)} |")
    return "\n".join(lines)


def interval(differences: Sequence[float]) -> str:
    """Mean, Student's interval, and how many differences are below 0."""
    from scipy import stats

    mean, n = statistics.fmean(differences), len(differences)
    if n < 2:
        return f"{mean:+.4f} | - | -"
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5
    return f"{mean:+.4f} | {mean - half:+.4f} to {mean + half:+.4f} | {sum(d < 0 for d in differences)} of {n}"


if __name__ == "__main__":
    main()
