"""Curves, histograms and pictures for TensorBoard."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Le

from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback, Run
from dlrun.callbacks._events import EventWriter
from dlrun.callbacks._gallery import at_the_start, of_training
from dlrun.callbacks._layers import LayerViews, gradients, weights_and_activations
from dlrun.callbacks._observe import observing, validation
from dlrun.callbacks._summaries import epoch_tag, final_tag, hyperparameters, model_graph, shared_charts
from dlrun.registry import ConfigError
from dlrun.spec import Batch, StepResult

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)
PROBED = 64  # validation samples whose activations are observed


@CALLBACKS.register("tensorboard")
class TensorBoard(Callback):
    """Event files in `<run>/tensorboard`, one logical run, however often it was interrupted and resumed.

    | tags                                           | when                        | step axis |
    | `train/loss`, `lr`, `gradient_norm`, ...       | every `log_every_steps`     | update    |
    | `epoch/<split>/<metric>`, `epoch/gap`          | every evaluation            | update    |
    | `weights/`, `gradients/`, `activations/<layer>`| `histograms_every_epochs`   | update    |
    | `gradient_norm/<layer>`, `saturation/<layer>`  | `histograms_every_epochs`   | update    |
    | `images/...`                                   | `images_every_epochs`       | update    |
    | `final/<split>/<metric>`, HParams              | the end of the run          | update    |

    `epoch/gap` is the validation minus the training loss; gradients are those of an epoch's last update; activations
    are of the first validation samples in evaluation mode; `saturation` is the share of exact zeros (ReLU) or of units at
    the flat ends (tanh, sigmoid). Custom Scalars show training and validation in one chart for every metric. Histograms
    and images also come at the end of training. Where a mean of the weights is kept, they show the trained weights.

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
        self._writer: EventWriter | None = None
        self._saved: dict[str, Any] = {}
        self._charts_written = False
        self._pictured_at = 0
        self._train: dict[str, float] = {}
        self._probe: Batch | None = None

    @property
    def writer(self) -> EventWriter:
        assert self._writer is not None, "on_fit_start comes first"
        return self._writer

    def on_fit_start(self, run: Run) -> None:
        self._writer = EventWriter(run.folder, self._saved)
        if run.step > 0:  # the resumed file has what follows
            return
        if self.images_every_epochs:
            self._write_pictures(at_the_start(run, self.images), run.step)
        if self.graph:
            self._write_graph(run)
        self.writer.flush()

    def on_step(self, run: Run, result: StepResult) -> None:
        last_of_epoch = run.step % run.steps_per_epoch == 0 or run.step == run.total_steps
        if last_of_epoch and self._due(run, self.histograms_every_epochs):
            self._write_layers(gradients(run.model), run.step)

    def on_log(self, run: Run, scalars: Mapping[str, float]) -> None:
        self.writer.scalars(scalars, run.step)

    def on_evaluation(self, run: Run, split: str, metrics: Mapping[str, float]) -> None:
        if self._writer is None or split == "test":  # the test set has its line at the end of the run
            return
        values = {epoch_tag(split, name): value for name, value in metrics.items()}
        if split == "train":  # comes after every epoch and before its checkpoint
            self._train = dict(metrics)
            if self._due(run, self.histograms_every_epochs):
                self._write_layers(weights_and_activations(run, self._samples(run)), run.step)
            if self._due(run, self.images_every_epochs):
                self._write_pictures(of_training(run, self._samples(run), self.images), run.step)
        elif "loss" in metrics and "loss" in self._train:
            values["epoch/gap"] = metrics["loss"] - self._train["loss"]
        if split == "val" and not self._charts_written:
            self.writer.values(shared_charts(dict.fromkeys([*metrics, *self._train])), run.step)
            self._charts_written = True
        self.writer.scalars(values, run.step)
        self.writer.flush()

    def on_fit_end(self, run: Run) -> None:
        if self.images_every_epochs and self._pictured_at != run.step:
            self._write_pictures(of_training(run, self._samples(run), self.images), run.step)

    def on_run_end(self, run: Run, results: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        final = {
            final_tag(split, name): value
            for split, metrics in results.get("metrics", {}).items()
            for name, value in metrics.items()
            if value is not None
        }
        writer, self._writer = self.writer, None
        try:
            writer.scalars(final, run.step)
            writer.values(hyperparameters(run.config, final, results.get("status") == "finished"), run.step)
            writer.close()
        except ConfigError as error:
            if results.get("status") == "finished":
                raise
            log.warning("%s", error)  # what ended the run is what is to be told

    def state_dict(self) -> dict[str, Any]:
        if self._writer is None:
            return {}
        return {**self.writer.state(), "charts_written": self._charts_written, "pictured_at": self._pictured_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = dict(state)
        self._charts_written = state.get("charts_written", False)
        self._pictured_at = state.get("pictured_at", 0)

    def _due(self, run: Run, every: int) -> bool:
        epoch = math.ceil(run.step / run.steps_per_epoch)
        return every > 0 and (epoch % every == 0 or run.step >= run.total_steps)

    def _write_layers(self, views: LayerViews, step: int) -> None:
        self.writer.histograms(views.histograms, step)
        self.writer.scalars(views.scalars, step)

    def _write_pictures(self, pictures: Mapping[str, Image.Image], step: int) -> None:
        for tag, picture in pictures.items():
            self.writer.image(tag, picture, step)
        self._pictured_at = step

    def _write_graph(self, run: Run) -> None:
        try:
            self.writer.graph(model_graph(run.model, self._samples(run).inputs[:1], run.device))
        except Exception as error:  # tracing fails on some models in many ways, and nothing depends on it
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            log.warning("no graph in TensorBoard: this model cannot be traced (%s)", reason)

    def _samples(self, run: Run) -> Batch:
        """The same first validation samples each time."""
        if self._probe is None:
            with observing(run):  # reading may draw random numbers (worker processes)
                self._probe = Batch(*(tensor[:PROBED] for tensor in next(validation(run))))
        return self._probe
