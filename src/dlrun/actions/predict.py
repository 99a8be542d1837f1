"""Writes a trained model's predictions as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dlrun import rundir
from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.actions._trained import load_trained
from dlrun.build import Parts
from dlrun.device import autocast
from dlrun.losses._base import original_units
from dlrun.registry import ConfigError
from dlrun.spec import CLASS_KINDS
from dlrun.streams import Stream


@ACTIONS.register("predict")
class Predict(Action):
    """Writes one row per sample: the class and its probabilities, or the mean and, where the loss predicts one, the standard
    deviation, in the target's original units.

    Args:
        input: a new file (or folder) of the same form as the training data, such as a CSV; null: a split of the data.
        split: train, val or test; used when `input` is null, and then the true target is written too.
        output: the CSV file to write; null: predictions.csv in the run's folder.
    """

    def __init__(
        self, *, input: str | None = None, split: Literal["train", "val", "test"] = "test", output: str | None = None
    ) -> None:
        self.input, self.split, self.output = input, split, output

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        output = Path(self.output) if self.output else folder / "predictions.csv"
        if output.is_dir():
            raise ConfigError(f"action.output: {output} is a folder; expected a file")
        if not output.parent.is_dir():
            raise ConfigError(f"action.output: the folder {output.parent} does not exist")
        parts = load_trained(config, folder)
        count = rundir.write_csv(output, self._table(parts, config), key="action.output") - 1
        print(f"{count} predictions written to {output}")
        return None

    def _table(self, parts: Parts, config: dict[str, Any]) -> Iterator[list[Any]]:
        yield self._header(parts)
        yield from self._rows(parts, config)

    def _header(self, parts: Parts) -> list[str]:
        target = parts.task.target()
        names = (
            list(target.class_names())
            if target.kind in CLASS_KINDS
            else list(target.names or map(str, range(target.size)))
        )
        truth = (
            []
            if self.input
            else (["target"] if target.kind in ("class", "binary", "sign") else [f"target_{n}" for n in names])
        )
        if target.kind in ("class", "binary", "sign"):
            return ["index", "class", *(f"p_{n}" for n in self._scored(parts, names)), *truth]
        if target.kind == "multi_hot":
            return ["index", *(f"label_{n}" for n in names), *(f"p_{n}" for n in self._scored(parts, names)), *truth]
        spread = [f"std_{n}" for n in names] if self._predicts_std(parts) else []
        return ["index", *(f"mean_{n}" for n in names), *spread, *truth]

    def _scored(self, parts: Parts, names: list[str]) -> list[str]:
        example = torch.zeros(1, parts.loss.num_outputs, device=parts.device)
        return names if parts.loss.probabilities(example) is not None else []

    def _predicts_std(self, parts: Parts) -> bool:
        return parts.loss.std(torch.zeros(1, parts.loss.num_outputs, device=parts.device)) is not None

    def _rows(self, parts: Parts, config: dict[str, Any]) -> Iterator[list[Any]]:
        index = 0
        with torch.inference_mode():
            for inputs, targets in self._batches(parts):
                with autocast(config["trainer"]["precision"], parts.device):
                    outputs = parts.model(inputs).float()
                for row in _decode(parts, outputs, targets):
                    yield [index, *row]
                    index += 1

    def _batches(self, parts: Parts) -> Iterator[tuple[Tensor, Tensor | None]]:
        if self.input is None:
            for batch in parts.data.split(self.split):
                result = parts.task(parts.model, batch, Stream(0, "task"))
                yield batch.inputs, result.targets
            return
        path = Path(self.input)
        if not path.exists():
            raise ConfigError(f"action.input: no such file or folder: {path}")
        for chunk in parts.data.source.read_inputs(path).split(1024):
            yield parts.data.transform(chunk), None


def _decode(parts: Parts, outputs: Tensor, targets: Tensor | None) -> Iterator[list[Any]]:
    """One row per sample, without its index: see `Predict._header`."""
    target, loss = parts.task.target(), parts.loss
    decision, probabilities = loss.predict(outputs), loss.probabilities(outputs)
    if target.kind in ("class", "binary", "sign"):
        names = target.class_names()
        chosen = _class_index(decision, target.kind)
        truth = None if targets is None else _class_index(targets, target.kind)
        if probabilities is not None and probabilities.shape[1] == 1:
            probabilities = torch.cat([1 - probabilities, probabilities], 1)
        for i in range(len(outputs)):
            scores = [] if probabilities is None else probabilities[i].tolist()
            yield [names[int(chosen[i])], *scores, *([] if truth is None else [names[int(truth[i])]])]
        return
    columns = [decision if target.kind == "multi_hot" else original_units(decision, target)]
    if target.kind == "multi_hot":
        columns += [probabilities] if probabilities is not None else []
    elif (spread := loss.std(outputs)) is not None:
        columns.append(original_units(spread, target, scale_only=True))
    if targets is not None:
        columns.append(original_units(targets, target))
    yield from torch.cat([c.reshape(len(outputs), -1).float() for c in columns], 1).tolist()


def _class_index(values: Tensor, kind: str) -> Tensor:
    values = values.reshape(len(values))
    return (values > 0).long() if kind in ("binary", "sign") else values.long()
