"""The pieces of scripts/benchmark.py, which says what is measured."""
