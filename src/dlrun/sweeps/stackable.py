"""Which jobs of a sweep can be trained as one stacked model (see `dlrun.stacking`). Imports no torch."""

from __future__ import annotations

import fnmatch
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlrun import rundir
from dlrun.registry import imports_of
from dlrun.sweeps.jobs import Job

STACKED_OPTIMIZERS = ("adam", "adamw", "momentum", "nesterov", "rmsprop", "sgd")

FREE = (
    "seed",
    "optimizer.lr",
    "optimizer.momentum",
    "optimizer.betas",
    "optimizer.alpha",
    "optimizer.eps",
    "optimizer.weight_decay",
    "regularization.*.strength",
    "regularization.*.limit",
    "loss.label_smoothing",
    "model.dropout",
    "model.input_dropout",
    "model.blocks.*.dropout",
    "model.init",
    "model.init_bias",
    "scheduler.*",
    "trainer.clip_norm",
    "trainer.monitor",
    "trainer.patience",
    "trainer.min_delta",
    "callbacks.*",
)
"""Settings in which the runs of one stacked model may differ."""

NEEDED: dict[str, tuple[Any, ...]] = {
    "action.name": ("train",),
    "trainer.name": ("default",),
    "task.name": ("supervised", "reconstruction"),
    "optimizer.name": STACKED_OPTIMIZERS,
    "data.loader": ("auto", "resident"),
    "loss.reduction": ("mean",),
    "trainer.accumulate": (1,),
    "trainer.min_grad_norm": (None,),
    "trainer.ema_decay": (None,),
    "trainer.swa_start": (None,),
    "trainer.precision": ("fp32", "auto"),
    "trainer.compile": (False, "auto"),
    "trainer.cuda_graph": (False,),
    "trainer.memory_format": ("auto", "contiguous"),
}
"""Values without which a run is trained on its own; a setting that a configuration lacks has the first one."""

DRAWING = ("model", "task", "loss", "regularization", "optimizer")
"""Nodes whose components must be dlrun's: others may draw from PyTorch's global generators."""


def groups(jobs: Sequence[Job], limit: int | None = None) -> tuple[list[list[Job]], list[str]]:
    """Sorts jobs into groups, each of which can be trained as one stacked model; one that cannot is alone in its group.

    Args:
        jobs: of a sweep.
        limit: members of a group at most; larger ones are split evenly. None: any number.

    Returns: the groups, in the order of their first jobs, which keep their order within; and a line for each reason why
    some jobs are trained apart from others.
    """
    found: dict[str, list[Job]] = {}
    reasons: dict[str, list[Job]] = {}
    for job in jobs:
        if reason := job.problem or obstacle(job.config):
            found[f"alone {job.number}"] = [job]
            reasons.setdefault(f"not stacked: {reason}", []).append(job)
        else:
            found.setdefault(kind(job.config), []).append(job)
    stacks = [group for key, group in found.items() if not key.startswith("alone ")]
    for group in stacks[1:]:
        first = stacks[0][0]
        reason = f"not stacked with #{first.number}: {_differing(first.config, group[0].config)} differs"
        reasons.setdefault(reason, []).extend(group)
    lines = [f"{_numbers(apart)}: {reason}" for reason, apart in reasons.items()]
    return [part for group in found.values() for part in _split(group, limit)], lines


def obstacle(config: Mapping[str, Any]) -> str:
    """Why a run cannot be part of any stacked model; "" if it may be."""
    values = dict(_flat({node: config.get(node) for node in rundir.SAVED}))
    for key, allowed in NEEDED.items():
        if (value := values.get(key, allowed[0])) not in allowed:
            return f"{key}={_text(value)}; stacking needs {' or '.join(map(_text, allowed))}"
    for node in DRAWING:
        if modules := imports_of(config.get(node) or {}):
            return f"{node} imports {', '.join(sorted(modules))}, which may draw random numbers of its own"
    return ""


def kind(config: Mapping[str, Any]) -> str:
    """Equal for the runs that can be trained as one stacked model, as far as their configurations tell."""
    return json.dumps(_fixed(config), sort_keys=True, default=str)


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the runs of one stacked model have in common, by dotted key."""
    values = _flat({node: config.get(node) for node in rundir.SAVED if node != "action"})
    return {key: value for key, value in values if not any(fnmatch.fnmatchcase(key, free) for free in FREE)}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values by dotted key; a list of plain values is one."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        yield key, value
        return
    for name, inner in value.items():
        yield from _flat(inner, f"{key}.{name}" if key else str(name))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The dotted keys in which two configurations differ that must not; of a node of another name only that."""
    first, second = _fixed(one), _fixed(other)
    keys = [key for key in {**first, **second} if first.get(key, ...) != second.get(key, ...)]
    named = [key.removesuffix(".name") for key in keys if key.endswith(".name")]
    keys = [key for key in keys if not any(key.startswith(f"{node}.") and key != f"{node}.name" for node in named)]
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _split(group: list[Job], limit: int | None) -> list[list[Job]]:
    if limit is None or len(group) <= limit:
        return [group]
    parts = -(-len(group) // max(1, limit))
    ends = [len(group) * part // parts for part in range(parts + 1)]
    return [group[start:end] for start, end in itertools.pairwise(ends)]


def _numbers(jobs: Sequence[Job]) -> str:
    """#0, #3-#5"""
    texts: list[str] = []
    numbers = sorted(job.number for job in jobs)
    first = last = numbers[0]
    for number in [*numbers[1:], -1]:
        if number == last + 1:
            last = number
            continue
        texts.append(f"#{first}" if first == last else f"#{first}-#{last}")
        first = last = number
    return ", ".join(texts)


def _text(value: Any) -> str:
    """As it is written on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
