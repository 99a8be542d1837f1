"""The model registry: one file per entry."""

from dlrun.registry import Registry

MODELS = Registry("model", "dlrun.models")
