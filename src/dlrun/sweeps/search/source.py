"""Trials as jobs of a sweep: asks the study for the next one, tells it how they go."""

from __future__ import annotations

import copy
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from dlrun.registry import ConfigError
from dlrun.sweeps.jobs import Job, Outcome
from dlrun.sweeps.search.objective import Objective, not_reported, read_epochs
from dlrun.sweeps.search.settings import Settings, epochs_of, trial_limit
from dlrun.sweeps.search.space import Space
from dlrun.sweeps.search.study import ATTRIBUTE, make_pruner, make_sampler, quiet
from dlrun.sweeps.search.trial import Trial

MakeJob = Callable[[int, list[str]], Job]
HOPELESS = 10  # failed trials in a row, after which no other is begun


class Search:
    """The jobs of a search: a `Source` (see `dlrun.sweeps.jobs`). Job m of trial t of R repeats has number t R + m.

    Args:
        settings: checked.
        space: what may be chosen.
        objective: what is looked for.
        study: of `open_study`; its running trials are those of a search that was stopped, and are run on.
        make_job: from number and words.
        epochs: of a run, where that is known; for hyperband.
        say: told in a line of a trial that failed.
        clock: seconds.
    """

    def __init__(
        self,
        settings: Settings,
        space: Space,
        objective: Objective,
        study: Any,
        make_job: MakeJob,
        *,
        epochs: int | None = None,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.space, self.objective, self.study = settings, space, objective, study
        self.make_job, self.clock = make_job, clock
        self.say = say or _say
        self.prunes = settings.pruner != "none"
        self.reports = True  # also what keeps a launcher from asking for all jobs before the first has ended
        self.limit = trial_limit(settings, space)
        self.stopped = ""
        self.began: float | None = None
        self._repeats = len(space.repeats)
        self._grid = settings.sampler == "grid"
        self._open: list[Trial] = []
        self._jobs: dict[int, tuple[Trial, int]] = {}
        self._failures: list[str] = []  # of trials in a row
        self._population = (study.user_attrs.get(ATTRIBUTE) or {}).get("population") or 4
        trials = study.get_trials(deepcopy=False)
        self._halfway = deque(trial for trial in trials if trial.state.name == "RUNNING")
        self._known = any(trial.state.name == "COMPLETE" for trial in trials)  # whether runs report the objective
        self.total = max(0, self.limit - sum(trial.state.is_finished() for trial in trials)) * self._repeats
        study.pruner = make_pruner(settings, epochs)

    # ---- Source ---------------------------------------------------------------------------------------------------

    def next(self) -> Job | None:
        """The next run of a trial under way, or the first one of the next trial."""
        if self.began is None:
            self.began = self.clock()
        while True:
            for trial in self._open:
                if trial.waiting:
                    return self._job(trial, trial.waiting.popleft())
            opened = self._continued() or self._asked()
            if opened is None:
                return None
            self._open.append(opened)

    def reported(self, job: Job, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Whether the run shall be pruned. Raises ConfigError for an objective that runs do not report."""
        if job.number not in self._jobs:
            return False
        trial, member = self._jobs[job.number]
        name = self.objective.names[0]
        if not self._known and not self.objective.is_monitor:
            if lacking := [name for name in self.objective.names if name not in metrics]:
                raise not_reported(lacking[0], list(metrics))
            self._known = True
        trial.reports.setdefault(member, {})[epoch] = dict(metrics)
        if not trial.pruned and self.prunes and name in metrics:
            self._judge(trial, epoch, job)
        return trial.pruned

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Tells the study once the last run of a trial has ended; one that was interrupted leaves its trial to the command
        that goes on with the search."""
        if job.number not in self._jobs:
            return
        trial, member = self._jobs.pop(job.number)
        trial.end(member, outcome)
        if trial.is_over:
            self._open.remove(trial)
            if not trial.was_interrupted:
                self._tell(trial)

    def shown(self, job: Job) -> list[str]:
        """Which words of a job tell it from the others."""
        fixed = {entry for entry in self.space.entries.values() if isinstance(entry, str)}
        return [word for word in job.overrides if word not in fixed]

    # ---- trials ---------------------------------------------------------------------------------------------------

    def _job(self, trial: Trial, member: int) -> Job:
        job = self.make_job(trial.number * self._repeats + member, self.space.words(trial.values, member))
        if earlier := read_epochs(job.folder):  # of a run that was stopped
            trial.reports[member] = earlier
        trial.jobs[member] = job
        trial.running.add(member)
        self._jobs[job.number] = trial, member
        return job

    def _continued(self) -> Trial | None:
        """A trial that was running when the search was stopped."""
        import optuna

        if not self._halfway:
            return None
        found = self._halfway.popleft()
        if all(parameter.name in found.params for parameter in self.space.parameters):
            self.study.sampler = optuna.samplers.RandomSampler(seed=0)  # asked for nothing; others keep count of asking
        else:
            with quiet():
                self.study.sampler = make_sampler(self.settings, found.number, self._population)
        return self._opened(optuna.trial.Trial(self.study, found._trial_id))

    def _asked(self) -> Trial | None:
        """A new trial, unless the search has come to its end."""
        trials = self.study.get_trials(deepcopy=False)
        waiting = sum(trial.state.name == "WAITING" for trial in trials)
        if self.stopped or self._is_late() or len(trials) - waiting >= self.limit:
            return None
        with quiet():
            self.study.sampler = make_sampler(self.settings, len(trials) - waiting, self._population)
            if self._grid and not waiting:
                self.study.enqueue_trial(self._combination(len(trials)))
            return self._opened(self.study.ask())

    def _opened(self, trial: Any) -> Trial:
        with quiet():
            values = {parameter.name: parameter.suggest(trial) for parameter in self.space.parameters}
        trial.set_user_attr("words", self.space.settings(values))
        return Trial(trial, values, deque(range(self._repeats)), pruned="pruned" in trial.user_attrs)

    def _combination(self, number: int) -> dict[str, Any]:
        """The values of a grid, of which the last parameter varies fastest."""
        values: dict[str, Any] = {}
        for parameter in reversed(self.space.parameters):
            number, at = divmod(number, parameter.count)
            values[parameter.name] = parameter.value(at)
        return values

    def _is_late(self) -> bool:
        timeout = self.settings.timeout
        return timeout is not None and self.began is not None and self.clock() - self.began >= timeout

    def _judge(self, trial: Trial, epoch: int, job: Job) -> None:
        """Decides by the mean over the runs of the trial that have come to this epoch, once all that are running have."""
        mean = trial.mean(epoch, self.objective.names[0])
        if mean is None:
            return
        own, storage = trial.own, trial.own.storage
        storage.set_trial_intermediate_value(own._trial_id, epoch, mean)  # `report` keeps the first value
        if epoch == epochs_of(job.config.get("trainer") or {}):
            return  # there is nothing left to be saved
        so_far = copy.copy(storage.get_trial(own._trial_id))
        so_far.intermediate_values = {e: value for e, value in so_far.intermediate_values.items() if e <= epoch}
        if self.study.pruner.prune(self.study, so_far):
            trial.pruned = True
            own.set_user_attr("pruned", epoch)  # for a search that is killed before the run has ended

    def _tell(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        values: list[float] = []
        failure = trial.failure
        if failure is None and not trial.pruned:
            try:
                values = trial.objectives(self.objective)
            except LookupError as error:
                failure = Outcome("failed", None, str(error.args[0]))
                if not self._known and not self.objective.is_monitor:
                    raise ConfigError(failure.message) from error
        runs = [job.number for job in trial.jobs.values()]
        trial.own.set_user_attr("runs", sorted(runs))
        trial.own.set_user_attr("epochs", sum(outcome.epochs for outcome in trial.outcomes.values()))
        if failure:
            trial.own.set_user_attr("failure", {"status": failure.status, "message": failure.message})
            self._count_failure(trial.number, failure)
        else:
            self._failures = []
        with quiet():
            if values:
                self._known = True
                self.study.tell(trial.own, values)
            elif failure and failure.status != "diverged":
                self.study.tell(trial.own, state=TrialState.FAIL)
            else:  # samplers pass over what failed, but a region that diverges is to be avoided
                self.study.tell(trial.own, state=TrialState.PRUNED)

    def _count_failure(self, number: int, failure: Outcome) -> None:
        self.say(f"dlrun: trial {number} {failure.status}: {failure.message}")
        self._failures.append(failure.message)
        if len(self._failures) == HOPELESS and not self.stopped:
            self.stopped = f"{HOPELESS} trials in a row failed; the first of them: {self._failures[0]}"
            self.say(f"dlrun: the search stops: {self.stopped}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)
