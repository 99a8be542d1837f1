"""Chooses settings for the UCI regression sets by validation; reads no test row of the split at hand.

python scripts/tune_uci.py yacht --epochs 500 --lr 3e-3,1e-2 --l2 0,1e-4 --beta 0,0.5 --splits 20 --seeds 3

Trains what `dlrun data=uci loss=gaussian_nll model=mlp model.hidden=[50] optimizer=adam scheduler=cosine` trains: every
combination of the listed values x splits x seeds, all as one batch of matrix products, which takes a fraction of the time of
single runs. Random numbers are others than dlrun's, so figures agree in distribution only.

For each combination, means over the splits on the validation rows (`--val-fraction` of the training rows of each split) in the
last epoch: RMSE and NLL of one network, and of the ensemble over the seeds (mean of the means; Gaussian with the mean and the
variance of the mixture), in original units. `--folds K` validates on K disjoint parts of the training rows in turn instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dlrun.data._module import build_data

HIDDEN = 50
NAMES = ("lr", "l2", "beta", "dropout", "min_variance", "ema")


class Data(NamedTuple):
    """Rows of all splits, standardised: inputs (S, N, D), targets (S, N); `scale` (S,): standard deviation of the targets."""

    train_inputs: Tensor
    train_targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    scale: Tensor


def main() -> None:
    """Reads the command line, trains, prints the combinations by NLL of the ensemble."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--epochs", default=500, type=int)
    parser.add_argument("--batch", default=32, type=int)
    parser.add_argument("--splits", default=20, type=int, help="the first so many")
    parser.add_argument("--seeds", default=3, type=int, help="members of an ensemble")
    parser.add_argument("--folds", default=0, type=int)
    parser.add_argument("--val-fraction", default=0.1, type=float)
    parser.add_argument("--warmup", default=0.0, type=float, help="epochs of a linear rise of the learning rate")
    defaults = {"lr": "0.01", "l2": "0", "beta": "0", "dropout": "0", "min_variance": "1e-6", "ema": "0"}
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help="one value, or several with commas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = read(given.dataset, given.splits, given.folds, given.val_fraction)
    grid = list(itertools.product(*([float(v) for v in getattr(given, name).split(",")] for name in NAMES)))
    start = time.monotonic()
    rows = run(data, grid, given)
    for row in sorted(rows, key=lambda row: row["ensemble_nll"]):
        print(json.dumps(row))
    print(f"# {given.dataset}: {len(grid)} combinations, {time.monotonic() - start:.0f} s")


def read(dataset: str, splits: int, folds: int, fraction: float) -> Data:
    """Training and validation rows of the first splits, and of every fold of them."""
    found = []
    for split, fold in itertools.product(range(splits), range(max(1, folds))):
        how: dict[str, Any] = {"folds": folds, "fold": fold} if folds else {"val_fraction": fraction}
        node = {"name": "uci", "dataset": dataset, "split": split, "batch_size": 1 << 20, **how}
        module = build_data(node, seed=0, device=torch.device("cpu"))
        parts = [next(iter(module.split(name))) for name in ("train", "val")]
        found.append([*(t for part in parts for t in (part.inputs, part.targets[:, 0])), module.spec.target.std[0]])
    least = [min(len(row[column]) for row in found) for column in range(4)]
    tensors = [torch.stack([row[column][: least[column]] for row in found]) for column in range(4)]
    return Data(*tensors, torch.tensor([row[4] for row in found]))


def run(data: Data, grid: list[tuple[float, ...]], given: argparse.Namespace) -> list[dict[str, float]]:
    """The figures of every combination. Members lie in the order combination, split, seed."""
    splits, seeds = len(data.scale), given.seeds
    values = torch.tensor(grid).repeat_interleave(splits * seeds, 0)
    settings = {name: values[:, i, None, None] for i, name in enumerate(NAMES)}
    which = torch.arange(splits).repeat_interleave(seeds).repeat(len(grid))
    weights = train(data, which, settings, given)
    with torch.inference_mode():
        mean, variance = predict(weights, data.val_inputs[which], settings["min_variance"])
    shape = (len(grid), splits, seeds, -1)
    mean, variance, targets = mean.view(shape), variance.view(shape), data.val_targets[None, :, None]
    single = figures(mean, variance, targets, data.scale[None, :, None])
    mixed = mean.mean(2, keepdim=True)
    together = figures(
        mixed, (variance + (mean - mixed).square()).mean(2, keepdim=True), targets, data.scale[None, :, None]
    )
    named = zip(("rmse", "nll", "ensemble_rmse", "ensemble_nll"), (*single, *together), strict=True)
    columns = {name: value.mean((1, 2)).tolist() for name, value in named}
    spread = (together[1].squeeze(2).std(1) / math.sqrt(splits)).tolist()
    return [
        {**dict(zip(NAMES, one, strict=True)), "epochs": given.epochs, "batch": given.batch,
         **{name: round(value[i], 4) for name, value in columns.items()}, "se": round(spread[i], 3)}
        for i, one in enumerate(grid)
    ]  # fmt: skip


def figures(mean: Tensor, variance: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """RMSE and NLL over the last axis, in original units."""
    squares = (targets - mean).square()
    nll = 0.5 * (math.log(2 * math.pi) + variance.log() + squares / variance).mean(-1) + scale.log()
    return squares.mean(-1).sqrt() * scale, nll


def predict(weights: list[Tensor], inputs: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each row: (M, N, D) -> (M, N) twice."""
    w1, b1, w2, b2 = weights
    outputs = torch.baddbmm(b2, torch.baddbmm(b1, inputs, w1).relu_(), w2)
    return outputs[..., 0], F.softplus(outputs[..., 1]) + least[..., 0]


def train(data: Data, which: Tensor, settings: dict[str, Tensor], given: argparse.Namespace) -> list[Tensor]:
    """Weights of all members after the last epoch, or their averages where `ema` is not 0."""
    inputs, targets = data.train_inputs[which], data.train_targets[which]
    members, rows, width = inputs.shape
    bounds = (width, width, HIDDEN, HIDDEN)
    shapes = ((width, HIDDEN), (1, HIDDEN), (HIDDEN, 2), (1, 2))
    weights = [
        torch.empty(members, *shape).uniform_(-(fan**-0.5), fan**-0.5)
        for shape, fan in zip(shapes, bounds, strict=True)
    ]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    average = [w.clone() for w in weights]
    averaging = bool(settings["ema"].any())
    per_epoch = math.ceil(rows / given.batch)
    total, step = given.epochs * per_epoch, 0
    every = torch.arange(members)[:, None]
    for _ in range(given.epochs):
        order = torch.rand(members, rows).argsort(1)
        for start in range(0, rows, given.batch):
            chosen = order[:, start : start + given.batch]
            gradients = gradients_of(weights, inputs[every, chosen], targets[every, chosen], settings)
            warm = given.warmup * per_epoch
            factor = min(1.0, (step + 1) / warm) if warm else 1.0
            factor *= 0.5 * (1 + math.cos(math.pi * max(0.0, step - warm) / max(1.0, total - warm)))
            step += 1
            scale = math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            for w, g, m, v in zip(weights, gradients, first, second, strict=True):
                m.lerp_(g, 0.1)
                v.mul_(0.999).addcmul_(g, g, value=0.001)
                w.sub_(settings["lr"] * (factor * scale) * m / (v.sqrt() + 1e-8 * math.sqrt(1 - 0.999**step)))
            if averaging:
                for a, w in zip(average, weights, strict=True):
                    a.add_((w - a) * ((1 - settings["ema"]) / (1 - settings["ema"] ** step)))
    return average if averaging else weights


def gradients_of(weights: list[Tensor], inputs: Tensor, targets: Tensor, settings: dict[str, Tensor]) -> list[Tensor]:
    """Of the mean loss of a minibatch (M, B, D) of each member, the penalty included."""
    w1, b1, w2, b2 = weights
    before = torch.baddbmm(b1, inputs, w1)
    open_ = (before > 0).float()
    rate = settings["dropout"]
    if rate.any():
        open_ *= (torch.rand_like(before) >= rate) / (1 - rate)
    hidden = before * open_
    outputs = torch.baddbmm(b2, hidden, w2)
    variance = F.softplus(outputs[..., 1]) + settings["min_variance"][..., 0]
    residual = targets - outputs[..., 0]
    weight = variance ** settings["beta"][..., 0] / targets.shape[1]
    of_mean = -residual / variance * weight
    of_variance = 0.5 * (1 / variance - (residual / variance).square()) * weight * outputs[..., 1].sigmoid()
    back = torch.stack([of_mean, of_variance], 2)
    hidden_back = torch.bmm(back, w2.mT) * open_
    decay = 2 * settings["l2"]
    return [
        torch.bmm(inputs.mT, hidden_back) + decay * w1,
        hidden_back.sum(1, keepdim=True),
        torch.bmm(hidden.mT, back) + decay * w2,
        back.sum(1, keepdim=True),
    ]


if __name__ == "__main__":
    main()
