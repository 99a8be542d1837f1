"""What a run would take: some of its steps are timed, and its state is measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dlrun.background import size_of
from dlrun.build import build_trainer, check

WARM_UP, TIMED = 3, 20  # steps
BEGINNING_S = 0.3  # of a run besides its steps: building it, writing its files
FILES = 120 << 10  # bytes of a run's text files and its event file
EPOCH = 6 << 10  # bytes that an epoch adds to them


def estimate(config: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds and bytes on the disk of a run with this configuration, from its beginning to its end.

    Trains a few batches and evaluates one, in a folder that is removed again. Raises ConfigError for a wrong configuration.
    """
    check(config)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dlrun-") as folder:
        trainer = build_trainer({**config, "callbacks": {}}, Path(folder))
        built = time.perf_counter() - start
        run = trainer.run
        run.model.train()
        times = []
        for batch in islice(run.data.epoch(0, 0), WARM_UP + TIMED):
            began = time.perf_counter()
            trainer._step(batch)
            times.append(time.perf_counter() - began)
        steady = times[WARM_UP:] or times
        step = sum(steady) / len(steady)
        began = time.perf_counter()
        evaluated = 0
        run.model.eval()
        with torch.no_grad():
            for batch in islice(run.data.split("val"), 2):
                run.model(batch.inputs)
                evaluated += len(batch.indices)
        sample = (time.perf_counter() - began) / max(1, evaluated)
        state = size_of(trainer.state_dict())
        weights = size_of(run.model.state_dict())
        run.data.close()
    spec = run.spec
    seconds = built + BEGINNING_S + run.total_steps * step
    seconds += sample * (run.epochs * spec.num_val + (spec.num_test or spec.num_val))
    return seconds, 2 * state + weights + FILES + EPOCH * run.epochs
