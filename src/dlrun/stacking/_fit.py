"""The training loop of a stack: steps of all members at once, everything else by the members' own trainers.

fit:  for each epoch
        for each batch: keys of dropout, forward, losses + penalties, backward, clip, update, project
            a member whose step is not finite ends before the update
        each member: evaluate, keep the best, checkpoint, stop early; one that has ended is tested

The row of a member that has ended stays: kernels round by the number of rows, so taking it out would change the others' bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dlrun.signals import Interrupted, Signals
from dlrun.stacking import _shown
from dlrun.stacking._batches import StackedBatches
from dlrun.stacking._member import Heard, Member
from dlrun.stacking._optimizers import BLOCK, StackedOptimizer
from dlrun.stacking._stack import Stack
from dlrun.stacking._step import StackedBatch, StackedResult, StackedStep
from dlrun.stacking._sums import StackedSums
from dlrun.sweeps.jobs import Outcome
from dlrun.trainer import Trainer
from dlrun.trainer.loop import UNREAD_STEPS


class StackedFit:
    """Trains runs whose trainers are at the first step, each until its last epoch, early stopping or divergence, and ends it.

    Args:
        members: the runs; `check_trainers` and `try_step` have found no obstacle.
        ended: told of each member that has ended, by its number.
        at_once: whether there is one update of all members; or, as is faster on the CPU, they are updated one after another by
            their own optimizers. None: at once on all devices but the CPU.
    """

    def __init__(
        self,
        members: Sequence[Member],
        ended: Callable[[int, Outcome], None] | None = None,
        at_once: bool | None = None,
    ) -> None:
        self.members, self.ended, self.total = list(members), ended, len(members)
        self.rows = list(members)  # of the stack: that of a member that has left is trained on, to no effect
        self.signals = Signals()
        trainers = [member.trainer for member in members]
        for trainer in trainers:
            trainer.signals = Heard(self.signals)  # type: ignore[assignment]
        self.reads_losses = trainers[0].reads_losses
        self.stack = Stack(trainers)
        self.step = StackedStep(trainers, self.stack)
        self.stack.attach([trainer.run.model for trainer in trainers])
        device = self.stack.flat.device
        at_once = device.type != "cpu" if at_once is None else at_once
        self.optimizer = StackedOptimizer(trainers, self.stack) if at_once else None
        self.sums = StackedSums(trainers, device)
        self.left = torch.zeros(len(members), dtype=torch.bool, device=device)
        self.norms: Tensor | None = None  # of the gradients before clipping, where all members are updated at once
        self.epoch_start = time.perf_counter()

    def fit(self) -> None:
        """Trains and ends all members. An error of one ends that one; of what they do together, all of them. Raises
        InterruptedAtOnce after a second signal."""
        try:
            with self.signals:
                self._fit()
                if self.signals.arrived:
                    raise Interrupted(self.signals.exit_code)
        except Interrupted:
            pass
        except BaseException as error:
            for member in list(self.members):
                self._leave(member, error)
            if not isinstance(error, (Exception, SystemExit)):
                raise

    def _fit(self) -> None:
        now = time.perf_counter()
        for member in self.members:
            member.trainer.started_at = member.trainer.saved_at = now
        self._each(lambda trainer: trainer._call("on_fit_start", trainer.run))
        while self.members:
            self._each(lambda trainer: trainer._call("on_epoch_start", trainer.run))
            self._train_epoch()
            self._each(lambda trainer: trainer._end_epoch())
            if self.signals.arrived:
                self._each(lambda trainer: trainer.save_unsaved())
            for member in list(self.members):
                if self.signals.arrived:
                    self._leave(member, member.trainer._interrupted())
                elif not member.trainer.unfinished:
                    self._leave(member, None)

    def _train_epoch(self) -> None:
        if not self.members:
            return
        for member in self.members:
            member.trainer.epoch_seconds.append(0.0)
            member.trainer.run.model.train()
        run, trainers = self.members[0].trainer.run, [member.trainer for member in self.rows]
        self.last = min(run.step + run.steps_per_epoch, run.total_steps)  # step of this epoch
        self.hooks = {member: member.trainer._overriding("on_step") for member in self.members}
        self.hooked = any(map(_shown.of_every_step, self.hooks.values()))
        left = [row for row, member in enumerate(self.rows) if member not in self.members]
        self.sums = StackedSums(trainers, self.stack.flat.device, left)
        batches = StackedBatches(trainers, left)
        self.epoch_start = self.window_start = time.perf_counter()
        self.window = run.samples
        for step in range(run.step, self.last):
            self._step(step, batches.next())
            if not self.members:
                return
        self._look()
        self._share()
        self._each(lambda trainer: trainer._check_finite())

    def _step(self, step: int, batch: StackedBatch) -> None:
        self.stack.fill_keys(step)
        result = self.step(batch)
        if self.optimizer is None:
            self._update_each(batch, result)
        else:
            self._update(self.optimizer, step, batch, result)
        for member in self.members:
            _shown.count_step(member.trainer, batch.size)
        self.sums.add(result, batch.size)
        if self.members:
            self._after(step + 1, result)

    def _update_each(self, batch: StackedBatch, result: StackedResult) -> None:
        """The members' own updates. Ends those whose step was not finite."""
        gradients = [result.gradients[name].unbind() for name in self.stack.columns]
        for member in list(self.members):
            row = self.rows.index(member)
            try:
                _shown.update(
                    member.trainer, [of_all[row] for of_all in gradients], result.objective[row], batch.of(row)
                )
            except (Exception, SystemExit) as error:
                self._share()
                self._leave(member, error)

    def _update(self, optimizer: StackedOptimizer, step: int, batch: StackedBatch, result: StackedResult) -> None:
        """One update of all members; those whose step was not finite end before it, where it is looked at."""
        if not optimizer.knows(step):
            optimizer.prepare(range(step, min(step + BLOCK, self.last)))
        gradient = self.stack.gather(result.gradients)
        largest = torch.linalg.vector_norm(gradient, torch.inf, 1)  # NaN if one is
        finite = torch.isfinite(largest) & torch.isfinite(result.objective) | self.left
        self.sums.finite &= finite
        if (self.reads_losses or step == 0) and not finite.all():
            self._diverge(batch, finite.tolist())
        with torch.no_grad():
            self.norms = optimizer.step(step, gradient)
            for member in self.members:
                for regularizer in member.trainer.projections:
                    regularizer.project(member.trainer.run.model)

    def _after(self, step: int, result: StackedResult) -> None:
        """What follows the update: hooks, logs, checkpoints, signals. `step`: updates that are done."""
        first, now = self.members[0].trainer, time.perf_counter()
        logs = step % first.log_every_steps == 0 or step == 1
        hooks = {}
        if self.hooked or step == self.last:
            hooks = {
                m: self.hooks[m] if step == self.last else _shown.of_every_step(self.hooks[m]) for m in self.members
            }
        if logs or any(hooks.values()):
            self._share()
            rate = (first.run.samples - self.window) / max(now - self.window_start, 1e-9) if logs else None
            for member in [member for member in self.members if logs or hooks.get(member)]:
                row = self.rows.index(member)
                if self.optimizer is not None:
                    _shown.show_gradients(member.trainer, result, self.norms, row)
                self._do(member, partial(_shown.show_step, result, row, hooks.get(member, []), rate))
        if logs:
            self.window, self.window_start = first.run.samples, now
        if self.signals.arrived:
            self._interrupt()
            return
        if not self.reads_losses and step % UNREAD_STEPS == 0:
            self._look()
        if first._checkpoint_due(now):
            self._look()
            self._share()
            self._each(lambda trainer: trainer.save_last())

    def _share(self) -> None:
        """Gives the members' trainers what a checkpoint, a log or an evaluation needs."""
        self.sums.share()
        seconds = time.perf_counter() - self.epoch_start
        for member in self.members:
            member.trainer.epoch_seconds[-1] = seconds
            if self.optimizer is not None:
                self.optimizer.show(self.rows.index(member))

    # ---- members that leave ---------------------------------------------------------------------------------------

    def _diverge(self, batch: StackedBatch, finite: Sequence[bool]) -> None:
        """Ends the members whose step was not finite, before their weights are updated."""
        self._share()
        for member in list(self.members):
            if not finite[row := self.rows.index(member)]:
                self._do(member, partial(_shown.raise_divergence, batch.of(row)))

    def _look(self) -> None:
        """Ends the members that were not finite since the epoch began, where steps are not looked at one by one."""
        if self.reads_losses or bool(self.sums.finite.all()):
            return
        self._share()
        for member, finite in zip(self.rows, self.sums.finite.tolist(), strict=True):
            if not finite:
                self._do(member, _shown.find_divergence)

    def _interrupt(self) -> None:
        """Ends all members after a checkpoint."""
        self._look()
        self._share()
        self._each(lambda trainer: trainer.save_last())
        for member in list(self.members):
            self._leave(member, member.trainer._interrupted())

    def _each(self, action: Callable[[Trainer], Any]) -> None:
        for member in list(self.members):
            self._do(member, action)

    def _do(self, member: Member, action: Callable[[Trainer], Any]) -> None:
        """Does something with a member that is still there, with its own log; an error ends that member."""
        if member not in self.members:
            return
        try:
            with member.log():
                action(member.trainer)
        except (Exception, SystemExit) as error:
            self._leave(member, error)

    def _leave(self, member: Member, error: BaseException | None) -> None:
        self.members.remove(member)
        self.left[row := self.rows.index(member)] = True
        self.sums.leave(row)
        outcome = member.end(error, self.total)
        if self.ended:
            self.ended(member.number, outcome)
