"""Splits: disjoint, complete, stratified, seeded."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlrun.data._settings import DataSettings
from dlrun.data._split import rows_hash, split_rows, stratified_order
from dlrun.registry import ConfigError

LABELS = torch.repeat_interleave(torch.arange(4), torch.tensor([400, 300, 200, 100]))


def split(labels=LABELS, kind="class", published=False, fixed=None, **settings):
    return split_rows(labels, kind, DataSettings(**settings), published=published, fixed=fixed)


@pytest.mark.curriculum("D01")
def test_splits_are_disjoint_and_complete():
    """The three index sets have empty intersections and their union is the data set."""
    rows = split()
    assert list(rows) == ["train", "val", "test"]
    assert [len(r) for r in rows.values()] == [720, 80, 200]
    assert torch.equal(torch.cat(list(rows.values())).sort().values, torch.arange(1000))


@pytest.mark.curriculum("D01")
def test_splits_are_a_function_of_the_split_seed():
    """The same seed gives the same split, another seed another one."""
    one, same, other = split(split_seed=1), split(split_seed=1), split(split_seed=2)
    for name in one:
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], other[name])


@pytest.mark.curriculum("D01")
def test_class_proportions_are_kept():
    """Each split holds every class in proportion, to within one sample, at odd fractions too."""
    for fractions in ({}, {"test_fraction": 0.13, "val_fraction": 0.37}):
        rows = split(**fractions)
        for part in rows.values():
            share = torch.tensor([0.4, 0.3, 0.2, 0.1]) * len(part)
            assert (torch.bincount(LABELS[part], minlength=4) - share).abs().max() <= 1.5


@pytest.mark.parametrize(("kind", "low"), [("binary", 0.0), ("sign", -1.0)])
def test_binary_kinds_are_stratified(kind, low):
    """Targets of 0/1 and of -1/+1 are stratified like classes."""
    targets = torch.full((1000, 1), low)
    targets[:50] = 1.0
    rows = split(targets, kind)
    assert [int((targets[r] > 0).sum()) for r in rows.values()] == [36, 4, 10]


def test_real_targets_are_split_at_random():
    """Without classes the held-out rows are spread over the whole data set."""
    test = split(torch.rand(10000, 2), "real")["test"]
    assert len(test) == 2000
    assert abs(test.double().mean() - 4999.5) < 4 * 2887 / 2000**0.5
    assert len(torch.unique(test)) == 2000


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 5))
def test_any_prefix_of_the_stratified_order_is_in_proportion(sizes, seed):
    """The order is a permutation; after rounding, classes of equal size never differ by more than one in any prefix."""
    labels = torch.repeat_interleave(torch.arange(2 * len(sizes)), torch.tensor(sizes).repeat(2))
    order = stratified_order(labels, torch.Generator().manual_seed(seed))
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    counts = torch.nn.functional.one_hot(labels[order], 2 * len(sizes)).cumsum(0)
    first, second = counts[:, : len(sizes)], counts[:, len(sizes) :]
    assert (first - second).abs().max() <= 1


@pytest.mark.curriculum("D19")
def test_limits_are_nested_and_leave_the_other_splits_alone():
    """A smaller limit is a subset of a larger one with every class in it; validation and test do not change."""
    small, large, full = split(limit_train=10), split(limit_train=50), split()
    assert [len(r["train"]) for r in (small, large, full)] == [10, 50, 720]
    assert set(small["train"].tolist()) < set(large["train"].tolist()) < set(full["train"].tolist())
    assert set(LABELS[small["train"]].tolist()) == {0, 1, 2, 3}
    for name in ("val", "test"):
        assert torch.equal(small[name], full[name])
    limited = split(limit_val=7, limit_test=9)
    assert [len(r) for r in limited.values()] == [720, 7, 9]


def test_a_published_test_set_is_not_held_out_again():
    """Where the test set is published, all given samples are for training and validation."""
    rows = split(published=True)
    assert [(name, len(r)) for name, r in rows.items()] == [("train", 900), ("val", 100)]


def test_a_prescribed_split_is_kept():
    """With a fixed split, validation comes from its training rows and the test rows are those prescribed."""
    pool, test = torch.arange(0, 1000, 2), torch.arange(1, 1000, 2)
    rows = split(fixed=(pool, test))
    assert torch.equal(rows["test"], test)
    assert torch.equal(torch.cat([rows["train"], rows["val"]]).sort().values, pool)
    assert len(rows["val"]) == 50


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (4, {}, r"data\.val_fraction: 0\.1 of 3 samples is 0"),
        (2, {}, r"data\.test_fraction: 0\.2 of 2 samples is 0"),
        (20, {"val_fraction": 0.99}, r"data\.val_fraction: 0\.99 of 16 samples is 16"),
    ],
)
def test_an_empty_split_is_refused(count, settings, message):
    """Too few samples for a split is one line with the setting to change."""
    with pytest.raises(ConfigError, match=message):
        split(torch.zeros(count, dtype=torch.int64), **settings)


def test_hash_of_rows():
    """The hash is SHA-256 of little-endian int64 indices, 16 hex digits."""
    expected = hashlib.sha256(struct.pack("<3q", 5, 0, 7)).hexdigest()[:16]
    assert rows_hash(torch.tensor([5, 0, 7])) == expected


@pytest.mark.curriculum("D07")
def test_default_batch_size_is_in_the_usual_range():
    """The default batch size is a power of two between 32 and 256."""
    default = {f.name: f.default for f in dataclasses.fields(DataSettings)}["batch_size"]
    assert default in (32, 64, 128, 256)
