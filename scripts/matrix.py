"""Every model with every data set and every loss: `make matrix`.

    python scripts/matrix.py                        all of them, about ten minutes on two cores
    python scripts/matrix.py mlp digits csv         these models and data only
    python scripts/matrix.py loss=hinge --lines     one loss; print every line of refusal, and how often it came
    python scripts/matrix.py --config-dir mine      with the models of one's own in mine/model

A triple is composed and performed as the command does it. Either it trains two steps, is validated, tested and saved, and its
metrics suit the kind of its target; or it is refused, in one line that blames the model or the loss and names what would fit,
which is tried. Networks of more than five million parameters are built on the meta device, and make a step there.

Generated data always take part, with a table of every kind of target and small pictures made in outputs/matrix; published data
do where they lie below DLRUN_DATA_DIR. What is not clean is printed with the command that repeats it; exit code 1 if any is.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from matrix_data import PUBLISHED, data_sets
from matrix_triple import Outcome, Words, advice_of, attempt

from dlrun.command import plain
from dlrun.registry import ConfigError, did_you_mean
from dlrun.settings import config_dir, data_root, options

FOLDER = Path("outputs") / "matrix"
SHORT = (
    "device=cpu", "callbacks=none", "trainer.steps=2", "trainer.threads=1", "data.limit_train=8", "data.batch_size=4",
    "data.limit_val=16", "data.limit_test=16",
)  # fmt: skip
Triple = tuple[str, str, str]  # model, data, loss


@dataclass
class Matrix:
    """The triples to try, and what became of them.

    Args:
        models: names of the options.
        data: name -> words.
        losses: names of the options.
        own: a folder of further options, or None.
    """

    models: list[str]
    data: dict[str, Words]
    losses: list[str]
    own: Path | None = None
    known: dict[Words, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[Triple, Outcome] = field(default_factory=dict)

    def tried(self) -> list[Outcome]:
        """What became of the triples that were asked for."""
        return [self.outcomes[triple] for triple in product(self.models, self.data, self.losses)]

    def composed(self, *words: str) -> dict[str, Any]:
        """The configuration of a command line."""
        path = [f"hydra.searchpath=[file://{self.own.resolve()}]"] if self.own else []
        if words not in self.known:
            with initialize_config_dir(str(config_dir()), version_base="1.3"):
                self.known[words] = plain(compose("config", overrides=[*words, *SHORT, *path]))
        return self.known[words]

    def row(self, model: str) -> dict[Triple, Outcome]:
        """What becomes of one model, with all data and losses."""
        return {triple: self.perform(triple) for triple in product([model], self.data, self.losses)}

    def perform(self, triple: Triple, *more: str) -> Outcome:
        """What becomes of a triple, with more words behind its own."""
        model, data, loss = triple
        words = (f"model={model}", *self.data[data])
        config = {**self.composed(*words, *more), "loss": self.composed(f"loss={loss}")["loss"]}  # as loss=... does
        return attempt((*words, f"loss={loss}", *more), config)

    def bad_advice(self, triple: Triple) -> str:
        """What is wrong with what a refusal says would fit: nothing said, or it is refused for the same reason."""
        model, data, loss = triple
        outcome = self.outcomes[triple]
        words, names = advice_of(outcome.line, outcome.by)
        for other in [(model, data, name) if outcome.by == "loss" else (name, data, loss) for name in names]:
            if other not in self.outcomes:  # not among those that were asked for
                self.outcomes[other] = self.perform(other)
            if self.outcomes[other].by == outcome.by:
                return f"'{outcome.line}': but {' '.join(self.outcomes[other].words)} is refused too"
        for word in words:
            found = self.perform(triple, word)
            if found.by == outcome.by or found.finding:
                return f"'{outcome.line}': but with {word}: {found.line}"
        return "" if words or names else f"'{outcome.line}' does not say what would fit"


_matrix: Matrix | None = None  # of this process and those forked from it


def _row(model: str) -> dict[Triple, Outcome]:
    assert _matrix is not None
    torch.set_num_threads(1)
    return _matrix.row(model)


def run(matrix: Matrix, workers: int) -> None:
    """Fills in the outcomes, a model at a time; says how far it is."""
    global _matrix
    _matrix = matrix
    for loss in matrix.losses:
        matrix.composed(f"loss={loss}")  # once for all workers
    with contextlib.ExitStack() as stack:
        rows: Iterator[dict[Triple, Outcome]] = map(_row, matrix.models)
        if workers > 1:  # forked: nothing is imported again
            pool = stack.enter_context(ProcessPoolExecutor(workers, multiprocessing.get_context("fork")))
            rows = (done.result() for done in as_completed([pool.submit(_row, model) for model in matrix.models]))
        for number, row in enumerate(rows, 1):
            matrix.outcomes |= row
            print(f"{number} of {len(matrix.models)} models", file=sys.stderr, flush=True)


def cell(outcomes: Sequence[Outcome]) -> str:
    """The sign of a model with a data set; see the last lines of `table`."""
    signs = Counter(outcome.sign for outcome in outcomes)
    if any(outcome.finding for outcome in outcomes):
        return "!"
    if signs["trained"]:
        return str(signs["trained"])
    return "b" if signs["built"] else "M" if any(outcome.by == "model" for outcome in outcomes) else "L"


def table(matrix: Matrix) -> Iterator[str]:
    """The lines of the table, data by models, whose names stand upright."""
    wide, high = max(map(len, matrix.data)), max(map(len, matrix.models))
    for letters in zip(*(name.rjust(high) for name in matrix.models), strict=True):
        yield f"{'':{wide}}  {' '.join(letters)}".rstrip()
    for data in matrix.data:
        signs = (cell([matrix.outcomes[model, data, loss] for loss in matrix.losses]) for model in matrix.models)
        yield f"{data:{wide}}  {' '.join(signs)}"
    yield f"A number: trained with so many of {len(matrix.losses)} losses; the others are refused, as unfit for the target."
    yield "b: built only, being large. M: refused by the model. L: refused by every loss. !: a finding."


def chosen(words: Sequence[str], groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """The names of each group that the words choose, all where none does. Raises ConfigError for a word that is none."""
    found: dict[str, list[str]] = {group: [] for group in groups}
    for word in words:
        group, _, name = word.rpartition("=")
        hits = {
            each: [known for known in names if name in (known, known.partition(":")[0])]
            for each, names in groups.items()
            if each == group or (not group and each != "loss")
        }
        if not any(hits.values()):
            known = [name for group, names in groups.items() if group != "loss" for name in names]
            raise ConfigError(f"{word}: no such model, data set or loss=...{did_you_mean(word, known)}")
        for each, names in hits.items():
            found[each] += names
    return {group: list(dict.fromkeys(found[group])) or names for group, names in groups.items()}


def findings_of(matrix: Matrix) -> Iterator[str]:
    """What is not clean, each with the command that repeats it."""
    own = f"--config-dir {shlex.quote(str(matrix.own))} " if matrix.own else ""
    for triple, outcome in sorted(matrix.outcomes.items()):
        finding = outcome.finding or (matrix.bad_advice(triple) if outcome.sign == "refused" else "")
        if finding:
            matrix.outcomes[triple] = replace(outcome, finding=finding)
            yield f"{', '.join(triple)}: {finding}\n  dlrun {own}{shlex.join((*outcome.words, *SHORT))}"


def summary(matrix: Matrix, seconds: float) -> str:
    """How many triples there are of each sign."""
    tried = matrix.tried()
    signs = Counter(outcome.sign for outcome in tried)
    by = Counter(outcome.by for outcome in tried if outcome.sign == "refused")
    sizes = f"{len(matrix.models)} models x {len(matrix.data)} data sets x {len(matrix.losses)} losses"
    refused = ", ".join(f"{number:,} by the {node}" for node, number in by.most_common())
    return (
        f"{sizes} = {len(tried):,} triples in {seconds:.0f} s: {signs['trained']:,} trained, {signs['built']:,} built, "
        f"{signs['refused']:,} refused ({refused or 'none'}), {signs['failed']:,} failed"
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the table; gives the exit code."""
    parser = argparse.ArgumentParser(description="Every model with every data set and every loss.")
    parser.add_argument("words", nargs="*", help="models and data sets, such as lenet csv uci:energy; loss=NAME")
    parser.add_argument("--config-dir", type=Path, help="a folder of your own options, as for dlrun")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the table and the pictures are made")
    parser.add_argument("--lines", action="store_true", help="print every line of refusal, and how often it came")
    parser.add_argument("-n", type=int, default=min(2, os.cpu_count() or 1), metavar="WORKERS")
    args = parser.parse_args(argv)
    if args.config_dir and not args.config_dir.is_dir():
        parser.error(f"--config-dir: no folder '{args.config_dir}'")
    own = {
        group: sorted(path.stem for path in (args.config_dir / group).glob("*.yaml")) if args.config_dir else []
        for group in ("model", "data", "loss")
    }
    root = data_root() if "DLRUN_DATA_DIR" in os.environ else None
    data = data_sets(args.folder, root, own["data"])
    known = {"model": [*options("model"), *own["model"]], "data": [*data], "loss": [*options("loss"), *own["loss"]]}
    try:
        names = chosen(args.words, known)
    except ConfigError as error:
        parser.error(str(error))
    matrix = Matrix(names["model"], {name: data[name] for name in names["data"]}, names["loss"], args.config_dir)
    start = time.perf_counter()
    run(matrix, args.n)
    findings = list(findings_of(matrix))
    print(*table(matrix), "", summary(matrix, time.perf_counter() - start), sep="\n")
    if left_out := [name for name in PUBLISHED if name not in data]:
        print(f"left out, not being below DLRUN_DATA_DIR: {', '.join(left_out)}")
    if args.lines:
        lines = Counter(outcome.line for outcome in matrix.tried() if outcome.sign == "refused")
        print(*(f"{number:6} {line}" for line, number in sorted(lines.items())), sep="\n")
    print(f"{len(findings)} findings", *findings, sep="\n")
    return int(bool(findings))


if __name__ == "__main__":
    sys.exit(main())
