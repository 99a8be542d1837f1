"""The data registry: one file per data set, and the settings that every data set has."""

from dlrun.data._settings import DataSettings
from dlrun.registry import Registry

DATASETS = Registry("data", "dlrun.data", common=DataSettings)
