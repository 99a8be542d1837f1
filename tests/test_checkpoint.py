"""Checkpoints: whole or not at all, and nothing in them is ever run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from dlrun import checkpoint
from dlrun.registry import ConfigError
from dlrun.signals import InterruptedAtOnce


def test_round_trip(tmp_path: Path) -> None:
    """What was saved is what is loaded, bit for bit, and no temporary file stays."""
    model = nn.Linear(3, 2)
    checkpoint.save(tmp_path / "c" / "last.pt", {"model": model.state_dict(), "epoch": 3})
    state = checkpoint.load(tmp_path / "c" / "last.pt")
    assert state["epoch"] == 3
    assert all(torch.equal(state["model"][k], v) for k, v in model.state_dict().items())
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["last.pt"]


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_hostile_pickle_is_refused(tmp_path: Path) -> None:
    """A checkpoint that would run code is refused and nothing in it runs."""
    victim = tmp_path / "ran"
    torch.save({"format": 1, "model": Hostile(str(victim))}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Hostile(str(victim))))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ConfigError, match="not loaded"):
            checkpoint.load(tmp_path / name)
    assert not victim.exists()


def test_damage_and_other_formats_are_named(tmp_path: Path) -> None:
    """Truncated, missing and foreign checkpoints each get their line."""
    checkpoint.save(tmp_path / "a.pt", {"model": {}})
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="damaged"):
        checkpoint.load(tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="no checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save({"format": 99}, tmp_path / "b.pt")
    with pytest.raises(ConfigError, match="format 99"):
        checkpoint.load(tmp_path / "b.pt")


def test_weights_of_another_model_are_refused() -> None:
    """The first misfit is named."""
    with pytest.raises(ConfigError, match="of another model"):
        checkpoint.load_weights(nn.Linear(3, 2), {"model": nn.Linear(4, 2).state_dict()})


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If writing fails, the previous checkpoint is still there and readable."""
    checkpoint.save(tmp_path / "a.pt", {"epoch": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(ConfigError, match=r"cannot write .*a\.pt \(No space left on device"):
        checkpoint.save(tmp_path / "a.pt", {"epoch": 2})
    assert checkpoint.load(tmp_path / "a.pt")["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_checkpoint_never_replaces_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After falling back to previous.pt, a save killed before last.pt is in its place leaves previous.pt as it was."""
    path = tmp_path / "last.pt"
    for epoch in (1, 2):
        checkpoint.save(path, {"epoch": epoch}, keep_previous=True)
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr(checkpoint, "_proven", set())  # another process
    assert checkpoint.load_last(path)["epoch"] == 1
    original = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target) == path:
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"epoch": 2}, keep_previous=True)
    monkeypatch.undo()
    assert checkpoint.load_last(path)["epoch"] == 1


@pytest.mark.parametrize("at", range(8))
def test_a_second_signal_while_writing_stays_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Whichever write it lands in, torch.save does not turn it into an error; the checkpoint before stays."""
    checkpoint.save(tmp_path / "last.pt", {"epoch": 1})
    original, calls = checkpoint._Summed.write, []

    def write(self, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == at + 1:
            raise InterruptedAtOnce(130)
        return original(self, data)

    monkeypatch.setattr(checkpoint._Summed, "write", write)
    with pytest.raises(InterruptedAtOnce):
        checkpoint.save(tmp_path / "last.pt", {"epoch": 2, "weights": torch.zeros(10)})
    assert checkpoint.load(tmp_path / "last.pt")["epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 1
