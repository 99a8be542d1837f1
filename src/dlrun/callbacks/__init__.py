"""The callbacks registry: one file per entry."""

from dlrun.registry import Registry

CALLBACKS = Registry("callbacks", "dlrun.callbacks")
