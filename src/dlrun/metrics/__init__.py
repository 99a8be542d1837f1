"""The metrics registry: one file per entry."""

from dlrun.registry import Registry

METRICS = Registry("metrics", "dlrun.metrics")
