"""Configuration -> experiment: the only place that meets both the configuration and the components.

`check` needs no data and runs over the whole configuration first; `build_parts` reads the data and builds what a trained
model needs; `build_trainer` adds what training needs.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from annotated_types import Ge
from torch import nn

from dlrun import auto, checkpoint, memory, rundir, streams
from dlrun.callbacks._base import Run
from dlrun.callbacks._build import build_callbacks, check_callbacks
from dlrun.data._module import DataModule, build_data, check_data
from dlrun.data._settings import DataSettings
from dlrun.device import keep_freed_memory, resolve_device, set_deterministic
from dlrun.losses._base import Loss
from dlrun.losses._build import build_loss, check_loss
from dlrun.models import MODELS
from dlrun.models._shapes import describe
from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import build_optimizer
from dlrun.registry import ConfigError, settings_of, validate
from dlrun.regularization._build import build_regularizers, check_regularizers
from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._build import build_scheduler
from dlrun.settings import SPLITTING
from dlrun.tasks import TASKS
from dlrun.tasks._base import Task
from dlrun.trainer import FAST_DEV_BATCHES, TRAINERS, Trainer
from dlrun.transfer import TRANSFER
from dlrun.transfer._base import Transfer

log = logging.getLogger("dlrun")
FLAGS = ("debug", "trust_imports", "fail_fast", "dry_run", "allow_large", "rerun")
MAX_THREADS = 1024  # the OpenMP library ends the process where the system gives no more
NO_TRANSFER = {"name": "none"}  # for the configuration of a run of an older dlrun
_DEFAULT_THREADS = torch.get_num_threads()


@dataclass
class Parts:
    """What a trained model is made of."""

    data: DataModule
    task: Task
    loss: Loss
    model: nn.Module
    device: torch.device


def check(config: Mapping[str, Any]) -> None:
    """Checks every node of a plain configuration. Raises ConfigError for the first thing that is wrong."""
    validate(config["seed"], Annotated[int, Ge(0)], "seed")
    validate(config["device"], str, "device")
    for name in FLAGS:
        validate(config[name], bool, name)
    for name in ("seeds", "folds"):
        if config.get(name) is not None:
            raise ConfigError(
                f"{name}: got {config[name]!r} in a file; it counts on the command line only: dlrun ... {name}=5"
            )
    resolve_device(config["device"])
    check_data(config["data"])
    MODELS.check(config["model"])
    TASKS.check(config["task"])
    check_loss(config["loss"])
    TRANSFER.check(config.get("transfer", NO_TRANSFER))
    OPTIMIZERS.check(config["optimizer"])
    SCHEDULERS.check(config["scheduler"])
    check_regularizers(config["regularization"])
    check_callbacks(config["callbacks"])
    threads = TRAINERS.check(config["trainer"])["threads"]
    if threads and threads > MAX_THREADS:
        raise ConfigError(f"trainer.threads: got {threads}; expected at most {MAX_THREADS}")


def build_parts(config: Mapping[str, Any], data_state: Mapping[str, Any] | None = None) -> Parts:
    """Data, task, loss and freshly initialised model of a checked configuration, on its device.

    `data_state`: from the checkpoint of a trained run, so that data are treated as they were then and read only if needed.
    """
    device = resolve_device(config["device"])
    keep_freed_memory()
    settings = TRAINERS.check(config["trainer"])  # an older run's configuration may lack a setting
    torch.set_num_threads(settings["threads"] or _DEFAULT_THREADS)
    set_deterministic(settings["deterministic"])
    data = build_data(config["data"], seed=config["seed"], device=device, state=data_state)
    task = TASKS.build(config["task"], data=data.spec)
    loss = build_loss(config["loss"], task.target())
    with streams.seeded(config["seed"], "initialisation"):
        try:
            model = MODELS.build(config["model"], input_shape=data.spec.input_shape, num_outputs=loss.num_outputs)
        except ConfigError as error:
            given = f"the data gives {describe(data.spec.input_shape)}"
            raise ConfigError(str(error).replace(given, given + data.why_vectors)) from error
        task.loss = loss
        task.check_model(model)  # its forward pass gives lazy layers their weights
    return Parts(data, task, loss, model.to(device), device)


def build_trainer(config: Mapping[str, Any], folder: Path) -> Trainer:
    """The whole experiment of a checked configuration, ready to fit in `folder`."""
    transfer: Transfer = TRANSFER.build(config.get("transfer", NO_TRANSFER))
    parts, config = _begun(config, transfer, folder)
    config = without_auto(config, parts)
    settings = TRAINERS.check(config["trainer"])
    limit = FAST_DEV_BATCHES if settings["fast_dev_run"] else settings["limit_train_batches"]
    steps_per_epoch = min(parts.data.steps_per_epoch, limit or parts.data.steps_per_epoch)
    epochs = 1 if settings["fast_dev_run"] else settings["epochs"]
    if settings["steps"] and not settings["fast_dev_run"]:
        epochs = math.ceil(settings["steps"] / steps_per_epoch)
    _check_batch_norm(parts, steps_per_epoch, 1 if settings["accumulate"] == "auto" else settings["accumulate"])
    total_steps = epochs * steps_per_epoch
    if settings["steps"]:
        total_steps = min(total_steps, settings["steps"])
    regularizers = build_regularizers(config["regularization"])
    for regularizer in regularizers.values():
        regularizer.check_model(parts.model)
    run = Run(
        folder=folder,
        config=dict(config),
        spec=parts.data.spec,
        data=parts.data,
        model=parts.model,
        task=parts.task,
        loss=parts.loss,
        optimizer=build_optimizer(config["optimizer"], parts.model, transfer.factors(parts.model)),
        device=parts.device,
        epochs=epochs,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        monitor=settings["monitor"],
    )
    _make_room(run, settings)
    trainer: Trainer = TRAINERS.build(
        config["trainer"],
        run=run,
        scheduler=build_scheduler(config["scheduler"], total_steps, steps_per_epoch),
        regularizers=regularizers,
        callbacks=build_callbacks(config["callbacks"]),
        seed=config["seed"],
    )
    return trainer


def _begun(config: Mapping[str, Any], transfer: Transfer, folder: Path) -> tuple[Parts, Mapping[str, Any]]:
    """The parts, whose model begins as the transfer says, and the configuration that says what that was. A run that goes on has
    its weights in a checkpoint: their source may be gone."""
    last = folder / rundir.LAST
    goes_on = config.get("resume") is not None and (last.exists() or last.with_name(checkpoint.PREVIOUS).exists())
    if not goes_on:
        transfer.find(config["model"])
    parts = build_parts(config)
    if not goes_on:
        transfer.load(parts.model, config["model"])
        _warn_of_seen_samples(transfer.origin.get("data"), config["data"])
        if transfer.found:
            config = {**config, "transfer": {**config["transfer"], **transfer.found}}
    transfer.freeze(parts.model)
    return parts, config


def _warn_of_seen_samples(there: Any, here: Mapping[str, Any]) -> None:
    """Says so where weights come from a run on another split of the same data, `there` and `here` being the nodes."""
    if not isinstance(there, Mapping):
        return
    common = {*settings_of(DataSettings), *(setting.partition(".")[2] for setting in SPLITTING)}
    if any(there.get(key) != here.get(key) for key in {*there, *here} - common):
        return
    for setting in SPLITTING:
        then, now = (node.get(setting.partition(".")[2]) for node in (there, here))
        if then != now:
            log.warning(
                "transfer.source: that run has %s=%s on the same data, this one %s: its weights have seen samples on which "
                "this run is validated or tested",
                setting, json.dumps(then), json.dumps(now),
            )  # fmt: skip
            return


def _make_room(run: Run, settings: Mapping[str, Any]) -> None:
    """Tells how much memory a step is estimated to take, which the data then leave free."""
    halves = settings["accumulate"] == "auto"
    size = math.ceil(min(run.data.batch_size, run.spec.num_train) / (1 if halves else settings["accumulate"]))
    averaged = settings["ema_decay"] is not None or settings["swa_start"] is not None
    states = memory.state_tensors(run.optimizer) + averaged
    needed = memory.estimate(run.model, run.spec.input_shape, size, settings["precision"], states)
    memory.tell(needed, run.device, halves)
    if needed.activations is not None:
        run.data.reserve(needed.to_come)


def without_auto(config: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """The configuration with the fastest known settings in place of every `auto`; see `dlrun.auto`."""
    fast = auto.settings_for(parts.device.type, parts.model, parts.data.batch_size)
    trainer = {"memory_format": "contiguous", **config["trainer"]}  # which a run of an older dlrun does not know
    trainer |= {name: fast[name] for name in ("precision", "compile", "memory_format") if trainer.get(name) == "auto"}
    optimizer = dict(config["optimizer"])
    if optimizer.get("implementation") == "auto":
        allowed = get_args(OPTIMIZERS.settings(optimizer["name"])["implementation"].annotation)
        choice = fast["implementation"] if fast["implementation"] in allowed else "foreach"
        if choice in allowed:  # else it is a setting of a user's own
            optimizer["implementation"] = choice
    data = dict(config["data"])
    if data.get("evaluation_batch_size") == "auto":
        parts.data.evaluation_batch = fast["evaluation_batch_size"]
        data["evaluation_batch_size"] = parts.data.evaluation_batch_size  # fewer of large inputs
    return {**config, "trainer": trainer, "optimizer": optimizer, "data": data}


def resolved(trainer: Trainer) -> dict[str, Any]:
    """The configuration as it is saved: every `auto` that decides a number is replaced by what it stands for."""
    config = trainer.run.config
    saved = {key: value for key, value in config.items() if key not in ("resume", "run", "debug")}
    saved["loss"] = {**config["loss"], "name": trainer.run.loss.name}
    compiled = trainer.forward is not trainer.run.model
    saved["trainer"] = {**config["trainer"], "threads": torch.get_num_threads(), "compile": compiled}
    return saved


def _check_batch_norm(parts: Parts, steps_per_epoch: int, accumulate: int) -> None:
    """Most batch norms cannot train on a single sample: refuse before training instead of failing at the epoch's end."""
    data, model = parts.data, parts.model
    sizes = {min(data.batch_size, data.spec.num_train)}
    if steps_per_epoch == data.steps_per_epoch:  # else the last minibatch is never reached
        sizes.add(data.spec.num_train % data.batch_size or data.batch_size)
    alone = any(size // accumulate <= 1 for size in sizes)
    if not alone or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        return
    try:
        copy.deepcopy(model).to("meta").train()(torch.zeros(1, *data.spec.input_shape, device="meta"))
    except ValueError as error:
        raise ConfigError(
            f"data.batch_size: {data.batch_size} leaves a minibatch (or, with trainer.accumulate, a part of one) of one "
            f"sample ({data.spec.num_train} training samples), on which this model's batch norm cannot train; choose "
            "another size"
        ) from error
