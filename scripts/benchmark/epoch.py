"""`epoch`: seconds of an epoch, contestants over the bare loop."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmark.ratios import compare
from benchmark.report import Section, say
from benchmark.turns import Rounds, take_turns
from benchmark.workload import MODELS, Workload

BASE = "bare loop"
PEERS = {"loader": "DataLoader loop", "lightning": "Lightning", "ignite": "Ignite", "skorch": "skorch"}
PEERS["keras"] = "Keras 3 on PyTorch"
OWN = (BASE, "bare loop, fused Adam", "dlrun")
COMPILED = "dlrun, compile"
LIMITS = {"resnet8": 3000}  # training samples, so that an epoch takes seconds; the others take all
FLOORS = {("mlp", 128, "dlrun"): 0.9, ("lenet", 128, COMPILED): 0.8, ("lenet1998", 128, COMPILED): 0.8}
EVERYWHERE = 1.0  # dlrun, where FLOORS has nothing else
NOTE = (
    "Each contestant is a process of its own that goes on by one epoch at a time, in a new random order each round, while "
    "the others wait. Ratios are to the bare loop of the same round. `train` is the training pass alone; `epoch` goes from "
    "one epoch start to the next: with the validation pass (loss and accuracy, everybody), and for dlrun with its metrics "
    "file, TensorBoard with histograms, progress bar on a terminal and checkpoints; CPU time that a process leaves to threads "
    "beyond the end of its epoch is added. All train the same module (dropout 0) on the same samples as float32 tensors in "
    "memory, but for dlrun, which keeps its own bytes, with the same number of threads. The bare loop has "
    "`torch.optim.Adam` as it comes, one index per batch and a running loss that is read once an epoch. The peers have "
    "`Adam(fused=True)` (Keras its own Adam), a DataLoader in the same process on a TensorDataset (Keras: arrays), validation "
    "in batches of 1,024, and neither logger nor checkpoints nor progress bar. Keras trains the module in a "
    "TorchModuleWrapper."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of this measurement."""
    parser.add_argument("--models", nargs="*", default=["mlp", "lenet", "resnet8"], choices=list(MODELS))
    parser.add_argument("--batches", nargs="*", type=int, default=[64, 128, 512])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--compile", action="store_true", help="dlrun with trainer.compile=true too")
    parser.add_argument("--limit-train", type=int, help="training samples instead of all (resnet8: 3,000)")


def measure(options: argparse.Namespace) -> Section:
    """All models and batch sizes."""
    section = Section("epoch", "An epoch", NOTE, BASE)
    contestants = [*OWN, *([COMPILED] if options.compile else []), *(PEERS[name] for name in options.peers)]
    for model in options.models:
        for batch in options.batches:
            limit = options.limit_train or LIMITS.get(model)
            workload = Workload(model, batch, options.data, options.device, limit_train=limit, threads=options.threads)
            say(f"{workload.title}: {', '.join(contestants)}")
            found, left = take_turns(contestants, workload, options.rounds)
            section.left += [f"{workload.title}: {line}" for line in left]
            section.rows += rows(workload, found)
    return section


def rows(workload: Workload, found: Rounds, base: str = BASE, floors: dict[str, float] | None = None) -> list[Any]:
    """A row for each contestant.

    Args:
        workload: for the title, and the floors where there are none given.
        found: the turns.
        base: whose turns the others are compared with.
        floors: ratio of the epoch by contestant.
    """
    if base not in found:
        return []
    result = []
    for name, turns in found.items():
        floor = (floor_of(workload, name) if floors is None else floors.get(name)) if name != base else None
        measures = {
            key: compare(_values(turns, key), _values(found[base], key), "s", floor if key == "epoch" else None)
            for key in ("epoch", "train")
        }
        facts = {"validation accuracy": round(turns[-1]["accuracy"], 4)} if "accuracy" in turns[-1] else {}
        result.append({"group": workload.title, "name": name, "measures": measures, "facts": facts})
    return result


def floor_of(workload: Workload, name: str) -> float | None:
    """The ratio of an epoch that is promised."""
    if (found := FLOORS.get((workload.model, workload.batch, name))) is not None:
        return found
    return EVERYWHERE if name == "dlrun" else None


def _values(turns: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [turn[key] for turn in turns]
