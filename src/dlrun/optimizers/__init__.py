"""The optimizer registry: one file per entry."""

from dlrun.registry import Registry

OPTIMIZERS = Registry("optimizer", "dlrun.optimizers")
