"""One process of `action=verify_resume`: trains, leaves a trace of every step, and may be stopped by a signal from inside.

A line of a trace is {"start": step}, {"step", "loss", ..., "weights": {name: checksum}} or {"step", "split", ...}; all
numbers are exact (`float.hex`).
"""

from __future__ import annotations

import json
import os
import signal
import traceback
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from dlrun import rundir
from dlrun.actions.train import train
from dlrun.callbacks._base import Callback, Run
from dlrun.divergence import Diverged
from dlrun.registry import ConfigError
from dlrun.signals import Interrupted
from dlrun.spec import StepResult

TRACED_BYTES = 4 << 20  # of weights per step on average, about 2 ms: larger models are looked at every few steps


class TraceWriter(Callback):
    """Writes the trace and stops the process.

    Args:
        path: of the trace.
        stop: the step after which the signal comes; None: never.
        number: the signal.
    """

    def __init__(self, path: Path, stop: int | None = None, number: int = signal.SIGTERM) -> None:
        self.path, self.stop, self.number = path, stop, number
        self.parent = os.getppid()
        self.every = 1

    def on_fit_start(self, run: Run) -> None:
        self.file = open(self.path, "wb", buffering=0)  # noqa: SIM115 - open as long as the run; SIGKILL loses no line
        size = sum(tensor.nbytes for tensor in run.model.state_dict().values())
        self.every = max(1, round(size / TRACED_BYTES))
        self._write(
            {"start": run.step, "epoch": run.epoch, "every": self.every, "steps_per_epoch": run.steps_per_epoch}
        )

    def on_step(self, run: Run, result: StepResult) -> None:
        line: dict[str, Any] = {"step": run.step, "loss": _exact(result.loss)}
        line |= {name: _exact(value) for name, value in result.parts.items()}
        if run.step % self.every == 0:
            line["weights"] = {name: checksum(tensor) for name, tensor in run.model.state_dict().items()}
        self._write(line)
        if run.step == self.stop:
            signal.raise_signal(self.number)
        if os.getppid() != self.parent:  # nobody is left to compare
            raise KeyboardInterrupt

    def on_evaluation(self, run: Run, split: str, metrics: Mapping[str, float]) -> None:
        self._write({"step": run.step, "split": split, **{name: _exact(value) for name, value in metrics.items()}})

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")


def checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def main(job: str) -> int:
    """Does what the file `job` says and returns the exit code; an error's one line goes into the file `error`.

    The file holds `config` (the file of the plain configuration), `folder`, `resume`, `trace`, `stop`, `signal` and `error`.
    """
    given = json.loads(Path(job).read_text(encoding="utf-8"))
    config = yaml.safe_load(Path(given["config"]).read_text(encoding="utf-8"))
    folder = Path(given["folder"])
    config["resume"] = str(folder) if given["resume"] else None
    if given["resume"]:  # what `resume=` reads; its imports are those that the user has just given
        config |= {key: value for key, value in rundir.read_config(folder, "resume").items() if key in rundir.SAVED}
    try:
        train(config, folder, [TraceWriter(Path(given["trace"]), given["stop"], given["signal"])])
    except Interrupted as error:
        return error.code
    except Exception as error:
        expected = isinstance(error, (ConfigError, Diverged))
        if not expected:
            traceback.print_exc()
        message = str(error) if expected else f"{type(error).__name__}: {' '.join(str(error).split())}"
        rundir.write_json(Path(given["error"]), {"message": message, "expected": expected})
        return 3 if isinstance(error, Diverged) else 1
    return 0


def _exact(value: Any) -> str:
    return float(value).hex()
