"""Memory of a run, its worker processes included, epoch by epoch: after 200 epochs it should be that after 20.

python scripts/measure_memory.py                                    # the runs listed below, each in a process of its own
python scripts/measure_memory.py model=mlp trainer.ema_decay=0.9    # one run with these overrides
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EPOCHS, EARLY = 200, 20
ALL = ("device=cpu", f"trainer.epochs={EPOCHS}", "trainer.threads=1", "scheduler=constant")
RUNS = (
    ("model=lenet", "data=digits", "data.limit_train=256", "data.limit_val=128"),
    ("model=mlp", "data=digits", "optimizer=adam", "trainer.ema_decay=0.99"),
    ("model=mlp", "data=digits", "data.limit_train=256", "data.loader=streaming", "data.workers=2"),
    ("model=cnn", "data=digits", "data.limit_train=256", "regularization=augmentation", "trainer.swa_start=0.5"),
    ("model=linear", "data=digits", "callbacks.progress.bar=true", "trainer.log_every_steps=1"),
    ("model=linear", "data=digits", "trainer.checkpoint_every_steps=5", "data.limit_train=512"),
)


def resident(pid: int | str = "self") -> int:
    """Bytes of a process that lie in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def workers() -> list[str]:
    """The process ids of the children of this process."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def measure(overrides: Sequence[str]) -> list[tuple[int, int]]:
    """Trains with these overrides; gives (bytes of this process, bytes of its workers) after each epoch."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from dlrun import rundir
    from dlrun.build import build_trainer, check
    from dlrun.callbacks._base import Callback, Run
    from dlrun.settings import config_dir

    sizes: list[tuple[int, int]] = []

    class Watch(Callback):
        def on_epoch_end(self, run: Run) -> None:
            gc.collect()
            sizes.append((resident(), sum(map(resident, workers()))))

    OmegaConf.register_new_resolver("dlrun.run_dir", rundir.claim, replace=True)
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", overrides=[*ALL, *overrides]), resolve=True)
        check(config)
        trainer = build_trainer(config, Path(folder))
        trainer.callbacks.append(Watch())
        trainer.fit()
        trainer.run.data.close()
    return sizes


def main(overrides: Sequence[str]) -> None:
    """Prints one line for a run: MiB after 1, 20, 50, 100 and 200 epochs, and the growth from 20 to 200."""
    sizes = [(own / 2**20, of_workers / 2**20) for own, of_workers in measure(overrides)]
    marks = sorted({1, EARLY, EPOCHS // 4, EPOCHS // 2, EPOCHS} & set(range(1, len(sizes) + 1)))
    shown = "  ".join(f"{epoch}: {sizes[epoch - 1][0]:.1f}" for epoch in marks)
    (early, early_workers), (late, late_workers) = sizes[min(EARLY, len(sizes)) - 1], sizes[-1]
    line = f"{' '.join(overrides)}\n    MiB after epoch  {shown}  growth {100 * (late / early - 1):+.2f} %"
    if early_workers:
        line += (
            f"; workers {early_workers:.1f} -> {late_workers:.1f} ({100 * (late_workers / early_workers - 1):+.2f} %)"
        )
    print(line, flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(sys.argv[1:])
    for run in () if sys.argv[1:] else RUNS:
        done = subprocess.run([sys.executable, __file__, *run], stderr=subprocess.PIPE, text=True)  # epochs go there
        if done.returncode:
            sys.exit(done.stderr)
