"""Jobs in the background: in order, none lost, errors raised where they are waited for."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from dlrun.background import WAITING, Background, size_of, snapshot


def test_jobs_are_done_in_order() -> None:
    """Whatever the jobs take, they are done one after another; afterwards there is no thread."""
    before, done = threading.active_count(), []
    background, gate = Background(), threading.Event()
    background.submit(lambda: (gate.wait(10), done.append(0)))
    background.submit(lambda: done.append(1))
    assert done == []
    gate.set()
    for number in range(2, 20):
        background.submit(lambda number=number: done.append(number))
    background.wait()
    assert done == list(range(20))
    assert threading.active_count() == before


def test_one_too_many_is_waited_for() -> None:
    """At most `WAITING` jobs are under way."""
    background, gates = Background(), [threading.Event() for _ in range(WAITING + 1)]
    for gate in gates[:WAITING]:
        background.submit(lambda gate=gate: gate.wait(10))
    threading.Timer(0.05, gates[0].set).start()
    background.submit(lambda: gates[-1].wait(10))
    assert gates[0].is_set()
    for gate in gates:
        gate.set()
    background.wait()


def test_an_error_is_raised_once_and_ends_what_follows() -> None:
    """After a failed job none is begun; its error comes from the next call, and after that all is well again."""
    background, done = Background(), []

    gate = threading.Event()

    def fail() -> None:
        gate.wait(10)
        raise OSError("disk full")

    background.submit(fail)
    background.submit(lambda: done.append(1))
    gate.set()
    with pytest.raises(OSError, match="disk full"):
        background.wait()
    assert done == []
    background.submit(lambda: done.append(2))
    background.wait()
    assert done == [2]


def test_a_snapshot_does_not_follow() -> None:
    """Changing the originals leaves the snapshot alone; tied tensors stay tied, layouts stay."""
    weights = torch.arange(6.0).view(2, 3)
    image = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state: dict[str, Any] = {
        "a": weights,
        "tied": weights,
        "column": weights[:, 1],
        "n": [1, (2.5, "x", None)],
        "i": image,
    }
    copy = snapshot(state)
    weights.fill_(9)
    assert copy["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert copy["tied"] is copy["a"]
    assert copy["column"].tolist() == [1, 4]
    assert copy["n"] == [1, (2.5, "x", None)]
    assert copy["i"].is_contiguous(memory_format=torch.channels_last)


def test_a_snapshot_keeps_what_a_dictionary_carries() -> None:
    """The versions of a model's modules, and the kind of the dictionary."""
    state = nn.BatchNorm1d(2).state_dict()
    assert snapshot(state)._metadata == state._metadata
    assert snapshot(Counter(a=3)) == Counter(a=3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forking_waits() -> None:
    """No thread of ours is at work while a process is forked."""
    background, done = Background(), []
    background.submit(lambda: (time.sleep(0.2), done.append(1)))
    child = os.fork()
    if child == 0:
        os._exit(0 if done else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert done == [1]
    background.wait()


def test_size() -> None:
    """Bytes of all tensors."""
    assert size_of({"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.uint8), 7]}) == 14
