"""The settings common to all data sets: splitting, batching, transforms, normalisation, augmentation, loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from dlrun.registry import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What can be set for every data set.

    Args:
        root: folder that holds the data sets; null: the environment variable DLRUN_DATA_DIR, else a per-user cache.
        batch_size: samples per training minibatch; the last one of an epoch may be smaller.
        val_fraction: share of the training samples held out for validation, drawn at random (stratified for classes);
            not used with folds.
        folds: number of folds for cross-validation: training and validation samples, never the test set, are cut at random into
            so many parts of the same size (stratified for classes), one of which is the validation set; null: none.
        fold: which of them, from 0.
        test_fraction: share held out as the test set where the data set publishes none.
        split_seed: seed of the random split, apart from `seed` so that runs with other seeds share a split.
        sampling: disjoint visits every training sample once an epoch, in random order; with_replacement draws each sample of
            each minibatch independently, so that some come twice and others not at all; an epoch has as many minibatches.
        limit_train: use only this many training samples, a random subset (stratified for classes); null: all.
        limit_val: likewise for validation.
        limit_test: likewise for the test set.
        normalize: standardize subtracts the training mean and divides by the training standard deviation (per channel for
            images, per feature for vectors); unit leaves image values in [0, 1] and vectors as they are.
        transform: feature transforms of all inputs, name to settings ({} for its defaults), applied in the order written
            before normalisation and fitted on the training samples; images become vectors; null: none. An entry that is null is
            left out.
        augmentation: augmentations of training inputs, name to settings ({} for its defaults), applied in the order written;
            null: none. An entry that is null is left out.
        loader: resident keeps the data on the device as one tensor; streaming reads through worker processes; auto
            decides by size and by what is free beside the model.
        workers: processes that read files for the streaming loader; auto: one per core, at most 16. Changes no number.
        prefetch_factor: batches that each of them reads ahead.
        evaluation_batch_size: samples per batch of validation and test; auto: many, but fewer of large inputs.
        cache: keep decoded copies of slow files (compressed or checksummed ones) in the user's cache folder, which later runs
            map into memory.
    """

    root: str | None = None
    batch_size: Annotated[int, Gt(0)] = 128
    sampling: Literal["disjoint", "with_replacement"] = "disjoint"
    val_fraction: Annotated[float, Gt(0), Lt(1)] = 0.1
    folds: Annotated[int, Ge(2)] | None = None
    fold: Annotated[int, Ge(0)] = 0
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2
    split_seed: Annotated[int, Ge(0)] = 0
    limit_train: Annotated[int, Gt(0)] | None = None
    limit_val: Annotated[int, Gt(0)] | None = None
    limit_test: Annotated[int, Gt(0)] | None = None
    transform: Mapping[str, Mapping[str, Any] | None] | None = None
    normalize: Literal["standardize", "unit"] = "standardize"
    augmentation: Mapping[str, Mapping[str, Any] | None] | None = None
    loader: Literal["auto", "resident", "streaming"] = "auto"
    workers: Annotated[int, Ge(0), Le(256)] | Literal["auto"] = "auto"
    prefetch_factor: Annotated[int, Gt(0), Le(256)] = 2
    evaluation_batch_size: Annotated[int, Gt(0)] | Literal["auto"] = "auto"
    cache: bool = True

    def __post_init__(self) -> None:
        if self.folds is None and self.fold:
            raise ConfigError(
                f"data.fold: got {self.fold}, but data.folds is null; set data.folds to the number of folds"
            )
        if self.folds is not None and self.fold >= self.folds:
            raise ConfigError(
                f"data.fold: got {self.fold}; expected 0 to {self.folds - 1}, as data.folds is {self.folds}"
            )
