"""Random, disjoint splits, stratified by class; a function of the labels, the settings and `data.split_seed` alone."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dlrun import streams
from dlrun.data._settings import DataSettings
from dlrun.registry import ConfigError
from dlrun.spec import TargetKind


def split_rows(
    targets: Tensor,
    kind: TargetKind,
    settings: DataSettings,
    *,
    published: bool,
    fixed: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Sorted row indices of `train`, `val` and, unless the test set is published apart, `test`.

    The limits come last, so that validation and test sets do not depend on `limit_train`.

    Args:
        targets: targets of all samples, as in `TargetKind`.
        kind: kind of the targets; those with classes are stratified.
        settings: fractions or folds, limits and seed.
        published: whether the test set is published apart.
        fixed: (training and validation, test) rows where the data set prescribes them.

    Raises:
        ConfigError: a split, or a fold, would be empty.
    """
    strata = strata_of(targets, kind)
    rows: dict[str, Tensor] = {}
    pool = torch.arange(len(targets))
    if fixed is not None:
        pool, rows["test"] = fixed
    elif not published:
        pool, rows["test"] = _hold_out(pool, strata, "test", settings.test_fraction, settings.split_seed)
    if settings.folds is not None:
        rows["train"], rows["val"] = _leave_fold(pool, strata, settings.folds, settings.fold, settings.split_seed)
    else:
        rows["train"], rows["val"] = _hold_out(pool, strata, "val", settings.val_fraction, settings.split_seed)
    for name in rows:
        rows[name] = limit_rows(rows[name], strata, name, getattr(settings, f"limit_{name}"), settings.split_seed)
        if len(rows[name]) == 0:
            raise ConfigError(f"data: the {name} split is empty; every split needs at least one sample")
    return {name: rows[name] for name in ("train", "val", "test") if name in rows}


def limit_rows(rows: Tensor, strata: Tensor, name: str, limit: int | None, seed: int) -> Tensor:
    """At most `limit` of `rows`, sorted: a random stratified subset; a smaller limit gives a subset of a larger one."""
    if limit is not None and limit < len(rows):
        rows = rows[stratified_order(strata[rows], streams.generator(seed, f"split/limit_{name}"))[:limit]]
    return rows.sort().values


def strata_of(targets: Tensor, kind: TargetKind) -> Tensor:
    """The class of each sample, int64 (N,); all zero for kinds that are not stratified."""
    if kind == "class":
        return targets
    if kind in ("binary", "sign"):
        return (targets[:, 0] > 0).long()
    return torch.zeros(len(targets), dtype=torch.int64)


def stratified_order(strata: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of the positions 0..N-1 in which every stratum is spread evenly.

    The j-th sample (at random) of a stratum of n takes the place (j + 1/2) / n, ties in random order: any prefix holds
    the strata in proportion, each to about one sample. Hence nested subsets, and one rule for fractions and limits.
    """
    shuffled = torch.randperm(len(strata), generator=generator)
    labels = strata[shuffled]
    sizes = torch.bincount(labels)
    grouped = torch.argsort(labels, stable=True)
    rank = torch.arange(len(strata)) - (sizes.cumsum(0) - sizes)[labels[grouped]]
    place = torch.empty(len(strata), dtype=torch.float64)
    place[grouped] = (rank + 0.5).double() / sizes[labels[grouped]]
    return shuffled[torch.argsort(place, stable=True)]


def rows_hash(rows: Tensor) -> str:
    """The first 16 hex digits of the SHA-256 of the row indices as little-endian int64."""
    return hashlib.sha256(rows.to(torch.int64).numpy().astype("<i8").tobytes()).hexdigest()[:16]


def _hold_out(rows: Tensor, strata: Tensor, name: str, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(kept, held out) parts of `rows`."""
    count = int(fraction * len(rows) + 0.5)
    if not 0 < count < len(rows):
        raise ConfigError(
            f"data.{name}_fraction: {fraction} of {len(rows)} samples is {count}; "
            f"at least one sample must be held out and one kept"
        )
    order = stratified_order(strata[rows], streams.generator(seed, f"split/{name}"))
    return rows[order[count:]], rows[order[:count]]


def _leave_fold(rows: Tensor, strata: Tensor, folds: int, fold: int, seed: int) -> tuple[Tensor, Tensor]:
    """(all other folds, fold number `fold`) of `rows`.

    In random order, but one stratum after the other, the samples are dealt out to the folds in turn: each comes into one fold,
    and two folds differ by one sample at most, in size and in what they hold of a stratum.
    """
    if folds > len(rows):
        raise ConfigError(
            f"data.folds: got {folds}; at most {len(rows)}, the number of training and validation samples"
        )
    shuffled = rows[torch.randperm(len(rows), generator=streams.generator(seed, "split/folds"))]
    dealt = shuffled[torch.argsort(strata[shuffled], stable=True)]
    held_out = torch.arange(len(dealt)) % folds == fold
    return dealt[~held_out], dealt[held_out]
