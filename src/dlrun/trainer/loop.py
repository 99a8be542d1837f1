"""The training loop, readable from top to bottom.

fit:  for each epoch
        for each batch: learning rate, forward, loss + penalties, backward, clip, update, project, average
        evaluate on validation, keep the best, checkpoint, stop early
test: once, on the best checkpoint, after training has ended
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from dlrun import checkpoint, rundir, streams
from dlrun.averaging import ArithmeticAverage, build_average, refresh_batch_norm
from dlrun.background import Background, size_of, snapshot
from dlrun.callbacks._base import Callback, Run
from dlrun.data._module import SplitName
from dlrun.device import autocast, grad_scaler
from dlrun.divergence import REMEDY, Diverged, GradientCheck, non_finite_weights
from dlrun.early_stopping import EarlyStopping
from dlrun.memory import out_of_memory
from dlrun.metrics._collection import MetricCollection, direction
from dlrun.metrics._monitor import metric_of, not_reported
from dlrun.metrics._sums import EpochSums
from dlrun.models._dropout import DropoutKeys, has_foreign_randomness, is_foreign
from dlrun.optimizers._state import load_state, settings_of, state_of
from dlrun.registry import ConfigError, Registry
from dlrun.regularization._base import Regularizer
from dlrun.schedulers._base import Scheduler
from dlrun.signals import Interrupted, InterruptedAtOnce, Signals
from dlrun.spec import Batch, StepResult
from dlrun.trainer._compiling import compiled
from dlrun.trainer._diagnosis import diverged_in_step, diverged_in_validation
from dlrun.trainer._evaluation import evaluate
from dlrun.trainer._flatness import full_gradient_norm
from dlrun.trainer._graph import graphed
from dlrun.trainer._whole_set import whole_set

log = logging.getLogger(__name__)
TRAINERS = Registry("trainer", None)
FAST_DEV_BATCHES = 2
COPIED = 1 << 30  # bytes of a state that is copied to be saved while training goes on
SMALLEST_SCALE = 2.0**-10  # of the loss in fp16, below which only a gradient of 7e7 or more would overflow
UPDATES = 1000  # between two checkpoints after epochs with trainer.checkpoint_every_epochs=auto, at least
UNREAD_STEPS = 50  # where reading a loss waits for the device: updates between two looks at whether all was finite


@TRAINERS.register("default")
class Trainer:
    """Owns precision, the order of a step, accumulation, clipping, counters, evaluation, checkpoints, the best so far, early
    stopping and the non-finite stop.

    Args:
        run: what callbacks see; the trainer keeps its counters.
        scheduler: the learning-rate schedule.
        regularizers: name to regularizer.
        callbacks: observers.
        seed: of every random stream.
        epochs: passes over the training data.
        steps: number of updates; null: as many as `epochs` needs. Beats `epochs`.
        monitor: what the best checkpoint, early stopping and sweeps look at, such as val/loss or val/accuracy.
        patience: stop when `monitor` has not improved in this many validations in a row; null: never.
        min_delta: an improvement must be larger than this.
        min_grad_norm: stop when the norm of the gradient over the whole training set, evaluated after each epoch, is below
            this: the objective is flat there. Costs a pass over the training set per epoch; null: neither evaluated nor asked.
        accumulate: each minibatch is split into this many micro-batches whose gradients are added up; saves memory, and the
            update stays that of the whole minibatch (but for batch norm and dropout, which see micro-batches). auto: 1,
            and twice as many, with a warning, whenever the memory of a CUDA device does not suffice.
        clip_norm: the gradient's norm is scaled down to at most this; null: no clipping.
        ema_decay: evaluate and keep an exponential moving average of the weights with this decay; null: off.
        swa_start: evaluate and keep the mean of the weights after each update from this share of the run on; null: off.
        precision: fp32, or mixed precision in bf16 or fp16 (fp16 scales the loss); auto: the fastest that was measured.
        compile: compile the model with torch.compile, which takes seconds at the start and changes the last bits of the
            results; where it fails, training goes on without, with a warning. auto: where it was measured to be faster.
        cuda_graph: record the update of a full minibatch once and replay it as one CUDA graph; CUDA only. The learning rate is
            then rounded to float32, which may change the last bits of the results. What cannot be recorded is trained
            without, with a warning.
        memory_format: how images and convolutions lie in memory, contiguous (N, C, H, W) or channels_last; changes the last
            bits of the results. auto: the faster one as measured.
        threads: CPU threads of PyTorch; null: its own choice. Another number changes the last bits of the results.
        deterministic: make the kernels deterministic too. None is chosen by timing it in any case (cuDNN's benchmark mode).
        log_every_steps: updates between two points of the step curves.
        validate_every_epochs: epochs between two validations.
        checkpoint_every_epochs: write last.pt after every so many epochs, and after the last one; best.pt of an epoch without
            last.pt waits for the next one. Where epochs are short, checkpoints take much of their time. auto: as many epochs as
            make 1,000 updates.
        checkpoint_every_steps: write last.pt after every so many updates, too; null: after epochs only.
        checkpoint_every_minutes: write last.pt once so many minutes have passed since it was last written; null: never.
        limit_train_batches: use only the first so many batches of each epoch; null: all.
        limit_val_batches: likewise for validation.
        limit_test_batches: likewise for the test.
        fast_dev_run: a dry run through everything: one epoch of two batches, validation, test.
    """

    def __init__(
        self,
        run: Run,
        scheduler: Scheduler,
        regularizers: Mapping[str, Regularizer],
        callbacks: list[Callback],
        seed: int,
        *,
        epochs: Annotated[int, Gt(0)] = 10,
        steps: Annotated[int, Gt(0)] | None = None,
        monitor: str = "val/loss",
        patience: Annotated[int, Gt(0)] | None = None,
        min_delta: Annotated[float, Ge(0)] = 0.0,
        min_grad_norm: Annotated[float, Gt(0)] | None = None,
        accumulate: Annotated[int, Gt(0)] | Literal["auto"] = 1,
        clip_norm: Annotated[float, Gt(0)] | None = None,
        ema_decay: Annotated[float, Gt(0), Lt(1)] | None = None,
        swa_start: Annotated[float, Ge(0), Lt(1)] | None = None,
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32",
        compile: bool | Literal["auto"] = False,
        cuda_graph: bool = False,
        memory_format: Literal["auto", "contiguous", "channels_last"] = "auto",
        threads: Annotated[int, Gt(0)] | None = None,
        deterministic: bool = False,
        log_every_steps: Annotated[int, Gt(0)] = 50,
        validate_every_epochs: Annotated[int, Gt(0)] = 1,
        checkpoint_every_epochs: Annotated[int, Gt(0)] | Literal["auto"] = 1,
        checkpoint_every_steps: Annotated[int, Gt(0)] | None = None,
        checkpoint_every_minutes: Annotated[float, Gt(0)] | None = 10.0,
        limit_train_batches: Annotated[int, Gt(0)] | None = None,
        limit_val_batches: Annotated[int, Gt(0)] | None = None,
        limit_test_batches: Annotated[int, Gt(0)] | None = None,
        fast_dev_run: bool = False,
    ) -> None:
        self.run, self.scheduler, self.regularizers, self.callbacks = run, scheduler, regularizers, callbacks
        self.seed = seed
        assert "auto" not in (precision, compile), "the builder has resolved them"
        self.accumulate, self.halves = (1, True) if accumulate == "auto" else (accumulate, False)
        self.has_batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in run.model.modules())
        self.clip_norm, self.precision = clip_norm, precision
        self.min_grad_norm = min_grad_norm
        self.grad_norm: float | None = None  # over the whole training set after the last epoch, where it is asked for
        self.log_every_steps, self.validate_every_epochs = log_every_steps, validate_every_epochs
        self.checkpoint_every_epochs, self.checkpoint_every_steps = checkpoint_every_epochs, checkpoint_every_steps
        self.checkpoint_every_s = math.inf if checkpoint_every_minutes is None else 60 * checkpoint_every_minutes
        self.limits = {"train": limit_train_batches, "val": limit_val_batches, "test": limit_test_batches}
        if fast_dev_run:
            self.limits = dict.fromkeys(self.limits, FAST_DEV_BATCHES)
        self.best = EarlyStopping(direction(metric_of(monitor)), patience, min_delta)
        self.channels_last = memory_format == "channels_last"
        if self.channels_last:
            run.model.to(memory_format=torch.channels_last)
        self.average = build_average(run.model, ema_decay, swa_start, run.total_steps)
        self.scaler = grad_scaler(precision, run.device)
        self.penalties = [(n, r) for n, r in regularizers.items() if type(r).penalty is not Regularizer.penalty]
        self.projections = [r for r in regularizers.values() if type(r).project is not Regularizer.project]
        self.proximals = [r for r in regularizers.values() if type(r).proximal is not Regularizer.proximal]
        self.adds_up = run.loss.reduction == "sum"  # the losses of a minibatch, in place of their mean
        self.dropout_keys = DropoutKeys(run.model, seed)
        others = (run.task, run.loss, run.optimizer, *regularizers.values())
        self.reseed = has_foreign_randomness(run.model) or any(map(is_foreign, others))
        self.reads_losses = run.device.type == "cpu"  # elsewhere reading a loss waits for the device: see _check_finite
        self.replaying = False
        self.forward = (self._compiled() if compile else None) or run.model
        self.trainable = [p for p in run.model.parameters() if p.requires_grad]
        self.gradients = None if self.scaler else GradientCheck(self.trainable)  # fp16: the scaler skips such updates
        self.built_settings = settings_of(
            run.optimizer
        )  # what the schedule's factor and overriding on resuming refer to
        self.unsaved_best: dict[str, Any] | None = None  # what best.pt is to be once last.pt is written
        self.saved: tuple[int, int] | None = None  # epochs and steps that were done when last.pt was last written
        self.storages = frozenset[int]()  # where the parameters lie; known in an epoch
        self.batch = 0  # batches of the current epoch that are done
        self.epoch_seconds: list[float] = []  # of the training part; the last one grows while its epoch lasts
        self.earlier_seconds = 0.0  # in `fit` before the checkpoint that this process resumed from
        self.fit_s = 0.0  # in `fit`, those included
        self.earlier_wait = 0.0  # for data, before this process
        self.started_at = self.saved_at = time.perf_counter()
        self.sums = EpochSums()
        self.objective = 0.0  # of the last step, where it is read
        self.train_metrics = MetricCollection(run.loss, run.task.target())
        self.clipped_norm: Tensor | None = None  # the gradient's norm before clipping
        self.signals = Signals()
        self.background = Background()
        self._check_monitors()
        if min_grad_norm is not None and (self.proximals or self.projections):
            raise ConfigError(
                "trainer.min_grad_norm: cannot be combined with a regularization that changes weights after the update: where "
                "it holds them, the gradient is not 0"
            )
        self.graph = graphed(self) if cuda_graph else None
        self.whole_set = whole_set(self)
        if self.whole_set:
            self._update = self.whole_set.update  # type: ignore[method-assign]

    # ---- fit ------------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Trains until the last epoch, early stopping, divergence (raises Diverged) or a signal (raises Interrupted)."""
        self.started_at = self.saved_at = time.perf_counter()
        try:
            with self.signals:
                try:
                    self._fit()
                finally:
                    self._end_saving()
        finally:
            self.fit_s = self.earlier_seconds + time.perf_counter() - self.started_at

    def _fit(self) -> None:
        run = self.run
        self._call("on_fit_start", run)
        self._mend_best()
        while self.unfinished:
            self._call("on_epoch_start", run)
            self._train_epoch()
            self._end_epoch()
            if self.signals.arrived:
                self.save_unsaved()
                raise self._interrupted()
        self._call("on_fit_end", run)

    @property
    def unfinished(self) -> bool:
        """Whether there is an epoch left to train."""
        run = self.run
        # `self.batch`: an epoch stopped after its last update, before or in its validation
        left = run.epoch < run.epochs and (run.step < run.total_steps or self.batch > 0)
        return left and not self.best.should_stop and not self._is_flat(self.grad_norm)

    def _is_flat(self, norm: float | None) -> bool:
        """Whether a gradient over the whole training set is as small as `trainer.min_grad_norm` asks."""
        return norm is not None and self.min_grad_norm is not None and norm < self.min_grad_norm

    def _train_epoch(self) -> None:
        run, limit, seconds = self.run, self.run.steps_per_epoch, self.epoch_seconds
        if self.batch == 0:
            self.sums = EpochSums()
            self.train_metrics = MetricCollection(run.loss, run.task.target())
            seconds.append(0.0)
        run.model.train()
        self.storages = storages(self.trainable)
        on_step = self._overriding("on_step")
        start = window_start = time.perf_counter()
        earlier, window = seconds[-1], run.samples
        left = max(0, min(limit - self.batch, run.total_steps - run.step))
        batches = run.data.epoch(run.epoch, self.batch) if self.whole_set is None else self.whole_set.batches()
        for batch in islice(batches, left):
            result, objective = self._step(batch)
            size = len(batch.indices)
            self.batch += 1
            run.step += 1
            run.samples += size
            if self.reads_losses:  # the objective was read by the finite check
                loss = self.objective if objective is result.loss else result.loss.item()
                self.sums.add(loss, self.objective, size)
            else:
                self.sums.add(result.loss, objective, size)
            self.train_metrics.update(result.outputs, result.targets)
            now = time.perf_counter()
            seconds[-1] = earlier + now - start
            for hook in on_step:
                hook(run, result)
            if run.step % self.log_every_steps == 0 or run.step == 1:
                self._log(result, objective, (run.samples - window) / max(now - window_start, 1e-9))
                window, window_start = run.samples, now
            if self.signals.arrived:
                self.save_last()
                raise self._interrupted()
            if not self.reads_losses and run.step % UNREAD_STEPS == 0:
                self._check_finite()
            if self._checkpoint_due(now):
                self.save_last()
        self._check_finite()  # waits for the device, so that the time is that of the work
        seconds[-1] = earlier + time.perf_counter() - start

    def _step(self, batch: Batch) -> tuple[StepResult, Tensor]:
        """One update. Returns the result of the forward pass and the objective (loss + penalties), detached."""
        self._set_rates()
        result, objective = self.graph.update(batch) if self.graph else self._update(batch)
        if self.average:
            self.average.update(self.run.model)
        return result, objective

    def _set_rates(self) -> None:
        """Gives the optimizer the learning rates of this step."""
        factor = self.scheduler.factor(self.run.step)
        for group, built in zip(self.run.optimizer.param_groups, self.built_settings, strict=True):
            group["lr"] = built["lr"] * factor

    def _update(self, batch: Batch) -> tuple[StepResult, Tensor]:
        """The part of an update that does the same at each step, but for learning rates and random streams: see `_graph`."""
        for parameter in self.trainable:
            parameter.grad = None
        result, objective = self._gradients_of(batch)
        self._apply(batch, objective)
        return result, objective

    def _apply(self, batch: Batch, objective: Tensor) -> None:
        """The update by the gradients as they are. Raises Diverged before it if they are not finite and are looked at."""
        run, optimizer = self.run, self.run.optimizer
        if self.gradients:
            self.gradients.add()
        if (self.reads_losses or run.step == 0) and not self._all_finite(objective):
            raise diverged_in_step(self, batch)
        if self.clip_norm is not None:
            if self.scaler:
                self.scaler.unscale_(optimizer)
            self.clipped_norm = nn.utils.clip_grad_norm_(self.trainable, self.clip_norm)
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
            if self.reads_losses and self._scale_is_lost():
                raise diverged_in_step(self, batch)
        else:
            optimizer.step()
        if self.proximals:
            rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
            for regularizer in self.proximals:
                regularizer.proximal(run.model, rates)
        for regularizer in self.projections:
            with torch.no_grad():
                regularizer.project(run.model)

    def _gradients_of(self, batch: Batch) -> tuple[StepResult, Tensor]:
        """Forward and backward of a minibatch, as one or in micro-batches."""
        if self.halves:
            return self._fitting(batch)
        return self._forward_backward(batch, 0, 1.0) if self.accumulate == 1 else self._accumulated(batch)

    def _fitting(self, batch: Batch) -> tuple[StepResult, Tensor]:
        """Likewise, in as many micro-batches as the memory of the device needs. Raises ConfigError if none is small enough."""
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.run.model.buffers()]
        most = self._most_parts(len(batch.indices))
        while True:
            try:
                return self._accumulated(batch) if self.accumulate > 1 else self._forward_backward(batch, 0, 1.0)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self.accumulate >= most:
                    size, reason = math.ceil(len(batch.indices) / most), " ".join(str(error).split())[:200]
                    raise ConfigError(
                        f"trainer.accumulate: auto cannot help: micro-batches of {size} do not fit into the memory of "
                        f"{self.run.device}; try trainer.precision=bf16 or a smaller model ({reason})"
                    ) from error
            self.accumulate *= 2
            log.warning(
                "step %d: out of memory; from here on each minibatch is split into %d micro-batches (trainer.accumulate=%d)",
                *(self.run.step + 1, self.accumulate, self.accumulate),
            )
            with torch.no_grad():
                for parameter in self.trainable:
                    parameter.grad = None
                for buffer, before in buffers:  # batch norm may have seen a part of the minibatch
                    buffer.copy_(before)
            if self.run.device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward_backward(self, batch: Batch, micro: int, share: float) -> tuple[StepResult, Tensor]:
        """Forward and backward of a (micro-)batch that makes up `share` of the minibatch."""
        run = self.run
        self.dropout_keys.fill(run.step, micro)
        if self.reseed:
            self._reseed(f"modules/{micro}", run.step)
        if self.channels_last:
            batch = batch._replace(inputs=self._in_memory_format(batch.inputs))
        result = self._forward(batch, streams.Stream(self.seed, "task", run.step, micro))
        if run.step == 0:
            self._check_outputs(result, batch)
        objective = result.loss
        samples = round(len(batch.indices) / share) if self.adds_up else 1  # of the minibatch, whose losses add up
        for name, regularizer in self.penalties:
            penalty = regularizer.penalty(run.model, result.outputs)
            if penalty is not None:
                if samples != 1:  # objectives are kept per sample
                    penalty = penalty / samples
                result.parts[f"penalty/{name}"] = penalty.detach()
                objective = objective + penalty
        factor = share * samples
        scaled = objective * factor if factor != 1.0 else objective
        (self.scaler.scale(scaled) if self.scaler else scaled).backward()
        loss = result.loss.detach()
        kept = StepResult(loss, self._kept(result.outputs.detach()), result.targets, result.parts)
        return kept, loss if objective is result.loss else objective.detach()

    def _kept(self, outputs: Tensor) -> Tensor:
        """Outputs to be read after the update: a copy of those that lie in a parameter's own memory, which it changes."""
        return outputs.clone() if outputs.untyped_storage().data_ptr() in self.storages else outputs

    def _in_memory_format(self, inputs: Tensor) -> Tensor:
        images = self.channels_last and inputs.dim() == 4
        return inputs.contiguous(memory_format=torch.channels_last) if images else inputs

    def _compiled(self) -> Callable[[Tensor], Tensor] | None:
        run = self.run
        size = math.ceil(min(run.data.batch_size, run.spec.num_train) / self.accumulate)
        batch = torch.zeros(size, *run.spec.input_shape, device=run.device)
        return compiled(run.model, self._in_memory_format(batch), self.precision)

    def _forward(self, batch: Batch, stream: streams.Stream) -> StepResult:
        if self.precision == "fp32":
            return self.run.task(self.forward, batch, stream)
        with autocast(self.precision, self.run.device):
            return self.run.task(self.forward, batch, stream)

    def _accumulated(self, batch: Batch) -> tuple[StepResult, Tensor]:
        size = len(batch.indices)
        done = [
            (self._forward_backward(part, i, len(part.indices) / size), len(part.indices))
            for i, part in enumerate(self._micro_batches(batch))
        ]
        loss = torch.stack([r.loss * n for (r, _), n in done]).sum() / size
        objective = torch.stack([o * n for (_, o), n in done]).sum() / size
        outputs = torch.cat([r.outputs for (r, _), _ in done])
        targets = torch.cat([r.targets for (r, _), _ in done])
        named = {
            name: torch.stack([torch.as_tensor(r.parts[name]) * n for (r, _), n in done]).sum() / size
            for name in done[0][0][0].parts
        }
        return StepResult(loss, outputs, targets, named), objective

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        pieces = [t.tensor_split(min(self.accumulate, self._most_parts(len(batch.indices)))) for t in batch]
        return [Batch(*p) for p in zip(*pieces, strict=True) if len(p[0])]

    def _most_parts(self, size: int) -> int:
        """Into how many micro-batches `size` samples can be split; where the number is not the user's, batch norm keeps two
        samples in each, since most refuse one."""
        return max(1, size // 2) if self.halves and self.has_batch_norm else size

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, split: SplitName) -> dict[str, float]:
        """Mean loss and metrics of a split, with the averaged weights where an average is kept."""
        self._reseed(f"modules/{split}", 0)
        with self._averaged():
            observers = self._overriding("on_evaluation_batch")
            return evaluate(self.run, split, self._batches(split), self.precision, self.seed, observers)

    def _batches(self, split: SplitName) -> Iterator[Batch]:
        """The batches of an evaluation; a signal ends it."""
        for batch in islice(self.run.data.split(split), self.limits[split]):
            if self.signals.arrived:
                raise self._interrupted()
            yield batch

    def _end_epoch(self) -> None:
        """All that follows the last update of an epoch."""
        run = self.run
        self._finish_epoch()
        due = not self.unfinished or run.epoch % self._epochs_between() == 0
        best = run.best.get("step") == run.step
        if best:
            self.unsaved_best = None
        if due:
            self.save_last()
        if best:
            self._save_best(at_once=due)  # after last.pt: a run resumed from there makes it again
        try:
            self._call("on_epoch_end", run)
        except Exception:  # a run that is pruned, say, can be resumed
            self.save_unsaved()
            raise

    def _finish_epoch(self) -> None:
        """Validates, then counts the epoch. A signal during the validation leaves everything as it was after the epoch's last
        update, so that a resumed run validates anew."""
        run, train = self.run, {**self.sums.means(bool(self.penalties)), **self.train_metrics.compute()}
        last = run.epoch + 1 == run.epochs or run.step >= run.total_steps
        validation = norm = None
        try:
            if self.min_grad_norm is not None:
                norm = train["full_gradient_norm"] = full_gradient_norm(self)
            if (run.epoch + 1) % self.validate_every_epochs == 0 or last or self._is_flat(norm):
                self._refresh_batch_norm()
                validation = self.evaluate("val")
        except Interrupted:
            self.save_last()
            raise
        run.epoch += 1
        self.batch = 0
        self.grad_norm = norm
        self._report("train", _plain(train))
        if validation is not None:
            self._report("val", validation)
            self._judge(validation)

    def _judge(self, validation: dict[str, float]) -> None:
        """Tells the schedule and early stopping of a validation, and keeps the weights if they are the best so far."""
        run = self.run
        if not math.isfinite(validation["loss"]):
            raise diverged_in_validation(self)
        flat = {f"{split}/{name}": value for split in run.history for name, value in run.history[split].items()}
        self.scheduler.observe(flat)
        if run.monitor not in flat:  # such as the AUROC where validation has one class only
            raise not_reported(run.monitor, list(flat))
        if self.best.observe(flat[run.monitor]):
            run.best = {"epoch": run.epoch, "step": run.step, "monitor": run.monitor, "value": flat[run.monitor]}

    def test(self) -> dict[str, float]:
        """Opens the sealed test set, once, with the weights of the best checkpoint."""
        state = checkpoint.load(self.run.folder / rundir.BEST, "run", self.run.device)
        checkpoint.load_weights(self.run.model, state)
        if state["best"] != self.run.best:  # best.pt was written after the checkpoint that the run fell back to
            log.warning("%s is of epoch %d, not of the best one resumed", rundir.BEST, state["best"]["epoch"])
            self.run.best = dict(state["best"])
        self.average = None  # best.pt holds the averaged weights already
        with self.signals:
            return self.evaluate("test")

    def announce_test(self, metrics: dict[str, float]) -> None:
        """Records the test metrics and tells the callbacks."""
        self._report("test", metrics)

    # ---- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: weights, optimizer, counters and a few integers."""
        run = self.run
        return {
            "model": run.model.state_dict(),
            "optimizer": state_of(run.optimizer, self.built_settings),
            "scheduler": self.scheduler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "best": self.best.state_dict(),
            "grad_norm": self.grad_norm,
            "data": run.data.state_dict(),
            "callbacks": {name: callback.state_dict() for name, callback in self._named_callbacks().items()},
            "counters": {"epoch": run.epoch, "step": run.step, "samples": run.samples, "batch": self.batch},
            "accumulate": self.accumulate,
            "evaluation_batch": run.evaluation_batch,
            "sums": self.sums.state_dict(),
            "train_metrics": self.train_metrics.state_dict() if self.batch else {},
            "run": {"best": dict(run.best), "history": {k: dict(v) for k, v in run.history.items()}},
            "epoch_seconds": list(self.epoch_seconds),
            "fit_seconds": self.earlier_seconds + time.perf_counter() - self.started_at,
            "wait_seconds": self.wait_s,
            "environment": environment(run.device),
        }

    @property
    def wait_s(self) -> float:
        """Seconds that the steps of this run have waited for data; 0 where the data are in memory."""
        return self.earlier_wait + self.run.wait_s

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave; the run goes on at the very batch where it stood. Raises ConfigError for a state
        that lacks something or is of another run."""
        try:
            self._take(state)
        except ConfigError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            path = self.run.folder / rundir.LAST
            raise ConfigError(f"resume: checkpoint {path} is damaged or of another run ({error!r})") from error

    def _take(self, state: Mapping[str, Any]) -> None:
        run = self.run
        for name, value in environment(run.device).items():
            if (saved := state["environment"][name]) != value:
                log.warning("resuming with %s %s after %s: the last bits of the results may differ", name, value, saved)
        checkpoint.load_weights(run.model, dict(state), "resume")
        load_state(run.optimizer, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average and state["average"]:
            self.average.load_state_dict(state["average"])
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.best.load_state_dict(state["best"])
        self.grad_norm = state.get("grad_norm")
        if state["data"] != run.data.state_dict():
            log.warning("the data are not those of the checkpoint: the results will not be those of an unbroken run")
        for name, callback in self._named_callbacks().items():
            if saved := state["callbacks"].get(name):
                callback.load_state_dict(saved)
        counters = state["counters"]
        run.epoch, run.step, run.samples, self.batch = (counters[k] for k in ("epoch", "step", "samples", "batch"))
        if self.halves:
            self.accumulate = state.get("accumulate", 1)
        run.evaluation_batch = state.get("evaluation_batch")
        self.sums = EpochSums(**state["sums"])
        if state["train_metrics"]:
            self.train_metrics.load_state_dict(state["train_metrics"])
        run.best, run.history = dict(state["run"]["best"]), {k: dict(v) for k, v in state["run"]["history"].items()}
        self.epoch_seconds, self.earlier_seconds = list(state["epoch_seconds"]), state["fit_seconds"]
        self.earlier_wait = state.get("wait_seconds", 0.0) - run.wait_s

    def save_last(self) -> None:
        self._check_finite()
        if self.replaying:  # the callbacks' files are ahead of a replay, and last.pt must fit them
            return
        self._save_unsaved_best()
        self._save(rundir.LAST, self.state_dict(), keep_previous=True)
        self.saved, self.saved_at = (self.run.epoch, self.run.step), time.perf_counter()

    def save_unsaved(self) -> None:
        """Writes last.pt unless it holds this very state."""
        if self.saved != (self.run.epoch, self.run.step):
            self.save_last()

    def _epochs_between(self) -> int:
        """`trainer.checkpoint_every_epochs`, a function of the configuration alone."""
        every = self.checkpoint_every_epochs
        return math.ceil(UPDATES / self.run.steps_per_epoch) if every == "auto" else every

    def _save(self, name: Path, state: dict[str, Any], **options: Any) -> None:
        """Saves a copy of the state while training goes on; a large state itself, which is waited for."""
        path = self.run.folder / name
        if size_of(state) <= COPIED:
            copy = snapshot(state)
            self.background.submit(lambda: checkpoint.save(path, copy, **options))
        else:
            self.background.wait()
            checkpoint.save(path, state, **options)

    def _end_saving(self) -> None:
        """Waits for the last checkpoint. Raises what went wrong with it, unless training ends with an error of its own; a
        second signal waits for nothing."""
        ending = sys.exc_info()[1]
        if isinstance(ending, InterruptedAtOnce):
            return
        try:
            if ending is None or isinstance(ending, Exception):
                self._save_unsaved_best()
            self.background.wait()
        except Exception as error:
            if ending is None or isinstance(ending, Interrupted):  # which says that a checkpoint was written
                raise
            log.warning("%s", error)

    def _checkpoint_due(self, now: float) -> bool:
        step, every = self.run.step, self.checkpoint_every_steps
        first = step == 1 and not self.reads_losses  # see _replay
        return bool(every and step % every == 0) or now - self.saved_at >= self.checkpoint_every_s or first

    def _mend_best(self) -> None:
        """Writes best.pt if the run was killed when last.pt of the best epoch had been written, but best.pt had not."""
        run, path = self.run, self.run.folder / rundir.BEST
        if self.batch or not run.best or run.best["step"] != run.step:
            return
        with suppress(checkpoint.Damaged):
            if checkpoint.load(path)["best"] == run.best:
                return
        self._save_best()

    def _save_best(self, at_once: bool = True) -> None:
        """Writes best.pt, or keeps a copy of it until last.pt is written: a best.pt of epochs that a killed run has to train
        again, perhaps otherwise, would not be its own."""
        with self._averaged():
            state = {
                "model": self.run.model.state_dict(),
                "data": self.run.data.state_dict(),
                "best": dict(self.run.best),
            }
            if at_once or size_of(state) > COPIED:
                self._save(rundir.BEST, state)
            else:
                self.unsaved_best = snapshot(state)

    def _save_unsaved_best(self) -> None:
        """Writes the best.pt that was kept, if there is one."""
        if self.unsaved_best is not None:
            best, self.unsaved_best = self.unsaved_best, None
            self._save(rundir.BEST, best)

    # ---- helpers --------------------------------------------------------------------------------------------------

    def _log(self, result: StepResult, objective: Tensor, rate: float) -> None:
        self._check_finite()
        norms = torch._foreach_norm([p.grad for p in self.trainable if p.grad is not None])
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else 0.0
        scalars = {
            "train/loss": float(result.loss),
            "train/objective": float(objective),
            "lr": float(self.run.optimizer.param_groups[0]["lr"]),
            "gradient_norm": float(norm if self.clipped_norm is None else self.clipped_norm),
            "samples_per_s": rate,
        }
        scalars["train/penalty"] = scalars["train/objective"] - scalars["train/loss"] if self.penalties else 0.0
        scalars.update({f"train/{name}": float(value) for name, value in result.parts.items()})
        self._call("on_log", self.run, scalars)

    def _report(self, split: str, metrics: dict[str, float]) -> None:
        self.run.history[split] = metrics
        if not self.replaying:
            text = "  ".join(f"{name} {value:.5g}" for name, value in metrics.items())
            log.info("epoch %d step %d %s: %s", self.run.epoch, self.run.step, split, text)
        self._call("on_evaluation", self.run, split, metrics)

    def _call(self, hook: str, *args: Any) -> None:
        for method in self._overriding(hook):
            method(*args)

    def _overriding(self, hook: str) -> list[Callable[..., None]]:
        """This hook of the callbacks that have it; none during a replay."""
        if self.replaying:
            return []
        hooks, idle = [getattr(callback, hook) for callback in self.callbacks], getattr(Callback, hook)
        return [method for method in hooks if getattr(method, "__func__", None) is not idle]

    def _named_callbacks(self) -> dict[str, Callback]:
        """By class, and of several of one class by number."""
        named: dict[str, Callback] = {}
        for callback in self.callbacks:
            name = type(callback).__name__
            named[name if name not in named else f"{name} {len(named)}"] = callback
        return named

    def _averaged(self) -> Any:
        """The averaged weights in place of the trained ones, where an average is kept and has begun."""
        return self.average.swap(self.run.model) if self.average else nullcontext()

    def _refresh_batch_norm(self) -> None:
        """Stochastic weight averages need batch-norm statistics of their own (Izmailov et al. 2018, section 3.2)."""
        if isinstance(self.average, ArithmeticAverage) and self.average.started:
            run = self.run
            with self.average.swap(run.model):
                refresh_batch_norm(run.model, (batch.inputs for batch in self._batches("train")))
                self.average.keep_buffers(run.model)

    def _check_outputs(self, result: StepResult, batch: Batch) -> None:
        wanted = (len(batch.indices), self.run.loss.num_outputs)
        if tuple(result.outputs.shape) != wanted:
            raise ConfigError(f"model: gives outputs of shape {tuple(result.outputs.shape)}; the loss needs {wanted}")

    def _check_monitors(self) -> None:
        """Raises ConfigError for a monitor that this loss and target do not report, before anything is trained."""
        names = ["loss", *self.train_metrics.names]
        if metric_of(self.run.monitor) not in names:
            raise not_reported(self.run.monitor, [f"val/{name}" for name in names])
        self.scheduler.check_metrics([f"val/{name}" for name in names])

    def _reseed(self, name: str, counter: int) -> None:
        """Seeds the global generators where a component has randomness that is not ours."""
        if self.reseed:
            seed = streams.seed_of(self.seed, name, counter)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a hundred times as long
            if self.run.device.type == "cuda":
                torch.cuda.default_generators[self.run.device.index].manual_seed(seed)

    def _all_finite(self, objective: Tensor) -> bool:
        """Whether the objective and the gradients of the step in hand are; waits for the device."""
        self.objective = objective.item()
        return math.isfinite(self.objective) and not (self.gradients and self.gradients.failed())

    def _check_finite(self) -> None:
        """Raises Diverged unless all losses of this epoch and all gradients so far and all weights are finite; so at the
        latest before a checkpoint is overwritten."""
        bad = non_finite_weights(self.run.model)
        failed = self.gradients.failed() if self.gradients else self._scale_is_lost()
        if math.isfinite(self.sums.objective()) and not bad and not failed:
            return
        step = self.run.step
        if not self.reads_losses:
            self._replay(step)
        what = f"the weights '{bad[0]}' are" if bad else "the loss is"
        raise Diverged(f"{what} not finite after step {step}; {REMEDY}", {"step": step, "what": what})

    def _scale_is_lost(self) -> bool:
        """Whether fp16 has left out one update after another until no loss scale is small enough: it is not the scale."""
        return self.scaler is not None and self.scaler.get_scale() < SMALLEST_SCALE

    def _replay(self, step: int) -> None:
        """Goes from the last checkpoint to the step that went wrong, now reading every loss, which raises Diverged with
        the step, the layer and the samples. `step`: updates after which it was noticed."""
        with suppress(ConfigError):  # the checkpoint before it will do
            self.background.wait()
        state = checkpoint.load_last(self.run.folder / rundir.LAST, "resume", self.run.device)
        if state is not None:
            self.reads_losses = self.replaying = True
            if self.gradients:
                self.gradients.clear()
            earlier = self.earlier_seconds
            self.load_state_dict(state)
            self.earlier_seconds = earlier  # this process's own time is not counted twice
            self._train_epoch()
            while self.run.step < step:  # the checkpoint is of an earlier epoch
                self._finish_epoch()
                self._train_epoch()

    def _interrupted(self) -> Interrupted:
        """To be raised once a checkpoint is on its way; `fit` waits for it."""
        return Interrupted(self.signals.exit_code, f"interrupted after step {self.run.step}")


def environment(device: torch.device) -> dict[str, Any]:
    """What besides configuration and seed decides the last bits of the results."""
    return {"threads": torch.get_num_threads(), "PyTorch": str(torch.__version__), "device": device.type}


def storages(tensors: Iterable[Tensor]) -> frozenset[int]:
    """The addresses of the memory that tensors, or those that they are views of, lie in."""
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)


def _plain(metrics: Mapping[str, float]) -> dict[str, float]:
    """Plain floats; a non-finite training value is kept (divergence is reported elsewhere)."""
    return {name: float(value) for name, value in metrics.items()}
