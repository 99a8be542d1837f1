"""A training process that takes turns with others: `python -m benchmark.contestant NAME WORKLOAD FOLDER`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmark.pace import Pace
from benchmark.workload import Workload

CONTESTANTS = {
    "bare loop": "loops.bare",
    "bare loop, fused Adam": "loops.bare_fused",
    "DataLoader loop": "loops.loader",
    "Lightning": "peers.lightning",
    "Ignite": "peers.ignite",
    "skorch": "peers.skorch",
    "Keras 3 on PyTorch": "peers.keras",
    "image files loop": "streaming.loop",
}
DLRUN = {
    "dlrun": ("callbacks.progress.bar=true",),
    "dlrun, compile": ("callbacks.progress.bar=true", "trainer.compile=true"),
    "dlrun, everything logged": (
        "callbacks.progress.bar=true",
        "callbacks.tensorboard.histograms_every_epochs=1",
        "callbacks.tensorboard.images_every_epochs=1",
        "callbacks.tensorboard.graph=true",
    ),
    "dlrun, nothing logged": ("callbacks=none",),
}


def fit_with_dlrun(workload: Workload, pace: Pace, folder: Path) -> None:
    """dlrun's own training, with an observer that holds it at the start of each epoch."""
    from dlrun.actions.train import train
    from dlrun.callbacks._base import Callback

    class Turns(Callback):
        def on_epoch_start(self, run: Any) -> None:
            pace.epoch_start()

        def on_step(self, run: Any, result: Any) -> None:
            if run.step % run.steps_per_epoch == 0:
                pace.train_end()

        def on_evaluation(self, run: Any, split: str, metrics: Any) -> None:
            if split == "val":
                pace.validated(metrics["loss"], metrics["accuracy"])

        def on_fit_end(self, run: Any) -> None:
            pace.epoch_start()

    train(workload.config(), folder, observers=[Turns()])


def main(name: str, workload: Workload, folder: Path) -> None:
    """Fits, and tells the driver in one line why it cannot."""
    pace = Pace(workload.device)
    try:
        if name in DLRUN:
            words = (*workload.words, *DLRUN[name])
            fit_with_dlrun(Workload.from_json({**workload.to_json(), "words": words}), pace, folder)
            return
        module, function = CONTESTANTS[name].split(".")
        getattr(importlib.import_module(f"benchmark.{module}"), function)(workload, pace)
    except Exception as error:
        pace.send({"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        raise


if __name__ == "__main__":
    main(sys.argv[1], Workload.from_json(json.loads(sys.argv[2])), Path(sys.argv[3]))
