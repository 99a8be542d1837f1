"""The task registry: one file per entry."""

from dlrun.registry import Registry

TASKS = Registry("task", "dlrun.tasks")
