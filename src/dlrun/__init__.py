"""dlrun: deep-learning experiments from configuration."""

__version__ = "0.1.0"
