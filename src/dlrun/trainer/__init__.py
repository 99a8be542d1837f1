"""The training loop, and beside it evaluation, compiling and the search for what is not finite."""

from dlrun.trainer.loop import FAST_DEV_BATCHES, TRAINERS, Trainer

__all__ = ["FAST_DEV_BATCHES", "TRAINERS", "Trainer"]
