"""The monitored quantity, written `val/<metric>` or `train/<metric>`."""

from __future__ import annotations

from dlrun.registry import ConfigError, did_you_mean


def metric_of(monitor: str) -> str:
    """The metric of a monitor. Raises ConfigError for one on the sealed test set or of another form."""
    split, _, metric = monitor.partition("/")
    if split == "test":
        raise ConfigError(f"trainer.monitor: '{monitor}' is refused: the test set is sealed; use val/{metric}")
    if split not in ("train", "val") or not metric:
        raise ConfigError(
            f"trainer.monitor: got '{monitor}'; expected val/<metric> or train/<metric>, such as val/loss"
        )
    return metric


def not_reported(monitor: str, names: list[str]) -> ConfigError:
    """The error for a monitor that this loss and target do not have, with those they have."""
    return ConfigError(
        f"trainer.monitor: '{monitor}' is not reported; allowed: {', '.join(names)}{did_you_mean(monitor, names)}"
    )
