"""`logging`: epochs of dlrun with everything logged, over those with nothing logged."""

from __future__ import annotations

import argparse

from benchmark.epoch import rows
from benchmark.report import Section, say
from benchmark.turns import take_turns
from benchmark.workload import Workload

NOTHING, EVERYTHING, DEFAULT = "dlrun, nothing logged", "dlrun, everything logged", "dlrun"
NOTE = (
    "dlrun against itself: `callbacks=none` is the base; `everything` has histograms and images every epoch, the graph, the "
    "progress bar and the metrics file; `dlrun` is as it comes. Each is a process of its own, by turns of one epoch, as in "
    "the section on epochs."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of this measurement."""
    parser.add_argument("--limit-logging", type=int, help="training samples instead of all")


def measure(options: argparse.Namespace) -> Section:
    """LeNet, batch 128."""
    section = Section("logging", "Logging", NOTE, NOTHING)
    limit = options.limit_logging
    workload = Workload("lenet", 128, options.data, options.device, limit_train=limit, threads=options.threads)
    say(f"{workload.title}: everything logged, nothing logged")
    found, section.left = take_turns((NOTHING, EVERYTHING, DEFAULT), workload, options.rounds)
    section.rows = rows(workload, found, NOTHING, {EVERYTHING: 1.1})
    return section
