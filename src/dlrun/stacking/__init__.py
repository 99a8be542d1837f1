"""Runs that differ only in values that can be vectorised, trained as one stacked model."""

from dlrun.stacking._obstacles import NotStackable
from dlrun.stacking.train import train_stacked

__all__ = ["NotStackable", "train_stacked"]
