"""The main action: train, then test once on the best checkpoint."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dlrun import checkpoint, memory, provenance, rundir
from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.build import build_trainer, check, resolved
from dlrun.callbacks._base import Callback
from dlrun.callbacks._reporting import Pruned
from dlrun.divergence import Diverged
from dlrun.models._summary import count_parameters
from dlrun.signals import Interrupted
from dlrun.trainer import Trainer

log = logging.getLogger("dlrun")


@ACTIONS.register("train")
class Train(Action):
    """Trains, keeps the best checkpoint by `trainer.monitor`, then opens the sealed test set once.

    With `resume=<folder>` it goes on where the run stopped; a finished run has nothing left to do.
    """

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        return train(config, folder)


def train(config: dict[str, Any], folder: Path, observers: Sequence[Callback] = ()) -> float | None:
    """Trains and tests a plain configuration in `folder`, or goes on with it if `config["resume"]` is set. `observers` are
    called like the configured callbacks. Returns the best monitored value."""
    resumed = config["resume"] is not None
    if resumed and (done := _finished(folder)):
        return done["best"].get("value")
    check(config)
    with rundir.lock(folder, "resume" if resumed else "hydra.run.dir"):
        if not resumed:
            rundir.refuse_used(folder)
        elif done := _finished(folder):  # by a process that held the lock until now
            return done["best"].get("value")
        with log_file(folder):
            return fit_and_test(_prepared(config, folder, observers))


def _prepared(config: dict[str, Any], folder: Path, observers: Sequence[Callback]) -> Trainer:
    """The trainer at the step where the run stands, its configuration and origin written down."""
    memory.begin_peak()
    trainer = build_trainer(config, folder)
    trainer.callbacks += observers
    state = checkpoint.load_last(folder / rundir.LAST, "resume", trainer.run.device) if config["resume"] else None
    if state is not None:
        trainer.load_state_dict(state)
    write_origin(trainer, "resumed" if config["resume"] else "started")
    return trainer


def write_origin(trainer: Trainer, what: str, **facts: Any) -> None:
    """Writes down the configuration of a run and where it comes from. `what`: started or resumed; `facts`: further ones."""
    run, seed = trainer.run, trainer.seed
    run.config = resolved(trainer)  # as a resume reads it: TensorBoard shows it at the end
    rundir.write_config(run.folder, run.config)
    about = {**provenance.describe(run.device, seed, run.spec.split_hashes), **facts}
    rundir.write_json(run.folder / ("resumed.json" if (run.folder / "run.json").exists() else "run.json"), about)
    log.info("%s on %s, seed %d: %s", what, about["device"], seed, about["command"])


def fit_and_test(trainer: Trainer, fit: Callable[[], None] | None = None, start: float | None = None) -> float | None:
    """Fits and tests; writes results.json, as the last file, with the status however training ends. Returns the best monitored
    value, also of a run that was pruned.

    `fit`: in place of `trainer.fit`, of a run that was trained together with others; `start`: of `time.perf_counter`, when it
    began (None: now).
    """
    run, start = trainer.run, time.perf_counter() if start is None else start
    outcome: dict[str, Any] = {"status": "failed"}
    test: dict[str, float] = {}
    try:
        (fit or trainer.fit)()
        test = trainer.test()
        trainer.announce_test(test)
        outcome = {"status": "finished"}
    except Diverged as error:
        outcome = {"status": "diverged", "message": str(error), "divergence": error.details}
        raise
    except Pruned as error:
        outcome = {"status": "pruned", "message": str(error)}
    except (Interrupted, KeyboardInterrupt, SystemExit) as error:
        outcome = {"status": "interrupted", "message": str(error)}
        raise
    except BaseException as error:
        outcome["message"] = f"{type(error).__name__}: {error}"
        log.error("failed\n%s", traceback.format_exc())
        raise
    finally:
        results = {**collect_results(trainer, outcome["status"], test, time.perf_counter() - start), **outcome}
        _close(trainer, results)
    return run.best.get("value")


def _close(trainer: Trainer, results: dict[str, Any]) -> None:
    """Ends every callback and then writes results.json. The first thing that fails in it (a full disk, say) is raised, unless
    an error ended the run before."""
    run, first = trainer.run, sys.exc_info()[1]
    raised: Exception | None = None
    ends = [partial(callback.on_run_end, run, results) for callback in trainer.callbacks]
    try:
        for end in (*ends, partial(rundir.write_json, run.folder / rundir.RESULTS, results)):
            try:
                end()
            except Exception as error:
                if first or raised:
                    log.warning("%s is not complete: %s", run.folder, error)
                else:
                    raised = error
                    results.update(status="failed", message=f"{type(error).__name__}: {error}")
        if raised:
            raise raised
    finally:
        run.data.close()


def collect_results(trainer: Trainer, status: str, test: dict[str, float], wall_s: float) -> dict[str, Any]:
    """What results.json holds; `wall_s`: seconds of this process."""
    run = trainer.run
    metrics = {split: _json(values) for split, values in {**run.history, **({"test": test} if test else {})}.items()}
    best = {**run.best, **_json({"value": run.best["value"]}), "checkpoint": str(rundir.BEST)} if run.best else {}
    limit = trainer.limits["test"]
    part = f" (only its first {limit} batches)" if limit else ""
    trained = sum(trainer.epoch_seconds)
    return {
        "status": status,
        "metrics": metrics,
        "best": best,
        "test": f"the test set was read once{part}, after training, with the weights of {rundir.BEST}"
        if test
        else "not read",
        "epochs": run.epoch,
        "steps": run.step,
        "timing": {
            "wall_s": round(trainer.earlier_seconds + wall_s, 4),
            "fit_s": round(trainer.fit_s, 4),
            "epoch_s": [round(s, 4) for s in trainer.epoch_seconds],
            "data_wait_s": round(trainer.wait_s, 4),
            "samples_per_s": round(run.samples / trained, 1) if trained else None,
        },
        "memory": memory.peak(run.device),
        "parameters": count_parameters(run.model),
    }


def _json(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: a non-finite value becomes null."""
    return {name: value if abs(value) < float("inf") else None for name, value in metrics.items()}


def _finished(folder: Path) -> dict[str, Any] | None:
    """The results of a run that has nothing left to do, which is said."""
    results = rundir.read_results(folder)
    if not results or results.get("status") != "finished":
        return None
    print(f"{folder} is finished: nothing to do")
    return {**results, "best": results.get("best") or {}}


class _LogFile(logging.FileHandler):
    """A log that ends no run and shows no traceback when it cannot be written: the next checkpoint tells of a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class log_file:
    """Sends the log of this run, and Python's warnings, to dlrun.log in its folder; warnings to the terminal too."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "dlrun.log"

    def __enter__(self) -> None:
        file, terminal = _LogFile(self.path), logging.StreamHandler()
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        terminal.setFormatter(logging.Formatter("dlrun: warning: %(message)s"))
        terminal.setLevel(logging.WARNING)
        terminal.addFilter(lambda record: record.levelno == logging.WARNING)  # errors get their one line from the cli
        warned = logging.getLogger("py.warnings")
        self.handlers: list[tuple[logging.Logger, logging.Handler]] = [(log, file), (log, terminal), (warned, file)]
        logging.captureWarnings(True)
        for logger, handler in self.handlers:
            logger.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = logging.getLogger("py.warnings").propagate = False

    def __exit__(self, *error: Any) -> None:
        logging.captureWarnings(False)
        for logger, handler in self.handlers:
            logger.removeHandler(handler)
            handler.close()
        log.propagate = logging.getLogger("py.warnings").propagate = True
