"""The configuration of a sweep as a whole, which Hydra composes before those of its runs: from it come Hydra's own settings and
those about the command, such as `fail_fast`.

Hydra composes it with the options that no run may choose: of `-m optimizer=momentum,nesterov optimizer.momentum=0.8` with the
default optimizer, to which it cannot give a momentum. Here such a setting is left to the runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import hydra._internal.hydra as main
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dlrun.sweeps.option_settings import refusal


class Loader(ConfigLoaderImpl):
    """Hydra's, but for settings of a sweep over groups that only some options have."""

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *args: Any, **options: Any
    ) -> DictConfig:
        """As Hydra's; of a sweep over groups without the settings that cannot be given to it as a whole."""
        try:
            return super().load_configuration(config_name, overrides, run_mode, *args, **options)
        except ConfigCompositionException:
            if run_mode != RunMode.MULTIRUN:
                raise
            words = OverridesParser.create(config_loader=self).parse_overrides(overrides)
            plain = [word for word in words if self._is_value(word)]
            kept = [str(word.input_line) for word in words if word not in plain]
            cfg = super().load_configuration(config_name, kept, run_mode, *args, **options)
            if not self._sweeps_over_groups(words, cfg):
                raise
        for word in plain:
            with contextlib.suppress(ConfigCompositionException):  # raised again for the runs, which all have it
                self._apply_overrides_to_config([word], cfg)
        task = [word for word in words if not word.is_hydra_override()]
        cfg.hydra.overrides.task = [str(word.input_line) for word in task]
        names = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            task, list(names.exclude_keys), names.item_sep, names.kv_sep
        )
        return cfg

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """As Hydra's, of a run. Raises ConfigError for a setting that the chosen options lack."""
        try:
            return super().load_sweep_config(master_config, sweep_overrides)
        except ConfigCompositionException as error:
            words = OverridesParser.create(config_loader=self).parse_overrides(sweep_overrides)
            options = tuple(str(word.input_line) for word in words if not self._is_value(word))
            base = super().load_sweep_config(master_config, list(options))
            if refused := refusal(error, {options: base}):
                raise refused from error
            raise

    def _is_value(self, word: Override) -> bool:
        """Whether a word gives one value to a setting of the runs."""
        if word.is_hydra_override() or word.is_sweep_override():
            return False
        return not self.repository.group_exists(word.key_or_group) or isinstance(word.value(), dict)

    def _sweeps_over_groups(self, words: list[Override], cfg: DictConfig) -> bool:
        """Whether the runs choose options that the sweep as a whole does not, on the command line or in the parameters of an
        experiment."""
        swept = [word.key_or_group for word in words if word.is_sweep_override()]
        parameters = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
        return any(self.repository.group_exists(str(key)) for key in (*swept, *parameters))


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Within it, Hydra composes by `Loader`."""
    before = main.ConfigLoaderImpl
    main.ConfigLoaderImpl = Loader  # type: ignore[misc]
    try:
        yield
    finally:
        main.ConfigLoaderImpl = before  # type: ignore[misc]
