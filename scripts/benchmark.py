"""dlrun against the loop that a careful person would have written, and against its peers; writes docs/benchmarks/.

python scripts/benchmark.py epoch                         # contestants over the bare loop; make benchmark has the peers too
python scripts/benchmark.py epoch --models lenet --batches 128 --peers --compile --rounds 9
python scripts/benchmark.py step                          # overhead of a step of one linear layer, microseconds
python scripts/benchmark.py process                       # whole processes: seconds and peak memory; launch to the first step
python scripts/benchmark.py logging                       # everything logged over nothing logged
python scripts/benchmark.py streaming                     # a folder of image files over a DataLoader loop
python scripts/benchmark.py sweeps                        # sweeps over Hydra's basic launcher and separate processes
python scripts/benchmark.py all                           # these six
python scripts/benchmark.py settings                      # which settings are fastest: writes src/dlrun/auto_settings.json

What is compared takes turns in one run, so that a machine whose speed varies is the same for all. Nothing else should run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("epoch", "step", "process", "logging", "streaming", "sweeps", "settings")
ALL = COMMANDS[:-1]  # the last one changes the package
MODULES = {"logging": "logged"}  # not the name of a module of the standard library
ROUNDS = {"epoch": 9, "step": 40, "process": 9, "logging": 9, "streaming": 9, "sweeps": 7, "settings": 15}


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--rounds", type=int, help=f"that count, after one for warming up; {ROUNDS}")
    common.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    common.add_argument("--threads", type=int, help="of PyTorch; its own choice otherwise")
    common.add_argument("--data", default="mnist", help="an option of dlrun's group data with 10 classes")
    common.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks", help="where the tables go")
    title, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=title, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    everything = commands.add_parser("all", parents=[common], help="all but settings")
    for name in COMMANDS:
        module = _module(name)
        module.add_arguments(commands.add_parser(name, parents=[common], help=module.__doc__.partition("`: ")[2]))
        if name in ALL:
            module.add_arguments(everything)
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Measures, writes and prints."""
    from benchmark.report import publish

    options = parse(words)
    rounds = options.rounds
    if rounds is not None and rounds < 1:
        sys.exit("--rounds: at least 1")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else some of the peers would look for one
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    for name in ALL if options.command == "all" else (options.command,):
        options.rounds = rounds or ROUNDS[name]
        section = _module(name).measure(options)
        if not section.rows:
            sys.exit("\n".join([f"{name}: nothing was measured", *section.left]))
        publish(section, options.output, options.device, options.threads)


def _module(name: str):  # type: ignore[no-untyped-def]
    return importlib.import_module(f"benchmark.{MODULES.get(name, name)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
