"""Averages what trained networks predict: deep ensembles, and any other group of runs on the same data."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from dlrun.actions import ACTIONS
from dlrun.actions import _ensemble_report as report
from dlrun.actions._base import Action
from dlrun.actions._ensemble_choice import chosen
from dlrun.actions._ensemble_members import (
    ALL,
    SPLITS,
    Group,
    check_same_data,
    groups_of,
    predictions_of,
)
from dlrun.actions._ensemble_mixture import measure
from dlrun.registry import ConfigError, did_you_mean
from dlrun.sweeps.finding import runs_of, runs_of_sweep
from dlrun.sweeps.records import Record


@ACTIONS.register("ensemble")
class Ensemble(Action):
    """Averages the predicted distributions of runs that differ only in the seed, and shows the metrics of the ensemble beside
    those of its members: `dlrun action=ensemble sweep=<folder>`.

    Classes: the mean of the probabilities. Numbers: the mixture of the predicted distributions; `nll` is its negative
    log-likelihood, `nll_gaussian` that of the Gaussian with its mean and variance, as in the paper. Runs on several splits
    (`data.split`, `data.split_seed`, `data.fold`) make one ensemble on each; means and standard errors are then over splits.
    Of runs that differ in other settings too, the test set is read for the best row on validation data only.
    Writes ensemble.csv and ensemble.json into `<sweep>/ensemble`, or, for a list of runs, into
    `outputs/ensemble/<date>/<time>`.

    Source: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles" (2017),
    section 2.4.

    Args:
        runs: folders of runs or of sweeps instead of one sweep; * and ? stand for any characters.
        over: the settings in which the members of an ensemble differ; all: every one but those that choose the split.
        test: also evaluate on the test set; false leaves it sealed, while an ensemble is still being chosen.
        output: the folder to write into; null: see above.
    """

    def __init__(
        self,
        *,
        runs: list[str] | str | None = None,
        over: tuple[str, ...] | str = ("seed",),
        test: bool = True,
        output: str | None = None,
    ) -> None:
        self.runs = [runs] if isinstance(runs, str) else runs
        self.over = [over] if isinstance(over, str) else list(over)
        self.test, self.output = test, output

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        if config.get("run"):
            raise ConfigError(
                "run: an ensemble has several runs; expected sweep=<folder>, or action.runs=[folder,folder,...]"
            )
        records, where = self._find(config.get("sweep"))
        self._check_over(records)
        groups, left = groups_of(records, self.over)
        measured = [_measure(group, config, "val") for group in groups]
        if self.test:
            best, told = chosen(measured)
            left += [told] if told else []
            for one in best:
                tested = _measure(one.group, config, "test")
                one.alone.update(tested.alone)
                one.together.update(tested.together)
        try:
            where.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"action.output: cannot create '{where}' ({error.strerror})") from error
        lines = list(report.lines_of(measured))
        count = sum(len(group.members) for group in groups)
        report.show(lines, f"{count} runs, {len(groups)} ensemble{'s' if groups[1:] else ''}")
        report.write_table(measured, where / report.TABLE)
        reads = report.write_file(measured, lines, left, self.over, where / report.FILE)
        if reads > 1 and self.test:
            left = [*left, f"ensembles in {where} have read the test set {reads} times: choose by val, not by test"]
        for line in left:
            print(f"note: {line}")
        print(f"table: {where / report.TABLE}\nall:   {where / report.FILE}")
        return None

    def _find(self, sweep: str | None) -> tuple[list[Record], Path]:
        """The runs, and the folder to write into."""
        if sweep and self.runs:
            raise ConfigError("action.runs: not together with sweep=; list the folder of the sweep among the runs")
        if sweep:
            records, where = runs_of_sweep(sweep), Path(os.path.expanduser(sweep)) / "ensemble"
        elif self.runs:
            now = datetime.now()
            records = runs_of(self.runs)
            where = Path("outputs", "ensemble", now.strftime("%Y-%m-%d"), now.strftime("%H-%M-%S"))
        else:
            raise ConfigError("sweep: no folder given; expected sweep=<folder>, or action.runs=[folder,folder,...]")
        return records, Path(os.path.expanduser(self.output)) if self.output else where

    def _check_over(self, records: list[Record]) -> None:
        if not self.over:
            raise ConfigError("action.over: no setting given; expected those in which members differ, such as [seed]")
        for name in self.over:
            if name in SPLITS:
                raise ConfigError(
                    f"action.over: members of an ensemble share their split, so {name} cannot differ in it"
                )
            if name != ALL and all(record.get(name) is None for record in records):
                known = list(dict.fromkeys(key for record in records for key in (*record.settings, *record.flat)))
                raise ConfigError(f"action.over: no run has a setting '{name}'{did_you_mean(name, [*known, ALL])}")


def _measure(group: Group, config: dict[str, Any], part: Literal["val", "test"]) -> report.Measured:
    """Metrics of the members and of their ensemble; in memory are the predictions of one ensemble at a time."""
    members = [predictions_of(record, config, part) for record in group.members]
    check_same_data(members)
    targets = members[0].targets
    alone = [measure([one.loss], [one.outputs], targets) for one in members]
    together = measure([one.loss for one in members], [one.outputs for one in members], targets)
    return report.Measured(group, members[0].problem, {part: alone}, {part: together})
