"""Shows what a model consists of, without training it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt

from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.build import check
from dlrun.data._module import build_data
from dlrun.losses._build import build_loss
from dlrun.models import MODELS
from dlrun.models._shapes import describe
from dlrun.models._summary import Summary, summarize
from dlrun.registry import ConfigError
from dlrun.tasks import TASKS
from dlrun.transfer import TRANSFER

Size = Annotated[int, Gt(0)]


@ACTIONS.register("summary")
class Summarize(Action):
    """Prints the layers of the model in the order they run: output shape, parameters, and multiply-accumulate operations
    (MACs) for one sample; then the totals. Nothing is trained or written, and the weights take no memory.

    Args:
        input_shape: of one sample, such as [3,224,224]; null: as the data have it.
        outputs: number of outputs; null: as many as the loss needs for the data.
    """

    def __init__(self, *, input_shape: tuple[Size, ...] | None = None, outputs: Size | None = None) -> None:
        self.input_shape, self.outputs = input_shape, outputs

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        check(config)
        shape, outputs = self._sizes(config)
        name = config["model"]["name"]
        with torch.device("meta"):
            model = MODELS.build(config["model"], input_shape=shape, num_outputs=outputs)
            try:
                model.eval()(torch.zeros(1, *shape))  # gives lazy layers their weights
                TRANSFER.build(config["transfer"]).freeze(model)
                found = summarize(model, shape)
            except (
                RuntimeError,
                TypeError,
                ValueError,
            ) as error:  # a user's model may need numbers, which are not there
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"model.name: {name} cannot be run without memory on {describe(shape)} ({reason})"
                ) from error
        print(f"{name} for {describe(shape)}, {outputs} outputs\n")
        print("\n".join(lines(found)))
        if seen := getattr(model, "receptive_field", None):
            print(f"receptive field of the last maps: {seen} input values along each axis")
        return None

    def _sizes(self, config: dict[str, Any]) -> tuple[tuple[int, ...], int]:
        """Shape of the input and number of outputs. Reads the data unless both are given."""
        if self.input_shape is not None and self.outputs is not None:
            return self.input_shape, self.outputs
        if self.input_shape is not None:
            raise ConfigError("action.outputs: no value given; it is needed where action.input_shape is given")
        data = build_data(config["data"], seed=config["seed"], device=torch.device("cpu"))
        try:
            task = TASKS.build(config["task"], data=data.spec)
            return data.spec.input_shape, self.outputs or build_loss(config["loss"], task.target()).num_outputs
        finally:
            data.close()


def lines(summary: Summary) -> list[str]:
    """The table, one line for each layer, and the totals."""
    rows = [("layer", "type", "output", "parameters", "MACs")]
    for layer in summary.layers:
        shape = "x".join(map(str, layer.output_shape)) or "-"
        rows.append((layer.name or "(model)", layer.type, shape, f"{layer.parameters:,}", f"{layer.macs:,}"))
    rows.append(("in all", "", "", f"{summary.parameters:,}", f"{summary.macs:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    table = [
        "  ".join(
            f"{cell:<{width}}" if i < 3 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    frozen = summary.parameters - summary.trainable
    return table + ([f"{frozen:,} of the parameters are frozen"] if frozen else [])
