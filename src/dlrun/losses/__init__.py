"""The loss registry: one file per entry; `auto` chooses by the kind of the target."""

from dlrun.losses._settings import LossSettings
from dlrun.registry import Registry

LOSSES = Registry("loss", "dlrun.losses", LossSettings)

DEFAULT_LOSS = {
    "class": "ce",
    "binary": "bce",
    "sign": "bce",
    "multi_hot": "bce",
    "real": "l2",
    "non_negative": "l2",
    "unit": "l2",
}
"""The loss that `loss: auto` stands for, by target kind."""
