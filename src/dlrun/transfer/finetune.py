"""`transfer=finetune` and `transfer=frozen`: training goes on from the weights of another run."""

from __future__ import annotations

import logging
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from torch import nn

from dlrun import rundir
from dlrun.registry import ConfigError
from dlrun.transfer import TRANSFER
from dlrun.transfer._base import Transfer
from dlrun.transfer._fit import fit, renamed, wrapped
from dlrun.transfer._names import check_patterns, head_of, matches
from dlrun.transfer._source import digest, read, run_of, weights_file

log = logging.getLogger("dlrun")
WRITTEN_DOWN = ("weights", "biases")  # settings of dlrun's models that are what a model begins with


@TRANSFER.register("finetune")
class Finetune(Transfer):
    """The model begins with weights of another run; what of it is trained, and how fast, can be chosen layer by layer.

    Tensors are matched by name. The head is a new one, unless `reset` is empty: then it keeps its initialisation only where its
    shapes differ (other classes), with a warning. Anything else that differs is refused. A frozen layer is as in an
    evaluation: its parameters get no gradient and no optimizer state, its batch norm keeps its statistics, its dropout is
    off. A run that is resumed has all that in its checkpoint, and does not need the source any more.

    Patterns are names of layers or tensors in which * stands for anything; `head` is the last layer with weights, whatever
    its name, and `body` everything else.

    Source: Yosinski et al. (2014), section 2.

    Args:
        source: the folder of a run (its best checkpoint), a checkpoint, or a file with a state dict of PyTorch; null: the
            weights that the model itself begins with (`model.pretrained=true`).
        sha256: expected of the file, in hexadecimal digits; null: any. The saved configuration of a run has that of its own.
        map: names of layers there to names here, or to null for what is left out; null: the same names.
        reset: patterns of what keeps its initialisation.
        freeze: patterns of what is not trained.
        lr_scale: pattern to factor of the learning rate; the first pattern that fits a parameter counts; null: one
            rate for all. Schedules multiply all learning rates alike.
    """

    def __init__(
        self,
        *,
        source: str | None = None,
        sha256: str | None = None,
        map: Mapping[str, str | None] | None = None,
        reset: tuple[str, ...] = ("head",),
        freeze: tuple[str, ...] = (),
        lr_scale: Mapping[str, Annotated[float, Gt(0)]] | None = None,
    ) -> None:
        self.source, self.sha256, self.map = source, sha256, map or {}
        self.reset, self.frozen, self.lr_scale = reset, freeze, lr_scale or {}
        self.file: Path | None = None

    def find(self, node: Mapping[str, Any]) -> None:
        if self.source is None:
            if not node.get("pretrained"):
                raise ConfigError(
                    "transfer.source: no weights given; expected the folder of a run, a checkpoint or a file with a state "
                    "dict, or model.pretrained=true with a model that has it"
                )
            return
        if node.get("pretrained"):
            raise ConfigError("model.pretrained: not together with transfer.source, which replaces those weights")
        for key in () if node.get("import") else WRITTEN_DOWN:
            if node.get(key) is not None:
                raise ConfigError(
                    f"model.{key}: not together with transfer.source, which replaces them; leave one away"
                )
        self.file = weights_file(self.source)
        sha256 = digest(self.file)
        if self.sha256 not in (None, sha256):
            raise ConfigError(
                f"transfer.sha256: expected {self.sha256}, but that of {self.file} is {sha256}: it was changed"
            )
        folder = run_of(self.file)
        self.origin = rundir.read_config(folder, "transfer.source") if folder else {}
        self.found = {"source": os.path.abspath(os.path.expanduser(self.source)), "sha256": sha256}

    def load(self, model: nn.Module, node: Mapping[str, Any]) -> None:
        check_patterns("reset", self.reset, list(model.state_dict()), model, "tensor")
        if self.file is None:
            return
        state = renamed(read(self.file), self.map)
        fresh = fit(model, wrapped(state, model), self.reset, f"'{self.file}'", _hint(self.origin.get("model"), node))
        log.info("transfer: weights of %s, SHA-256 %s", self.file, self.found["sha256"])
        if fresh:
            log.warning("transfer: a new head: %s", ", ".join(fresh))

    def freeze(self, model: nn.Module) -> None:
        names, head = [name for name, _ in model.named_parameters()], head_of(model)
        check_patterns("freeze", self.frozen, names, model, "parameter")
        for name, parameter in model.named_parameters():
            if any(matches(pattern, name, head) for pattern in self.frozen):
                parameter.requires_grad_(False)
        for name, module in model.named_modules() if self.frozen else ():
            parameters = list(module.parameters())
            meant = bool(name) and any(matches(pattern, name, head) for pattern in self.frozen)
            if (meant or parameters) and not any(p.requires_grad for p in parameters):
                module.train = types.MethodType(_stay_in_evaluation, module)
                module.eval()
        if self.frozen:
            frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
            log.info("transfer: %d of %d parameters are frozen", frozen, sum(p.numel() for p in model.parameters()))

    def factors(self, model: nn.Module) -> dict[str, float]:
        names, head = [name for name, p in model.named_parameters() if p.requires_grad], head_of(model)
        check_patterns("lr_scale", self.lr_scale, names, model, "trainable parameter")
        found = {name: next((p for p in self.lr_scale if matches(p, name, head)), None) for name in names}
        return {name: self.lr_scale[pattern] for name, pattern in found.items() if pattern is not None}


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    """Takes the place of `train` in a frozen module; a bound method, so that a copy of the module gets its own."""
    type(module).train(module, False)
    for part in module.modules():
        if _is_the_same_in_training(part):
            part.training = mode
    return module


def _is_the_same_in_training(module: nn.Module) -> bool:
    """Whether it is a recurrent layer without dropout. Such a one takes the mode of the model: gradients do not go back through
    one of cuDNN's that is in evaluation mode, to what is trained below it."""
    return isinstance(module, nn.RNNBase) and (not module.dropout or module.num_layers == 1)


def _hint(there: Any, node: Mapping[str, Any]) -> str:
    """In which settings `there`, the model of the run that the weights are of, is another one than `node`."""
    if not isinstance(there, Mapping):
        return ""
    if there.get("name") != node.get("name"):
        return f"the run has the model '{there.get('name')}'; "
    unlike = [f"model.{key}={value}" for key, value in there.items() if node.get(key) != value]
    return f"the run has {' '.join(unlike)}; " if unlike else ""
