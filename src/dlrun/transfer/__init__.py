"""The registry of transfers: one file per entry."""

from dlrun.registry import Registry

TRANSFER = Registry("transfer", "dlrun.transfer")
