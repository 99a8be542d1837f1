"""Memory does not grow with the number of epochs."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrun.background import NAME
from dlrun.callbacks._base import Callback, Run

EARLY, MIDDLE, LATE = 20, 100, 200
BOUND = 0.02
SMALL = (
    "device=cpu",
    "model=mlp",
    "model.hidden=[8]",
    "data.batch_size=16",
    "data.limit_train=32",
    "data.limit_val=32",
    "trainer.threads=1",
    f"trainer.epochs={LATE}",
    "trainer.ema_decay=0.9",
    "trainer.log_every_steps=1",
    "callbacks.progress.bar=false",  # rich keeps the last 1,000 positions of a bar
    "callbacks.tensorboard.histograms_every_epochs=5",
    "callbacks.tensorboard.images_every_epochs=10",
)


class Watch(Callback):
    """Notes, after each epoch, the bytes of this process that lie in memory and the number of objects in it."""

    def __init__(self) -> None:
        self.resident = [0] * (LATE + 1)
        self.objects = [0] * (LATE + 1)
        self.page = os.sysconf("SC_PAGE_SIZE")

    def on_epoch_end(self, run: Run) -> None:
        if run.epoch in (EARLY, MIDDLE, LATE):
            for thread in threading.enumerate():
                if thread.name == NAME:  # a checkpoint is being written
                    thread.join()
            gc.collect()
            self.objects[run.epoch] = len(gc.get_objects())
            self.resident[run.epoch] = int(Path("/proc/self/statm").read_text().split()[1]) * self.page


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_hundred_epochs_need_the_memory_of_twenty(
    composed: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the default callbacks, checkpoints and an average of the weights, the process is at most 2 % larger after 200
    epochs than after 20, and no longer holds more objects with every epoch."""
    from dlrun.actions.train import train

    monkeypatch.setattr(os, "fsync", lambda file: None)  # for speed: it takes no memory
    watch = Watch()
    train(composed(*SMALL), tmp_path, [watch])
    early, late = watch.resident[EARLY], watch.resident[LATE]
    assert 0 < late <= (1 + BOUND) * early, f"{early} bytes after {EARLY} epochs, {late} after {LATE}"
    more = watch.objects[LATE] - watch.objects[MIDDLE]  # caches of the first epochs have settled
    assert more < 20, f"{more} more objects after {LATE} epochs than after {MIDDLE}"
