"""From the words of a sweep to its jobs.

Hydra composes a configuration in 50 ms, and for each job of a sweep twice. Here a configuration is composed once for every
choice of groups; what differs in single values is a copy with these values put in.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dlrun.registry import ConfigError
from dlrun.sweeps.jobs import Job, job_id
from dlrun.sweeps.manifest import without_passing
from dlrun.sweeps.option_settings import refusal


class Composer:
    """Makes the jobs of one sweep.

    Args:
        loader: Hydra's, which knows the options.
        config: the configuration of the sweep as a whole.
        folder: of the sweep.
    """

    def __init__(self, loader: Any, config: DictConfig, folder: Path) -> None:
        self.loader, self.config, self.folder = loader, config, folder
        self.parser = OverridesParser.create(config_loader=loader)
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._parsed: dict[str, tuple[Override, bool]] = {}
        self._all: list[list[str]] = []  # the words of the jobs of the sweep, as far as they are known

    def parse(self, words: Sequence[str]) -> list[Override]:
        """The words as Hydra understands them."""
        parsed: list[Override] = self.parser.parse_overrides(list(words))
        return parsed

    def jobs(self, lists: Iterable[list[str]], first: int = 0) -> list[Job]:
        """The jobs with these words, numbered from `first` on. Raises what `job` does, and then knows which of them have a
        setting that others lack."""
        self._all = list(lists)
        return [self.job(number, words) for number, words in enumerate(self._all, first)]

    def job(self, number: int, words: Sequence[str]) -> Job:
        """The job with these words. What of it can only not be resolved is its own problem.

        Raises ConfigError for a setting that the chosen options lack, and Hydra's errors for other words that cannot be
        composed.
        """
        try:
            cfg = self._composed(words)
        except ConfigCompositionException as error:
            choices = [self._groups(words), *map(self._groups, self._all)]
            if refused := refusal(error, {choice: self._base(choice) for choice in dict.fromkeys(choices)}):
                raise refused from error
            raise
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        HydraConfig.instance().set_config(cfg)  # for ${hydra:...}
        folder = self.folder / str(cfg.hydra.sweep.subdir)
        with open_dict(cfg):
            del cfg["hydra"]
        config, problem = resolved(cfg)
        return Job(number, without_passing(words), config, folder, job_id(config), problem)

    def _composed(self, words: Sequence[str]) -> DictConfig:
        values = [self._parsed[word][0] for word in words if self._is_value(word)]
        cfg = copy.deepcopy(self._base(self._groups(words)))
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        OmegaConf.copy_cache(from_config=self.config, to_config=cfg)
        with open_dict(cfg.hydra):
            cfg.hydra.overrides.task = list(words)
            names = cfg.hydra.job.config.override_dirname
            parsed = [self._parsed[word][0] for word in words]
            cfg.hydra.job.override_dirname = get_overrides_dirname(
                parsed, list(names.exclude_keys), names.item_sep, names.kv_sep
            )
        return cfg

    def _groups(self, words: Sequence[str]) -> tuple[str, ...]:
        """Those of the words that choose options of groups."""
        return tuple(word for word in words if not self._is_value(word))

    def _base(self, groups: tuple[str, ...]) -> DictConfig:
        """The configuration with these options and no other values."""
        if groups not in self._bases:
            self._bases[groups] = self.loader.load_sweep_config(self.config, list(groups))
        return self._bases[groups]

    def _is_value(self, word: str) -> bool:
        """Whether a word gives a value to a setting, rather than choosing an option of a group."""
        if word not in self._parsed:
            override = self.parse([word])[0]
            is_group = self.loader.repository.group_exists(override.key_or_group)
            self._parsed[word] = override, not is_group or isinstance(override.value(), dict)
        return self._parsed[word][1]


def combinations(overrides: Sequence[Override]) -> tuple[int, Iterator[list[str]]]:
    """How many jobs a grid has, and the words of each, in the order of Hydra's basic sweeper: the last word varies fastest.

    Raises ConfigError for a range without values, and for an interval, which only a search can sample.
    """
    lists: OrderedDict[str, list[str]] = OrderedDict()
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            lists[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values = list(override.sweep_string_iterator())
            if not values:
                raise ConfigError(f"{key}: no value in '{override.input_line}'")
            lists[key] = [f"{key}={value}" for value in values]
        else:
            raise ConfigError(
                f"{key}: '{override.input_line}' has no end of values; give a list of them, or search: hydra/sweeper=optuna "
                "sweeper.trials=50"
            )
    return math.prod(map(len, lists.values())), (list(words) for words in itertools.product(*lists.values()))


def resolved(cfg: DictConfig) -> tuple[dict[str, Any], str]:
    """A configuration (without Hydra's part) as plain values, and what of it cannot be resolved."""
    try:
        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
        return config, ""
    except OmegaConfBaseException as error:
        config = OmegaConf.to_container(cfg, resolve=False)
        return config, " ".join(str(error).split())
