"""A callback that tells when the first optimizer step is done, and ends the process."""

from __future__ import annotations

import os
import time
from typing import Any

from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback

TOLD_IN = "BENCHMARK_FIRST_STEP"


@CALLBACKS.register("first_step")
class FirstStep(Callback):
    """Writes the system's monotonic clock into the file that the environment variable names."""

    def on_step(self, run: Any, result: Any) -> None:
        now = time.monotonic()
        with open(os.environ[TOLD_IN], "w") as file:
            file.write(repr(now))
        os._exit(0)
