"""Feature transforms: one file per entry."""
