"""What becomes of a model, a data set and a loss: trained, built or refused, and whether that is clean (`make matrix`)."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import math
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlrun import checkpoint, rundir
from dlrun.command import perform
from dlrun.data._module import build_data
from dlrun.losses._build import build_loss
from dlrun.models import MODELS
from dlrun.models._summary import count_parameters
from dlrun.registry import ConfigError
from dlrun.settings import options
from dlrun.spec import Batch, DataSpec
from dlrun.streams import Stream
from dlrun.suggest import explain, is_users
from dlrun.tasks import TASKS
from dlrun.tasks._base import Task

Words = tuple[str, ...]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # holds the runs: disks are slow with many small files
LARGE = 5_000_000  # parameters: larger networks are only built
CLASSES, REAL = {"accuracy", "auroc", "f1"}, {"rmse", "mae", "r2", "nll"}
METRICS = {  # kind of target: the metric that must be there, those that may be
    "class": ("accuracy", CLASSES | {"ece", "top5"}),
    "binary": ("accuracy", CLASSES | {"ece"}),
    "sign": ("accuracy", CLASSES | {"ece"}),
    "multi_hot": ("accuracy", CLASSES),
    "real": ("rmse", REAL),
    "non_negative": ("rmse", REAL),
    "unit": ("squared_error", {"squared_error"}),
}
SHARES = {"accuracy", "auroc", "f1", "ece", "top5"}  # within [0, 1]


@dataclass(frozen=True)
class Outcome:
    """What became of a triple.

    Attributes:
        words: of the command, but for SHORT.
        sign: trained, built, refused or failed.
        line: what was said.
        finding: what is not clean about it.
    """

    words: Words
    sign: str
    line: str = ""
    finding: str = ""

    @property
    def by(self) -> str:
        """The node that a refusal blames: model, loss, ..."""
        return re.split(r"[.:]", self.line)[0]


def attempt(words: Words, config: dict[str, Any]) -> Outcome:
    """Performs the configuration that `words` compose to, as the command does; builds the model only if it is large."""
    kind = ""
    try:
        task, model = on_meta(config, spec_of(json.dumps(config["data"])))
        kind = task.target().kind
        if count_parameters(model) > LARGE:
            problem = step_on_meta(task, model)
            return Outcome(words, "failed" if problem else "built", problem, problem)
    except Exception:  # what is wrong shows in the command itself
        pass
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            with contextlib.redirect_stdout(said):
                perform(copy.deepcopy(config), Path(folder), lambda: None)
            problem = problem_of_run(Path(folder), kind)
        except Exception as error:
            return refusal(words, error)
    return Outcome(words, "failed" if problem else "trained", problem, problem)


@functools.cache
def spec_of(node: str) -> DataSpec:
    """What the data of a node, written as JSON, are: read once in each process."""
    return build_data(json.loads(node), seed=0, device=torch.device("cpu")).spec


def on_meta(config: dict[str, Any], spec: DataSpec) -> tuple[Task, torch.nn.Module]:
    """Task and model, without memory for the weights. Raises ConfigError as `build_parts` does."""
    task: Task = TASKS.build(config["task"], data=spec)
    task.loss = build_loss(config["loss"], task.target())
    with torch.device("meta"):
        model = MODELS.build(config["model"], input_shape=spec.input_shape, num_outputs=task.loss.num_outputs)
        task.check_model(model)
    return task, model


def step_on_meta(task: Task, model: torch.nn.Module, size: int = 4) -> str:
    """What is wrong with the shapes of a training step."""
    spec = task.data
    with torch.device("meta"):
        of_classes = spec.target.kind == "class"
        targets = torch.zeros(size, dtype=torch.int64) if of_classes else torch.zeros(size, spec.target.size)
        batch = Batch(torch.zeros(size, *spec.input_shape), targets, torch.arange(size))
        result = task(model, batch, Stream(0, "task"))
        result.loss.backward()
    if result.outputs.shape != (size, task.loss.num_outputs) or result.loss.shape != ():
        return f"outputs of shape {tuple(result.outputs.shape)} and a loss of shape {tuple(result.loss.shape)}"
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    return f"no gradient for {', '.join(idle)}" if idle else ""


def problem_of_run(folder: Path, kind: str) -> str:
    """What is wrong with a finished run, whose target is of this kind."""
    results: Any = rundir.read_results(folder)
    if (results["status"], results["steps"]) != ("finished", 2):
        return f"{results['status']} after {results['steps']} steps"
    checkpoint.load(folder / rundir.LAST)
    if warned := [line for line in (folder / "dlrun.log").read_text().splitlines() if " WARNING " in line]:
        return warned[0]
    if kind not in METRICS:
        return "trained, but cannot be built on the meta device"
    needed, allowed = METRICS[kind]
    for split in ("train", "val", "test"):
        values = results["metrics"][split]
        if odd := sorted({*values} - allowed - {"loss"}):
            return f"{split}: {', '.join(odd)} of targets of kind {kind}"
        if missing := sorted({needed, "loss"} - {*values}):
            return f"{split}: no {', '.join(missing)}"
        for name, value in values.items():
            if value is None or not math.isfinite(value) or (name in SHARES and not 0 <= value <= 1):
                return f"{split}: {name} is {value}"
    return ""


def refusal(words: Words, error: Exception) -> Outcome:
    """A refusal, which is clean if it is one line without a traceback and blames the model or the loss."""
    line = explain(error, list(words))
    if not is_users(error):
        return Outcome(words, "failed", line, f"{type(error).__name__}: {line}".replace("\n", "\\n"))
    clean = isinstance(error, ConfigError) and re.match(r"(model|loss)[.:]\S* ", line) and "\n" not in line
    return Outcome(words, "refused", line, "" if clean else f"blames neither model nor loss: '{line}'")


def advice_of(line: str, blamed: str) -> tuple[list[str], list[str]]:
    """The words (key=value), and the names of models or losses, that a line says would fit: after its first semicolon."""
    advice = line.partition(";")[2]
    words = re.findall(r"[a-z_]+\.[a-z_.]+=[\w\[\].]+", advice)
    names = re.findall(r"\w+", re.sub(r"\S+=\S+", "", advice))
    return words, [name for name in names if name in options("loss" if blamed == "loss" else "model")]
