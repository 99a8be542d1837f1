"""What stacking promises and what it gains, on the CPU in one process.

python scripts/measure_stacking.py equality       # float64: members and lone twins after 200 steps; about eight minutes
python scripts/measure_stacking.py single         # float32: how many members part ways, likewise
python scripts/measure_stacking.py speed          # stacked and one after another, in turns; a few minutes

Six members that differ in seed, learning rate, weight decay, momentum or betas, penalty, dropout rate, label smoothing,
initialisation, clipping and schedule, with augmentation. `speed` needs MNIST in DLRUN_DATA_DIR, or downloads it.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from dlrun import checkpoint, rundir
from dlrun.actions.train import train
from dlrun.build import build_trainer
from dlrun.settings import config_dir
from dlrun.stacking import train_stacked
from dlrun.stacking._batches import StackedBatches
from dlrun.stacking._fit import StackedFit
from dlrun.stacking._member import Member
from dlrun.stacking._trial import try_step
from dlrun.trainer import Trainer

RATES = {"sgd": 0.05, "momentum": 0.02, "nesterov": 0.02, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3}
MODELS = {
    "mlp": ("model=mlp", "model.hidden=[256,128]", "model.batch_norm=true", "model.dropout=0.2"),
    "lenet": ("model=lenet", "model.dropout=0.25"),
    "lenet, batch norm": ("model=lenet", "model.dropout=0.25", "model.batch_norm=true"),
}
ALIKE, APART = 1e-7, 1e-2
Config = dict[str, Any]


def composed(*words: str) -> Config:
    """The plain configuration of a command line."""
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", overrides=list(words)), resolve=True)
    return config


def varied(config: Config, values: Config) -> Config:
    """A copy with other values by dotted key."""
    made = copy.deepcopy(config)
    for key, value in values.items():
        *nodes, last = key.split(".")
        node = made
        for name in nodes:
            node = node.setdefault(name, {})
        node[last] = value
    return made


def members(model: str, optimizer: str, steps: int) -> list[Config]:
    """Six configurations that may be stacked."""
    config = composed(
        *MODELS[model], f"optimizer={optimizer}", "regularization=[l2]", "data=digits", "data.batch_size=32", "device=cpu",
        "callbacks=none", f"trainer.steps={steps}", "trainer.threads=1", "trainer.memory_format=contiguous",
        "scheduler.warmup_epochs=0.5",
    )  # fmt: skip
    augmentation = {"shift": {"pixels": 1}, "rotation": {"degrees": 10.0}}
    config = varied(config, {"data.augmentation": augmentation, "loss.label_smoothing": 0.0})
    momenta: list[Config] = [{}, {"optimizer.momentum": 0.5}, {"optimizer.momentum": 0.8}]
    betas: list[Config] = [{}, {"optimizer.betas": [0.8, 0.99]}, {"optimizer.betas": [0.95, 0.999]}]
    kinds: dict[str, list[Config]] = {
        "sgd": [{}] * 3,
        "rmsprop": [{}, {"optimizer.alpha": 0.9}, {"optimizer.momentum": 0.5}],
    }
    of_optimizer = kinds.get(optimizer, betas if optimizer.startswith("adam") else momenta)
    rate = RATES[optimizer]
    step = {"name": "step", "step_epochs": 3.0}
    differing: list[Config] = [
        {"optimizer.lr": rate},
        {"optimizer.lr": 3 * rate, "optimizer.weight_decay": 1e-2, "model.dropout": 0.5, "loss.label_smoothing": 0.1},
        {"optimizer.lr": 0.3 * rate, "model.dropout": 0.0, "regularization.l2.strength": 1e-3},
        {"optimizer.lr": rate, "model.init": "he_normal", "scheduler": step},
        {"optimizer.lr": 3 * rate, "trainer.clip_norm": 1.0},
        {"optimizer.lr": 0.3 * rate, "model.dropout": 0.8, "optimizer.weight_decay": 1e-3},
    ]
    return [
        varied(config, {"seed": number, **values, **of_optimizer[number % 3]})
        for number, values in enumerate(differing)
    ]


def built(config: Config, folder: Path, double: bool) -> Trainer:
    """A trainer, in float64 if `double`."""
    folder.mkdir(parents=True)
    trainer = build_trainer(config, folder)
    if double:
        data = trainer.run.data
        trainer.run.model.double()
        for name in ("epoch", "split"):
            setattr(data, name, _doubled(getattr(data, name)))
    return trainer


def _doubled(batches: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a, **k: (batch._replace(inputs=batch.inputs.double()) for batch in batches(*a, **k))


def weights(trainer: Trainer) -> Tensor:
    """Parameters and batch-norm statistics of the last checkpoint, in a row."""
    model = checkpoint.load(trainer.run.folder / rundir.LAST)["model"]
    return torch.cat([tensor.reshape(-1) for tensor in model.values() if tensor.is_floating_point()])


def distances(configs: Sequence[Config], folder: Path, double: bool) -> list[tuple[float, float]]:
    """Of each member, how far it ends from its lone twin, and how far a twin does whose initial weights were nudged by one
    rounding; relative to the norm."""
    trainers = [built(config, folder / "stack" / str(number), double) for number, config in enumerate(configs)]
    try_step(trainers, StackedBatches(trainers).next())
    stacked = [Member(number, trainer, time.perf_counter()) for number, trainer in enumerate(trainers)]
    StackedFit(stacked, at_once=True).fit()  # as on CUDA; on the CPU members are updated by their own optimizers
    found = []
    for number, config in enumerate(configs):
        alone, nudged = (built(config, folder / name / str(number), double) for name in ("alone", "nudged"))
        with torch.no_grad():
            for parameter in nudged.run.model.parameters():
                parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, torch.inf)))
        alone.fit()
        nudged.fit()
        own = weights(alone)
        found.append(tuple(float((weights(t) - own).norm() / own.norm()) for t in (trainers[number], nudged)))
    return found


def measure_distances(double: bool, steps: int, models: Sequence[str], optimizers: Sequence[str]) -> None:
    """Prints a line for each model and optimizer."""
    print(
        f"{'float64' if double else 'float32'}, {steps} steps, batch 32, 6 members, one thread: relative L2 distances"
    )
    bound = "above 1e-7 and 100 x nudged" if double else "above 1e-2 (nudged)"
    print(f"| model | optimizer | worst | median | nudged: worst | {bound} |\n|---|---|---|---|---|---|")
    total, apart = 0, 0
    for model in models:
        for optimizer in optimizers:
            with tempfile.TemporaryDirectory() as folder:
                found = distances(members(model, optimizer, steps), Path(folder), double)
            moved, nudged = zip(*found, strict=True)
            if double:
                beyond = str(sum(m > ALIKE and m > 100 * n for m, n in found))
            else:
                beyond = f"{sum(m > APART for m in moved)} ({sum(n > APART for n in nudged)})"
            total, apart = total + len(found), apart + sum(m > APART for m in moved)
            figures = f"{max(moved):.1g} | {statistics.median(moved):.1g} | {max(nudged):.1g}"
            print(f"| {model} | {optimizer} | {figures} | {beyond} |", flush=True)
    print(f"{apart} of {total} members are further than {APART} from their lone twins")


def measure_speed(
    models: Sequence[str], sizes: Sequence[int], rounds: int, samples: int, batch: int, threads: int
) -> None:
    """Prints, for each model and number of members, seconds of both ways and the median of their ratios within a round."""
    print(f"one epoch of {samples:,} MNIST images, batch {batch}, {threads} thread(s), whole runs, n = {rounds}")
    print("| model | members | one after another | stacked | ratio (least, most) |\n|---|---|---|---|---|")
    for model in models:
        for size in sizes:
            config = composed(
                *model.split(), "data=mnist", "device=cpu", "callbacks=none", "trainer.epochs=1",
                f"data.limit_train={samples}", "data.limit_val=1000", "data.limit_test=1000", f"data.batch_size={batch}",
                f"trainer.threads={threads}",
            )  # fmt: skip
            configs = [varied(config, {"seed": number}) for number in range(size)]
            times = [in_turns(configs, turn % 2 == 1) for turn in range(rounds)]
            ratios = [alone / stacked for alone, stacked in times]
            alone, stacked = (statistics.median(column) for column in zip(*times, strict=True))
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
            print(f"| {model} | {size} | {alone:.2f} s | {stacked:.2f} s | {spread} |", flush=True)


def in_turns(configs: Sequence[Config], stacked_first: bool) -> tuple[float, float]:
    """Seconds one after another, and stacked."""
    with tempfile.TemporaryDirectory() as path:
        folders = {
            way: [Path(path) / way / str(number) for number in range(len(configs))] for way in ("alone", "stack")
        }
        for folder in (*folders["alone"], *folders["stack"]):
            folder.mkdir(parents=True)

        def alone() -> None:
            for config, folder in zip(configs, folders["alone"], strict=True):
                train(config, folder)

        def stack() -> None:
            outcomes = train_stacked(configs, folders["stack"])
            assert all(outcome.status == "finished" for outcome in outcomes), outcomes

        ways, seconds = {"alone": alone, "stack": stack}, {}
        for way in ("stack", "alone") if stacked_first else ("alone", "stack"):
            start = time.perf_counter()
            ways[way]()
            seconds[way] = time.perf_counter() - start
    return seconds["alone"], seconds["stack"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["equality", "single", "speed"])
    parser.add_argument("--models", nargs="+", help="of those in MODELS; for speed words such as model=lenet")
    parser.add_argument("--optimizers", nargs="+", default=list(RATES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, PyTorch {torch.__version__}, Python {platform.python_version()}"
    )
    if options.what == "speed":
        measure_speed(
            options.models or ["model=mlp model.hidden=[64]", "model=mlp", "model=lenet"],
            options.sizes,
            options.rounds,
            options.samples,
            options.batch,
            options.threads,
        )
    else:
        measure_distances(options.what == "equality", options.steps, options.models or list(MODELS), options.optimizers)


if __name__ == "__main__":
    main()
