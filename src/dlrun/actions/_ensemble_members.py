"""Which runs make an ensemble, and what each of them predicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from dlrun import rundir
from dlrun.actions._trained import load_trained
from dlrun.build import Parts
from dlrun.device import autocast
from dlrun.losses._base import Loss
from dlrun.registry import ConfigError, imports_of
from dlrun.spec import DataSpec
from dlrun.streams import Stream
from dlrun.sweeps.leaderboard import shown, varied
from dlrun.sweeps.records import Record

SPLITS = ("data.split", "data.split_seed", "data.fold")
"""Settings that choose the split: runs that differ in one of them make an ensemble on each, and one row of every table."""
ALL = "all"
NONE = {"name": "none"}


@dataclass
class Group:
    """An ensemble. `settings` tell it from those of other rows, `split` from the others of its row."""

    settings: dict[str, Any]
    split: dict[str, Any]
    members: list[Record] = field(default_factory=list)

    @property
    def label(self) -> str:
        """`optimizer.lr=0.01, data.split=3`"""
        return (
            ", ".join(f"{key}={shown(value)}" for key, value in {**self.settings, **self.split}.items()) or "all runs"
        )


@dataclass
class Predictions:
    """What one network gives on a part of the data: raw outputs (N, num_outputs) and the targets, on the CPU."""

    folder: str
    loss: Loss
    spec: DataSpec
    outputs: Tensor
    targets: Tensor

    @property
    def problem(self) -> str:
        """What is predicted, and on which samples; those that it was trained on do not count."""
        target, hashes = self.loss.target, self.spec.split_hashes
        return repr((target.kind, target.size, hashes.get("val"), hashes.get("test")))


def groups_of(records: Sequence[Record], over: Sequence[str]) -> tuple[list[Group], list[str]]:
    """The ensembles of two or more runs that differ only in `over`, and a line for each thing that is left out.

    Raises ConfigError where there is none.
    """
    left = [f"{r.folder}: {_why_not(r)}" for r in records if _why_not(r)]
    usable = [record for record in records if not _why_not(record)]
    differing = varied(record.settings for record in usable)
    fixed = [key for key in differing if key not in SPLITS and key not in over and ALL not in over]
    found: dict[str, Group] = {}
    seen: dict[str, Record] = {}
    for record in usable:
        settings, split = ({key: record.settings.get(key) for key in keys} for keys in (fixed, _splits(differing)))
        key = json.dumps([settings, split], sort_keys=True, default=str)
        twin = seen.setdefault(key + json.dumps([_differs(record, over)], default=str), record)
        if twin is not record:
            left.append(f"{record.folder}: has the same {', '.join(over)} as {twin.folder}")
            continue
        found.setdefault(key, Group(settings, split)).members.append(record)
    groups = [group for group in found.values() if len(group.members) > 1]
    alone = [group for group in found.values() if len(group.members) == 1]
    if not groups:
        what = f"{len(usable)} of {len(records)} runs finished" if len(usable) < 2 else "no two runs differ only in it"
        raise ConfigError(
            f"ensemble: needs two or more finished runs that differ in {', '.join(over)}; {what}"
            f"{_first(left)}{_first([_difference(alone[:2])]) if len(alone) > 1 else ''}"
        )
    left += [f"{group.label}: one run ({group.members[0].folder}) is no ensemble" for group in alone]
    return groups, left


def predictions_of(record: Record, config: dict[str, Any], part: Literal["val", "test"]) -> Predictions:
    """What the best checkpoint of a run gives on a part of the data.

    Args:
        record: a run.
        config: the command's own configuration: its device, data.root and trust_imports count.
        part: which samples.

    Raises ConfigError for a saved configuration that is damaged or imports code, and for data that are no longer those of the
    run.
    """
    try:
        parts = load_trained(_config_of(record, config), record.folder)
    except ConfigError as error:
        named = str(record.folder) in str(error)
        raise error if named else ConfigError(f"ensemble: {record.folder}: {error}") from error
    outputs, targets = _evaluate(parts, record.config["trainer"].get("precision", "fp32"), part)
    spec = parts.data.spec
    parts.data.close()
    for name, saved in record.split_hashes.items():
        if spec.split_hashes.get(name, saved) != saved:
            raise ConfigError(
                f"ensemble: {record.folder}: the {name} split is not that of the run; the data have changed"
            )
    return Predictions(str(record.folder), parts.loss, spec, outputs, targets)


def check_same_data(members: Sequence[Predictions]) -> None:
    """Raises ConfigError unless all members were trained, validated and tested on the same samples."""
    first = members[0]
    for other in members[1:]:
        told = f"ensemble: {first.folder} and {other.folder} cannot be averaged: "
        if other.loss.target != first.loss.target:
            raise ConfigError(f"{told}they predict different targets, or were trained on different samples")
        for name, hashed in first.spec.split_hashes.items():
            if other.spec.split_hashes.get(name, hashed) != hashed:
                raise ConfigError(f"{told}their {name} splits differ")
        if not torch.equal(first.targets, other.targets):
            raise ConfigError(f"{told}their targets differ")


def _evaluate(parts: Parts, precision: str, part: Literal["val", "test"]) -> tuple[Tensor, Tensor]:
    """(N, num_outputs) raw outputs and the targets of a part of the data."""
    outputs, targets = [], []
    with torch.inference_mode(), autocast(precision, parts.device):
        for batch in parts.data.split(part):
            result = parts.task(parts.model, batch, Stream(0, "task"))
            outputs.append(result.outputs.float().cpu())
            targets.append(result.targets.cpu())
    return torch.cat(outputs), torch.cat(targets)


def _config_of(record: Record, config: dict[str, Any]) -> dict[str, Any]:
    """The saved configuration with what a command adds to it."""
    later = {name: config[name] for name in rundir.SAVED if config[name] == NONE}  # a run of an older dlrun may lack it
    saved, file = {**later, **record.config}, record.folder / rundir.CONFIG
    if lost := [name for name in rundir.SAVED if not isinstance(saved.get(name), type(config[name]))]:
        raise ConfigError(f"ensemble: {file} is damaged (no '{lost[0]}'); restore it from a copy of the run")
    own = {name: saved[name] for name in rundir.SAVED}
    try:
        modules = imports_of(own)
    except RecursionError:
        raise ConfigError(f"ensemble: {file} is damaged (it has no end); restore it from a copy of the run") from None
    if modules and not config["trust_imports"]:
        raise ConfigError(
            f"ensemble: {file} imports {', '.join(sorted(modules))[:80]}, which runs code; nothing was imported. If you trust "
            "it, add trust_imports=true"
        )
    command = {name: value for name, value in config.items() if name not in rundir.SAVED}
    root = config["data"].get("root")
    data = {**own["data"], "root": root} if root else own["data"]
    return {**own, **command, "data": data, "device": config["device"], "run": str(record.folder)}


def _why_not(record: Record) -> str:
    """Why a run cannot be a member; empty for one that can."""
    if record.status != "finished":
        return f"is not finished ({record.status})"
    return "" if (record.folder / rundir.BEST).is_file() else f"has no {rundir.BEST}"


def _splits(differing: Iterable[str]) -> list[str]:
    return [key for key in differing if key in SPLITS]


def _differs(record: Record, over: Sequence[str]) -> Any:
    """What tells a member from the others of its ensemble."""
    return str(record.folder) if ALL in over else [str(record.get(key)) for key in over]


def _difference(groups: Sequence[Group]) -> str:
    a, b = groups
    return f"{a.members[0].folder} has {a.label}, {b.members[0].folder} has {b.label}"


def _first(lines: Sequence[str]) -> str:
    return f" ({lines[0]}{f', and {len(lines) - 1} more' if lines[1:] else ''})" if lines else ""
