"""Augmentations: one file per entry."""
