"""The scheduler registry: one file per entry, warm-up common to all."""

from dlrun.registry import Registry
from dlrun.schedulers._base import Warmup

SCHEDULERS = Registry("scheduler", "dlrun.schedulers", common=Warmup)
