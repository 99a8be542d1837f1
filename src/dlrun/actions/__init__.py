"""The action registry: one file per entry."""

from dlrun.registry import Registry

ACTIONS = Registry("action", "dlrun.actions")
