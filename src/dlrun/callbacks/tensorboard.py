"""Curves, histograms and pictures for TensorBoard."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le

from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback, Run
from dlrun.callbacks._late import LateEvents
from dlrun.callbacks._observe import DECIDED_KINDS, Mistakes, first_samples, unwrapped
from dlrun.callbacks._pictures import filters
from dlrun.registry import ConfigError
from dlrun.spec import Batch, StepResult

if TYPE_CHECKING:
    from torch import Tensor

    from dlrun.callbacks._events import EventWriter
    from dlrun.callbacks._layers import LayerViews

log = logging.getLogger(__name__)
PROBED = 64  # validation samples whose activations are observed


@CALLBACKS.register("tensorboard")
class TensorBoard(Callback):
    """Event files in `<run>/tensorboard`, one logical run, however often it was interrupted and resumed. Curves are written
    every 5 s and at every evaluation and checkpoint.

    | tags                                           | when                        | step axis |
    | `train/loss`, `lr`, `gradient_norm`, ...       | every `log_every_steps`     | update    |
    | `epoch/<split>/<metric>`, `epoch/gap`          | every evaluation            | update    |
    | `epoch/data_wait_s` (streamed data)            | every epoch                 | update    |
    | `weights/`, `gradients/`, `activations/<layer>`| `histograms_every_epochs`   | update    |
    | `gradient_norm/<layer>`, `saturation/<layer>`  | `histograms_every_epochs`   | update    |
    | `images/...`                                   | `images_every_epochs`       | update    |
    | `final/<split>/<metric>`, HParams              | the end of the run          | update    |

    `epoch/gap` is the validation minus the training loss; gradients are those of an epoch's last update; activations
    are of the first validation samples in evaluation mode; `saturation` is the share of exact zeros (ReLU) or of units at
    the flat ends (tanh, sigmoid). Custom Scalars show training and validation in one chart for every metric. Histograms
    and images also come at the end of training. Where a mean of the weights is kept, they show the trained weights, but
    misclassified samples and the confusion matrix are those of the validation of that epoch, if there was one.

    Args:
        histograms_every_epochs: epochs between histograms of weights, gradients and activations; 0: none.
        images_every_epochs: epochs between pictures (misclassified samples and confusion matrix, or reconstructions;
            filters of the first layer); 0: none, nor the batch as the network sees it at the start.
        images: samples in a picture.
        graph: write the graph of the model's operations.
    """

    def __init__(
        self,
        *,
        histograms_every_epochs: Annotated[int, Ge(0)] = 1,
        images_every_epochs: Annotated[int, Ge(0)] = 5,
        images: Annotated[int, Gt(0), Le(64)] = 16,
        graph: bool = True,
    ) -> None:
        self.histograms_every_epochs, self.images_every_epochs = histograms_every_epochs, images_every_epochs
        self.images, self.graph = images, graph
        self._events: LateEvents | None = None  # from the start of training to the end of the run
        self._saved: dict[str, Any] = {}
        self._charts_written = False
        self._pictured_at = 0
        self._gradients_at = 0  # the step of this epoch with histograms of gradients; 0: none
        self._waited = 0.0
        self._train: dict[str, float] = {}
        self._mistakes: Mistakes | None = None
        self._probe: Batch | None = None

    @property
    def writer(self) -> EventWriter:
        assert self._events is not None, "on_fit_start comes first"
        return self._events.writer()

    def on_fit_start(self, run: Run) -> None:
        begin = None
        if run.step == 0:  # a resumed file has its beginning
            tiles = filters(unwrapped(run.model), run.spec.input_shape) if self.images_every_epochs else None
            begin = partial(self._write_beginning, run, tiles)
        self._events = LateEvents(run.folder, self._saved, begin)

    def on_epoch_start(self, run: Run) -> None:
        last = min((run.epoch + 1) * run.steps_per_epoch, run.total_steps)
        self._gradients_at = last if _due(run, last, self.histograms_every_epochs) else 0
        self._waited, self._mistakes = run.wait_s, None

    def on_step(self, run: Run, result: StepResult) -> None:
        if run.step == self._gradients_at:
            from dlrun.callbacks._layers import gradients

            self._write_layers(gradients(run.model), run.step)

    def on_log(self, run: Run, scalars: Mapping[str, float]) -> None:
        if self._events is not None:
            self._events.log(scalars, run.step)

    def on_evaluation_batch(self, run: Run, split: str, batch: Batch, result: StepResult) -> None:
        if split == "val" and run.loss.target.kind in DECIDED_KINDS and _due(run, run.step, self.images_every_epochs):
            self._mistakes = self._mistakes or Mistakes.none_yet(run, self.images)
            self._mistakes.add(run, batch, result)

    def on_evaluation(self, run: Run, split: str, metrics: Mapping[str, float]) -> None:
        if self._events is None or split == "test":  # the test set has its line at the end of the run
            return
        from dlrun.callbacks._layers import weights_and_activations
        from dlrun.callbacks._summaries import epoch_tag, shared_charts

        values = {epoch_tag(split, name): value for name, value in metrics.items()}
        if split == "train":  # comes after every epoch and before its checkpoint
            self._train = dict(metrics)
            if run.wait_s > 0:
                values["epoch/data_wait_s"] = run.wait_s - self._waited
            if _due(run, run.step, self.histograms_every_epochs):
                self._write_layers(weights_and_activations(run, self._samples(run)), run.step)
            if _due(run, run.step, self.images_every_epochs):
                self._write_pictures(run)
        elif "loss" in metrics and "loss" in self._train:
            values["epoch/gap"] = metrics["loss"] - self._train["loss"]
        if split == "val" and not self._charts_written:
            self.writer.values(shared_charts(dict.fromkeys([*metrics, *self._train])), run.step)
            self._charts_written = True
        self.writer.scalars(values, run.step)
        self._events.flush()

    def on_fit_end(self, run: Run) -> None:
        if self.images_every_epochs and self._pictured_at != run.step:
            self._write_pictures(run)

    def on_run_end(self, run: Run, results: Mapping[str, Any]) -> None:
        if self._events is None or self._events.failed:
            return
        from dlrun.callbacks._summaries import final_tag, hyperparameters

        final = {
            final_tag(split, name): value
            for split, metrics in results.get("metrics", {}).items()
            for name, value in metrics.items()
            if value is not None
        }
        if results.get("status") not in ("finished", "diverged"):
            self._events.begin = None  # of a run that failed before anything was logged
        try:
            writer = self.writer
            writer.scalars(final, run.step)
            writer.values(hyperparameters(run.config, final, results.get("status") == "finished"), run.step)
            writer.close()
        except ConfigError as error:
            if results.get("status") == "finished":
                raise
            log.warning("%s", error)  # what ended the run is what is to be told
        finally:
            self._events = None

    def state_dict(self) -> dict[str, Any]:
        if self._events is None:
            return {}
        return {**self.writer.state(), "charts_written": self._charts_written, "pictured_at": self._pictured_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = dict(state)
        self._charts_written = state.get("charts_written", False)
        self._pictured_at = state.get("pictured_at", 0)

    def _write_beginning(self, run: Run, untrained: Tensor | None, writer: EventWriter) -> None:
        """What stands at step 0; `untrained`: the first layer's weights before the first step, as images."""
        from dlrun.callbacks._gallery import at_the_start
        from dlrun.callbacks._summaries import model_graph

        if self.images_every_epochs:
            writer.images(at_the_start(run, untrained, self.images), 0)
        if self.graph and (graph := model_graph(run.model, self._samples(run).inputs[:1], run.device)):
            writer.graph(graph)

    def _write_layers(self, views: LayerViews, step: int) -> None:
        self.writer.histograms(views.histograms, step)
        self.writer.scalars(views.scalars, step)

    def _write_pictures(self, run: Run) -> None:
        from dlrun.callbacks._gallery import of_training

        found, self._mistakes = self._mistakes, None
        self.writer.images(of_training(run, self._samples(run), self.images, found), run.step)
        self._pictured_at = run.step

    def _samples(self, run: Run) -> Batch:
        """The same first validation samples each time."""
        if self._probe is None:
            self._probe = first_samples(run, PROBED)
        return self._probe


def _due(run: Run, step: int, every: int) -> bool:
    """Whether what is shown every so many epochs is due at the epoch that ends with `step`."""
    return every > 0 and (math.ceil(step / run.steps_per_epoch) % every == 0 or step >= run.total_steps)
