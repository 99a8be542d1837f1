"""Which pictures TensorBoard shows of a run, by tag."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlrun.callbacks._base import Run
from dlrun.callbacks._confusion import confusion_picture
from dlrun.callbacks._observe import DECIDED_KINDS, Mistakes, find_mistakes, observing, unwrapped
from dlrun.callbacks._pictures import filters, for_display, grid
from dlrun.spec import Batch
from dlrun.streams import Stream

if TYPE_CHECKING:
    from PIL import Image

Pictures = dict[str, "Image.Image"]


def at_the_start(run: Run, untrained: Tensor | None, count: int) -> Pictures:
    """A training batch as the network sees it (augmented; normalisation undone), and the untrained filters."""
    pictures = first_layer(untrained)
    if run.spec.is_image:
        with observing(run):  # reading may draw random numbers (worker processes)
            inputs = next(islice(run.data.epoch(0, timed=False), 1)).inputs[:count]
        pictures["images/training_batch"] = grid(for_display(inputs, run.spec.mean, run.spec.std))
    return pictures


def of_training(run: Run, samples: Batch, count: int, found: Mistakes | None = None) -> Pictures:
    """Filters, and what the model makes of the validation split: misclassified samples and the confusion matrix (those
    `found`; None: another pass finds them), or reconstructions of `samples`."""
    pictures = first_layer(filters(unwrapped(run.model), run.spec.input_shape))
    if run.loss.target.kind in DECIDED_KINDS:
        pictures |= mistakes(run, find_mistakes(run, count) if found is None else found)
    elif run.loss.target.kind == "unit" and run.loss.target.size == math.prod(run.spec.input_shape):
        pictures["images/reconstructions"] = reconstructions(run, samples, min(count, 16))
    return pictures


def first_layer(tiles: Tensor | None) -> Pictures:
    return {} if tiles is None else {"images/first_layer": grid(tiles, tile_size=48)}


def mistakes(run: Run, found: Mistakes) -> Pictures:
    names = run.loss.target.class_names()
    pictures = {"images/confusion": confusion_picture(found.confusion.cpu(), names)}
    if found.inputs:
        tiles = for_display(torch.stack(found.inputs), run.spec.mean, run.spec.std)
        captions = [f"{names[true]}\nas {names[predicted]}" for true, predicted in found.captions]
        pictures["images/misclassified"] = grid(tiles, captions)
    return pictures


def reconstructions(run: Run, samples: Batch, count: int) -> Image.Image:
    """Inputs above, their reconstructions below."""
    batch = Batch(*(tensor[:count] for tensor in samples))
    with observing(run):
        predicted = run.loss.predict(run.task(run.model, batch, Stream(0, "task")).outputs)
    shown = for_display(batch.inputs, run.spec.mean, run.spec.std)
    decoded = predicted.float().cpu().clamp(0, 1).view(shown.shape)
    return grid(torch.cat([shown, decoded]), columns=len(shown))
