"""A run that is trained as a part of a stack: how it begins and ends is that of a lone run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dlrun.actions.train import fit_and_test, log_file
from dlrun.callbacks._reporting import Pruned
from dlrun.divergence import Diverged
from dlrun.signals import Interrupted, Signals
from dlrun.sweeps.jobs import Outcome
from dlrun.trainer import Trainer


class Member:
    """One of the runs.

    Args:
        number: among the runs of the stack.
        trainer: begun, not fitted.
        started_at: of `time.perf_counter`, when it began.
    """

    def __init__(self, number: int, trainer: Trainer, started_at: float) -> None:
        self.number, self.trainer, self.started_at = number, trainer, started_at
        self.outcome: Outcome | None = None

    @property
    def folder(self) -> Path:
        return self.trainer.run.folder

    def log(self) -> Any:
        """Within it, what is logged goes into the log of this run."""
        return log_file(self.folder)

    def end(self, error: BaseException | None, members: int) -> Outcome:
        """As `_end`, with the log of this run."""
        with self.log():
            return self._end(error, members)

    def _end(self, error: BaseException | None, members: int) -> Outcome:
        """Ends the run by an error, or as one that has nothing left to train: it is tested then. Writes results.json.

        `members`: of the stack, for the facts of the outcome.
        """
        trainer = self.trainer

        def fit() -> None:
            try:
                if error is not None:
                    raise error
                trainer._call("on_fit_end", trainer.run)
            finally:
                trainer._end_saving()
                trainer.fit_s = time.perf_counter() - trainer.started_at

        again: KeyboardInterrupt | None = None
        status, message, value = "pruned" if isinstance(error, Pruned) else "finished", "", None
        facts: dict[str, Any] = {"stacked": members}
        try:
            value = fit_and_test(trainer, fit, self.started_at)
        except Diverged as raised:
            status, message = "diverged", str(raised)
        except (Interrupted, KeyboardInterrupt) as raised:
            status, message = "interrupted", str(raised)
            facts["code"] = getattr(raised, "code", 130)
            again = raised if isinstance(raised, KeyboardInterrupt) and raised is not error else None
        except (Exception, SystemExit) as raised:
            status, message = "failed", " ".join(str(raised).split()) or type(raised).__name__
        seconds = time.perf_counter() - self.started_at
        self.outcome = Outcome(status, value, message, trainer.run.epoch, seconds, facts=facts)
        if again:
            raise again
        return self.outcome


class Heard:
    """What a member knows of the signals that the stack listens to, in place of signals of its own."""

    def __init__(self, owner: Signals) -> None:
        self.owner = owner

    @property
    def arrived(self) -> bool:
        return self.owner.arrived

    @property
    def exit_code(self) -> int:
        return self.owner.exit_code

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...
