"""What a person sees: plain lines in logs, a bar on terminals, the closing table."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from dlrun.callbacks import _closing
from dlrun.callbacks._closing import what_next
from dlrun.callbacks.progress import Progress


def shown(run, fit, bar, width=100):
    callback = Progress(bar=bar, refresh_per_s=60)
    stream = io.StringIO()
    callback.console = Console(file=stream, force_terminal=bar, width=width, highlight=False)
    fit(run, [callback])
    return stream.getvalue()


def test_without_a_terminal_an_epoch_is_one_plain_line(new_run, fit):
    """Logs get no control codes, one line per epoch, and the values of the loop."""
    run = new_run()
    text = shown(run, fit, bar=False)
    assert "\x1b" not in text
    assert "\r" not in text
    epochs = [line for line in text.splitlines() if line.startswith("epoch")]
    assert len(epochs) == 2
    assert epochs[1].startswith("epoch 2/2  step 6  train/loss ")
    assert f"val/accuracy {run.history['val']['accuracy']:.4g}" in epochs[1]
    assert "samples/s" in epochs[1]


def test_the_closing_table_has_every_metric_and_says_what_to_type_next(new_run, fit):
    """Metrics by split, where the curves are, and the next commands."""
    run = new_run()
    text = shown(run, fit, bar=False)
    row = next(line for line in text.splitlines() if "accuracy" in line and "│" in line)
    for split in ("train", "val", "test"):
        assert f"{run.history[split]['accuracy']:.4g}" in row
    for command in ("tensorboard --logdir ", "dlrun action=test run=", "dlrun action=predict run="):
        assert any(command + str(run.folder) in line for line in text.splitlines()), command


def test_on_a_terminal_a_bar_shows_step_loss_and_rate(new_run, fit):
    """The bar counts updates, shows the logged loss, and is gone at the end."""
    text = shown(new_run(), fit, bar=True)
    assert "3/6" in text
    assert "1,000/s" in text
    assert "loss " in text
    assert text.rstrip().splitlines()[-1].startswith("predict:")


@pytest.mark.parametrize(
    ("status", "expected"),
    [("finished", ["test again:", "predict:"]), ("interrupted", []), ("failed", ["go on:"]), ("diverged", [])],
)
def test_what_to_type_next_depends_on_how_the_run_ended(status, expected, new_run, monkeypatch, tmp_path):
    """A diverged run would only diverge again, an interrupted one is explained by the command line; folders are quoted."""
    monkeypatch.chdir(tmp_path)
    run = new_run()
    run.folder = tmp_path / "my runs" / "a"
    lines = what_next(run, status)
    assert [line.split("  ")[0] for line in lines[2:]] == expected
    assert f"tensorboard --logdir 'my runs{os.sep}a'" in lines[1]
    run.config["callbacks"]["tensorboard"] = None
    assert not any("logdir" in line for line in what_next(run, status))


def test_the_bar_never_reads_a_tensor(new_run):
    """Reading the loss of a step would make the device wait: the result of a step is not touched."""
    run = new_run()
    callback = Progress(bar=True, refresh_per_s=60)
    callback.console = Console(file=io.StringIO(), force_terminal=True)
    callback.on_fit_start(run)
    callback.on_step(run, None)  # the first time it draws
    assert "0/6" in callback.console.file.getvalue()
    callback.on_fit_end(run)


def test_the_bar_is_drawn_no_more_often_than_asked(new_run, monkeypatch):
    """Steps of 10 ms for 2 s, at 5 a second: ten times, and no more after the end."""
    run, clock = new_run(), iter(range(10**6))
    monkeypatch.setattr("dlrun.callbacks.progress.time.monotonic", lambda: next(clock) / 100)
    callback = Progress(bar=True, refresh_per_s=5)
    callback.console = Console(file=io.StringIO(), force_terminal=True)
    drawn = []
    callback.on_fit_start(run)
    callback.on_epoch_start(run)
    for _ in range(200):
        callback.on_step(run, None)
        if not drawn:
            monkeypatch.setattr(callback._progress, "refresh", lambda: drawn.append(1))
            drawn.append(1)
    assert 9 <= len(drawn) <= 11  # reading the clock takes a tick too
    callback.on_fit_end(run)
    callback.on_step(run, None)
    assert callback._progress is None


def test_the_line_of_an_epoch_tells_how_long_steps_waited_for_data(new_run, fit, monkeypatch):
    """The share of this epoch's training time; nothing where nothing waits. The rate is without validation."""
    run, clock = new_run(), [100.0]
    monkeypatch.setattr("dlrun.callbacks.progress.time.monotonic", lambda: clock[0])
    callback = Progress(bar=False)
    callback.on_fit_start(run)
    run.data.wait_s = 7.0  # earlier epochs
    callback.on_epoch_start(run)
    clock[0] += 4.0
    run.data.wait_s, run.samples = 8.0, 96
    callback.on_step(run, None)
    clock[0] += 6.0  # validation
    assert callback._epoch_line(run).endswith("24 samples/s  25% waiting for data  10.0 s")
    assert "waiting" not in shown(new_run(), fit, bar=False)


def test_commands_can_be_typed_as_they_stand(tmp_path, monkeypatch):
    """By name where the shell finds the command, else by its path beside Python."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / ".venv" / "bin" / "dlrun"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(program.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert _closing.command("dlrun") == os.path.join(".venv", "bin", "dlrun")
    monkeypatch.setenv("PATH", str(program.parent))
    assert _closing.command("dlrun") == "dlrun"
