"""Sweeps: isolation of a job, the leaderboard, Hydra's hooks."""
