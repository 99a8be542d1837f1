"""Files that grow during a run: full disks, deleted files, and files that are not as the checkpoint remembers them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from dlrun.callbacks._events import EventWriter, whole_records
from dlrun.callbacks._files import GrowingFile
from dlrun.callbacks.metrics_file import MetricsFile
from dlrun.registry import ConfigError

FULL = Path("/dev/full")  # every write to it finds the disk full
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


@needs_full
def test_a_full_disk_is_one_error_however_often_it_is_tried(tmp_path: Path) -> None:
    """The first failure names file and reason; closing afterwards raises nothing that would hide it."""
    (tmp_path / "a").symlink_to(FULL)
    file = GrowingFile(tmp_path, "a")
    file.write(b"x")
    with pytest.raises(
        ConfigError, match=r"cannot write .*/a \(No space left on device; what was written before is whole"
    ):
        file.flush()
    file.write(b"y")
    file.flush()
    file.close()
    assert file.saved_length() == 0


@needs_full
def test_what_waits_is_written_at_closing(tmp_path: Path) -> None:
    """A disk that is full only at the end is noticed too."""
    (tmp_path / "a").symlink_to(FULL)
    file = GrowingFile(tmp_path, "a")
    file.write(b"x")
    with pytest.raises(ConfigError, match="No space left"):
        file.close()
    file.close()


def test_the_remembered_length_is_on_the_disk(tmp_path: Path) -> None:
    """What is counted can be read by others, and more than the buffer holds is written at once."""
    file = GrowingFile(tmp_path, "below/a")
    file.write(b"abc")
    assert file.saved_length() == 3
    assert (tmp_path / "below" / "a").read_bytes() == b"abc"
    file.write(b"d" * (1 << 17))
    assert (tmp_path / "below" / "a").stat().st_size == 3 + (1 << 17)
    file.close()
    assert file.saved_length() == 3 + (1 << 17)


@pytest.mark.parametrize("how", ["deleted", "replaced", "folder"])
def test_a_deleted_file_is_put_back(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """The content is still in the open file: the next checkpoint finds all of it, with a warning."""
    file, path = GrowingFile(tmp_path / "run", "below/a"), tmp_path / "run" / "below" / "a"
    file.write(b"one ")
    file.saved_length()
    if how == "folder":
        shutil.rmtree(path.parent)
    else:
        path.unlink()
    if how == "replaced":
        path.write_bytes(b"another")
    file.write(b"two ")
    with caplog.at_level(logging.WARNING, "dlrun"):
        assert file.saved_length() == 8
    assert [r.getMessage() for r in caplog.records] == [
        f"{path} was deleted or replaced while the run went on; it was written again"
    ]
    file.write(b"three")
    file.close()
    assert path.read_bytes() == b"one two three"


def test_a_run_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """Whoever deleted or moved the run meant it."""
    file = GrowingFile(tmp_path / "run", "below/a")
    file.write(b"one")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"cannot write .*/run/below/a: the run's folder is gone"):
        file.saved_length()
    file.close()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "below").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*below/a \(File exists\)"):
        GrowingFile(tmp_path, "below/a")


def metrics_after(run, state: dict, content: bytes | None) -> list[str]:
    """The lines of metrics.jsonl after a resume that finds `content`, and one more evaluation."""
    path = run.folder / "metrics.jsonl"
    path.unlink(missing_ok=True)
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    callback = MetricsFile()
    callback.load_state_dict(state)
    callback.on_fit_start(run)
    callback.on_evaluation(run, "val", {"loss": 9.0})
    callback.on_run_end(run, {})
    return path.read_text().splitlines()


def test_metrics_that_are_not_as_remembered(new_run, caplog) -> None:
    """Of a file that is shorter than its checkpoint remembers, whole lines stay; one that is gone begins anew; both are
    warned of, and a longer one is cut without a word."""
    run, whole = new_run(), b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'
    new = '{"epoch": 0, "step": 0, "split": "val", "loss": 9.0}'
    for content, kept, warned in (
        (whole, 3, ""),
        (whole + b'{"a": 4}\n{"a"', 3, ""),
        (whole[:-1], 2, "of 27 bytes before the last checkpoint the first 18 are kept"),
        (whole[:13], 1, "the first 9 are kept"),
        (b"", 0, "the first 0 are kept"),
        (None, 0, "is gone; what the run said in it before its last checkpoint is lost"),
    ):
        caplog.clear()
        assert metrics_after(run, {"length": len(whole)}, content) == [*whole.decode().splitlines()[:kept], new]
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == bool(warned)
        assert all(warned in message for message in messages)


def write_events(folder: Path, steps: range, state: dict | None = None) -> dict:
    """Writes a scalar for each step, and returns the state of the closed writer."""
    writer = EventWriter(folder, state)
    for step in steps:
        writer.scalars({"lr": 0.5}, step)
    writer.close()
    return writer.state()


def steps_in(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = (folder / "tensorboard").iterdir()
    return [event.step for event in EventFileLoader(str(file)).Load() if event.summary.value]


@pytest.mark.parametrize("damage", ["short", "very short", "garbled", "longer", "zeros", "empty", "gone"])
def test_events_that_are_not_as_remembered(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """TensorBoard reads up to the first record that is damaged: what follows is cut, with a warning, and the run goes on."""
    state = write_events(tmp_path, range(1, 6))
    path = tmp_path / "tensorboard" / state["file"]
    whole = path.read_bytes()
    record = (len(whole) - len(write_and_read(tmp_path / "none", range(0)))) // 5
    content, kept = {
        "short": (whole[:-1], 4),
        "very short": (whole[: -3 * record - 5], 1),
        "garbled": (whole[:-10] + bytes([whole[-10] ^ 4]) + whole[-9:], 4),
        "longer": (whole + whole[-record:] + b"abc", 5),
        "zeros": (whole[: -2 * record] + bytes(2 * record), 3),
        "empty": (b"", 0),
        "gone": (None, 0),
    }[damage]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    write_events(tmp_path, range(6, 8), state)
    assert steps_in(tmp_path) == [*range(1, kept + 1), 6, 7]
    assert len(caplog.records) == (damage != "longer")
    assert all(record.levelname == "WARNING" for record in caplog.records)


def write_and_read(folder: Path, steps: range) -> bytes:
    state = write_events(folder, steps)
    return (folder / "tensorboard" / state["file"]).read_bytes()


def test_every_damaged_byte_near_the_end_is_noticed(tmp_path: Path) -> None:
    """Cut or changed anywhere, the undamaged beginning ends with a record."""
    content = write_and_read(tmp_path, range(1, 4))
    ends = [n for n in range(len(content) + 1) if whole_records(content[:n]) == n]
    assert len(ends) == 1 + 1 + 3  # nothing, the version, three steps
    for n in range(len(content)):
        changed = content[:n] + bytes([content[n] ^ 1]) + content[n + 1 :]
        assert whole_records(changed) == max(end for end in ends if end <= n)


@pytest.mark.parametrize("name", ["../precious", "/precious", "precious", "../tensorboard/events.out.tfevents.1"])
def test_a_checkpoint_cannot_make_it_cut_another_file(tmp_path: Path, name: str) -> None:
    """A file name in a checkpoint counts only if it is that of an event file in the run's own folder."""
    name = name.replace("/precious", f"{tmp_path}/precious") if name.startswith("/") else name
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    files = [tmp_path / "precious", tmp_path / "run" / "precious", tmp_path / "run" / "tensorboard" / "precious"]
    for file in files:
        file.write_text("precious")
    write_events(tmp_path / "run", range(1), {"file": name, "length": 3})
    assert [file.read_text() for file in files] == ["precious"] * 3
