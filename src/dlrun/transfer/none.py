"""`transfer=none`: a model of its own."""

from __future__ import annotations

from dlrun.transfer import TRANSFER
from dlrun.transfer._base import Transfer


@TRANSFER.register("none")
class NoTransfer(Transfer):
    """The model begins with its initialisation, and all of it is trained at one learning rate."""
