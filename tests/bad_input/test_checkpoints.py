"""Checkpoints that are not what dlrun wrote: each with its one line, whoever reads them, and nothing in them is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrun import checkpoint

TRAINED = ("data=xor", "data.samples=60", "trainer.epochs=2")
ACTIONS = {"resume": ["resume=run"], "test": ["action=test", "run=run"], "predict": ["action=predict", "run=run"]}
SCAR = "hostile"


class Hostile:
    """Makes a folder when it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (SCAR,)


def saved(content: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A sound checkpoint whose content was changed: by the value that `change` gives, or in place if it gives None."""

    def edit(sound: bytes) -> bytes:
        state = torch.load(io.BytesIO(sound), weights_only=True)
        content = change(state)
        return saved(state if content is None else content)

    return edit


def garbled(sound: bytes) -> bytes:
    middle = len(sound) // 2
    return sound[:middle] + bytes(byte ^ 0x5A for byte in sound[middle : middle + 64]) + sound[middle + 64 :]


def other_archive(sound: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return buffer.getvalue()


def other_weights(state: dict[str, Any]) -> None:
    state["model"] = {name: torch.zeros(3, 3) for name in state["model"]}


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], list[str]]] = {
    "truncated": (lambda sound: sound[: len(sound) // 2], ["is damaged; it was not loaded"]),
    "a few bytes": (lambda sound: sound[:10], ["is damaged"]),
    "empty": (lambda sound: b"", ["is damaged"]),
    "garbled in the middle": (garbled, ["is damaged"]),
    "text": (lambda sound: b"not a checkpoint at all\n" * 9, ["is damaged"]),
    "zeros": (lambda sound: bytes(len(sound)), ["is damaged"]),
    "another archive": (other_archive, ["is damaged"]),
    "a hostile pickle": (lambda sound: pickle.dumps(Hostile()), ["was not loaded"]),
    "a hostile archive": (lambda sound: saved(Hostile()), ["holds more than tensors and plain values", "not loaded"]),
    "hostile inside": (
        edited(lambda state: {**state, "extra": Hostile()}),
        ["holds more than tensors and plain values", "not loaded"],
    ),
    "a list": (edited(lambda state: [state]), ["has format None", f"reads format {checkpoint.FORMAT}"]),
    "without format": (edited(lambda state: {k: v for k, v in state.items() if k != "format"}), ["has format None"]),
    "of the future": (edited(lambda state: {**state, "format": 999}), ["has format 999", "this dlrun reads format"]),
    "of another model": (edited(other_weights), ["is of another model", "size mismatch"]),
    "without weights": (edited(lambda state: state.pop("model") and None), ["checkpoint"]),
    "without data": (edited(lambda state: state.pop("data") and None), ["checkpoint"]),
    "with other data": (edited(lambda state: {**state, "data": {"spec": 3}}), ["description of the data is damaged"]),
}
ROWS = [(name, action) for name in DAMAGES for action in ACTIONS if (name, action) != ("with other data", "resume")] + [
    ("without optimizer", "resume"),
    ("without counters", "resume"),
    ("with other counters", "resume"),
]
DAMAGES |= {
    "without optimizer": (edited(lambda state: state.pop("optimizer", None) and None), ["resume: checkpoint"]),
    "without counters": (edited(lambda state: state.pop("counters", None) and None), ["resume: checkpoint"]),
    "with other counters": (edited(lambda state: {**state, "counters": {"epoch": "x"}}), ["resume: checkpoint"]),
}


@pytest.fixture
def run_folder(trained, tmp_path: Path) -> Path:
    """A copy of a trained run that was interrupted, as far as its results say."""
    folder = shutil.copytree(trained(*TRAINED), tmp_path / "run")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "status": "interrupted"}))
    return folder


@pytest.mark.parametrize(("damage", "action"), ROWS, ids=[f"{damage}, {action}" for damage, action in ROWS])
def test_bad_checkpoints_get_one_line(refused, run_folder: Path, damage: str, action: str) -> None:
    """A damaged, foreign or hostile checkpoint is refused with one line; it stays as it is, and nothing in it is run."""
    change, expected = DAMAGES[damage]
    files = sorted((run_folder / "checkpoints").iterdir())
    before = {path: change(path.read_bytes()) for path in files}
    for path, content in before.items():
        path.write_bytes(content)
    line = refused(ACTIONS[action], expected)
    assert line.startswith((f"dlrun: {'resume' if action == 'resume' else 'run'}: ", "dlrun: data: the checkpoint"))
    assert not (run_folder.parent / SCAR).exists()
    assert {path: path.read_bytes() for path in files} == before
    assert json.loads((run_folder / "results.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("action", ACTIONS)
def test_checkpoints_of_a_sound_run_are_read(cli, run_folder: Path, action: str) -> None:
    """The same run with its checkpoints as they were written is read: the table above fails for its damages alone."""
    done = cli(*ACTIONS[action])
    assert done.rc == 0, done.stderr


@pytest.mark.parametrize("action", ["test", "predict"])
def test_absent_checkpoints(refused, run_folder: Path, action: str) -> None:
    """A run without any checkpoint: one line that says where one was expected."""
    shutil.rmtree(run_folder / "checkpoints")
    refused(ACTIONS[action], ["run: no checkpoint", "checkpoints"])


@pytest.mark.parametrize("action", ACTIONS)
def test_folders_in_their_place(refused, run_folder: Path, action: str) -> None:
    """A folder where a checkpoint should be is no checkpoint."""
    for path in (run_folder / "checkpoints").iterdir():
        path.unlink()
        path.mkdir()
    refused(ACTIONS[action], ["no checkpoint"])


def test_weights_of_other_settings(refused, run_folder: Path) -> None:
    """A model made larger on the command line does not take the saved weights."""
    refused(["resume=run", "model.hidden=[5]"], ["resume: the checkpoint is of another model", "size mismatch"])
    refused(["action=test", "run=run", "model.hidden=[5]"], ["run: the checkpoint is of another model"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["config.yaml is damaged"]),
        ("- 1\n", ["config.yaml is damaged"]),
        ("seed: [\n", ["config.yaml is damaged"]),
        ("\0\0\0", ["config.yaml is damaged"]),
        ("!!python/object/apply:os.mkdir [hostile]\n", ["config.yaml is damaged"]),
    ],
)
@pytest.mark.parametrize("action", ACTIONS)
def test_damaged_configurations(refused, run_folder: Path, action: str, text: str, expected: list[str]) -> None:
    """A saved configuration that cannot be read, or would run something, is named."""
    (run_folder / ".hydra" / "config.yaml").write_text(text)
    refused(ACTIONS[action], expected)
