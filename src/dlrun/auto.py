"""What `auto` stands for: the fastest setting that was measured for a kind of device, a family of models and a batch size.

The table, `auto_settings.json`, is made by `scripts/benchmark.py settings`. It is read before the first step and what it says
is written into the run's configuration, so a run that is resumed elsewhere or later goes on with the same settings: each
changes the last bits of the results.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, Literal

from torch import nn

Family = Literal["mlp", "cnn", "resnet"]
TABLE = Path(__file__).with_name("auto_settings.json")
DEFAULTS: dict[str, Any] = {
    "implementation": "fused",
    "memory_format": "contiguous",
    "precision": "fp32",
    "compile": False,
    "evaluation_batch_size": 1024,
}
"""Where nothing was measured."""
FEW_CONVOLUTIONS = 6


def family_of(model: nn.Module) -> Family:
    """`mlp` has no convolution, `cnn` a few, `resnet` more than `FEW_CONVOLUTIONS`."""
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d
    count = sum(isinstance(module, kinds) for module in model.modules())
    return "mlp" if count == 0 else "cnn" if count <= FEW_CONVOLUTIONS else "resnet"


def settings_for(device: str, model: nn.Module, batch_size: int) -> dict[str, Any]:
    """The settings for a kind of device (`cpu`, `cuda`), those measured at the nearest batch size (by ratio)."""
    family = family_of(model)
    rows = [row for row in _rows() if row["device"] == device and row["family"] == family]
    if not rows:
        return dict(DEFAULTS)
    nearest = min(rows, key=lambda row: abs(math.log(row["batch"] / batch_size)))
    return {name: nearest.get(name, default) for name, default in DEFAULTS.items()}


@functools.cache
def _rows() -> list[dict[str, Any]]:
    return json.loads(TABLE.read_text())["rows"]
