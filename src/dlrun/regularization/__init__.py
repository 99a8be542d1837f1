"""The regularization registry: one file per entry."""

from dlrun.registry import Registry

REGULARIZATION = Registry("regularization", "dlrun.regularization")
