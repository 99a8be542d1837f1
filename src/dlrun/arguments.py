"""The words of the command line: Hydra's flags, the overrides, and what `--help` says. Imports neither Hydra nor torch."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from dlrun.registry import ConfigError, did_you_mean
from dlrun.settings import GROUPS, MAPPING_GROUPS, TRAINING_ACTIONS, options

SHELLS = ("bash", "zsh", "fish")
QUIET_FLAGS = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc")
FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc",
    "--info", "-i",
)  # fmt: skip
FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
)  # fmt: skip
CHOICES = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--shell-completion": tuple(f"{verb}={shell}" for verb in ("install", "uninstall", "query") for shell in SHELLS),
}
SHORT = ("launcher.", "sweeper.")
LONG = {"-c": "--cfg", "-i": "--info", "-sc": "--shell-completion"}


def sort_arguments(argv: list[str]) -> list[str]:
    """Hydra's flags first: argparse refuses `dlrun model=lenet -m`; `launcher.` and `sweeper.` are Hydra's, whose settings
    are called `hydra.launcher.` and `hydra.sweeper.`. Raises ConfigError as `split_arguments` does."""
    flags, overrides = split_arguments(argv)
    return flags + [f"hydra.{word}" if word.startswith(SHORT) else word for word in overrides]


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and the overrides. Raises ConfigError for a flag that does not exist, lacks its value
    or cannot stand here: argparse would print its whole usage."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(reversed(argv))
    while rest:
        argument = rest.pop()
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        flag, _, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if flag not in FLAGS and flag not in FLAGS_WITH_VALUE:
            raise ConfigError(
                f"unknown flag '{argument}'; see dlrun --help{did_you_mean(flag, FLAGS + FLAGS_WITH_VALUE)}"
            )
        choices = CHOICES.get(LONG.get(flag, flag), ())
        if not value and (flag in FLAGS_WITH_VALUE or (rest and rest[-1] in choices)):
            value = rest.pop() if rest else ""
        if flag in FLAGS_WITH_VALUE and not value:
            raise ConfigError(f"{flag}: no value given{'; allowed: ' if choices else ''}{', '.join(choices)}")
        if value and choices and value not in choices:
            raise ConfigError(f"{flag}: got '{value}'; allowed: {', '.join(choices)}{did_you_mean(value, choices)}")
        flags += [flag, value] if value else [flag]
        flags += (
            ["all"] if LONG.get(flag, flag) == "--info" and not value else []
        )  # argparse would take what comes next
    _check_together(flags, overrides)
    return flags, overrides


def _check_together(flags: list[str], overrides: list[str]) -> None:
    given = {LONG.get(flag.partition("=")[0], flag.partition("=")[0]) for flag in flags}
    if "--resolve" in given and "--cfg" not in given:
        raise ConfigError("--resolve: only together with --cfg")
    for quiet in ("--cfg", "--info"):
        if quiet in given and given & {"-m", "--multirun"}:
            raise ConfigError(f"{quiet}: not together with -m; leave -m and the lists of values away")
    if "--shell-completion" in given and not {*flags, *overrides} & set(CHOICES["--shell-completion"]):
        raise ConfigError(f"-sc: allowed: {', '.join(CHOICES['--shell-completion'])}")


def refuse_shadowing(argv: list[str]) -> None:
    """Raises ConfigError if a folder given by `--config-dir` has an option that dlrun ships: Hydra would pass over it in
    silence."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    folders = [value for word, value in pairs if word in ("--config-dir", "-cd")]
    folders += [word.partition("=")[2] for word in argv if word.startswith("--config-dir=")]
    for folder in map(Path, folders):
        for group in (*GROUPS, "experiment"):
            own = {path.stem for path in (folder / group).glob("*.yaml")}
            if taken := sorted(own & set(options(group))):
                raise ConfigError(
                    f"--config-dir: {folder / group / taken[0]}.yaml is never read, since dlrun ships a {group} "
                    f"'{taken[0]}'; give it another name"
                )


def is_quiet(argv: list[str]) -> bool:
    """Whether the command line only asks for information, so that nothing may be left behind."""
    return any(word.partition("=")[0] in QUIET_FLAGS for word in argv)


def value_of(argv: list[str], key: str) -> str | None:
    """The value of the last override `key=value`, without quotes; None if it is not given or null."""
    values = [word.partition("=")[2] for word in argv if word.partition("=")[0].lstrip("+") == key]
    return _unquoted(values[-1]) if values and values[-1] != "null" else None


def check_groups(argv: list[str]) -> None:
    """Raises ConfigError for a group that is given no option, or several where it takes one, and for a word without a key:
    Hydra's own messages name neither."""
    for word in argv:
        group, _, value = word.partition("=")
        if not group:
            raise ConfigError(f"cannot read the override '{word}': expected key=value, such as optimizer.lr=1e-3")
        if group not in GROUPS or "=" not in word:
            continue
        listed = value.startswith("[")
        if (
            value in ("", "null", "true", "false")
            or value[:1].isdigit()
            or value.startswith("{")
            or (listed and group not in MAPPING_GROUPS)
        ):
            none = "none" in options(group)
            raise ConfigError(
                f"{group}: got '{value}'; expected one of {', '.join(options(group))}"
                f"{f', or a list of them; nothing: {group}=none' if group in MAPPING_GROUPS and none else ''}"
            )


def is_sweep(argv: list[str]) -> bool:
    return bool({"-m", "--multirun"} & set(argv))


def wants_workers(argv: list[str]) -> bool:
    """Whether the command line is a sweep, or goes on with one, that dlrun's own launcher runs."""
    folder = value_of(argv, "resume")
    sweep = is_sweep(argv) or bool(folder and (Path(os.path.expanduser(folder)) / "sweep.yaml").is_file())
    return sweep and value_of(argv, "hydra/launcher") in (None, "dlrun") and value_of(argv, "dry_run") is None


def check_sweep(argv: list[str]) -> None:
    """Raises ConfigError for a sweep over anything but training runs."""
    if not is_sweep(argv):
        return
    others = [name for name in (value_of(argv, "action") or "train").split(",") if name not in TRAINING_ACTIONS]
    if others:
        raise ConfigError(f"action: a sweep is over training runs, not '{others[0]}'; leave -m away")


def as_resume(argv: list[str]) -> list[str]:
    """`action=resume_sweep sweep=<folder>` as `resume=<folder>`, which is the same. Raises ConfigError for anything but the
    folder of a sweep."""
    if value_of(argv, "action") != "resume_sweep":
        return argv
    folder = value_of(argv, "sweep")
    if not folder:
        raise ConfigError("sweep: no folder given; expected action=resume_sweep sweep=outputs/multirun/<id>")
    if not (Path(os.path.expanduser(folder)) / "sweep.yaml").is_file():
        raise ConfigError(f"sweep: '{folder}' is not the folder of a sweep (no sweep.yaml in it)")
    others = [word for word in argv if word.partition("=")[0].lstrip("+") not in ("action", "sweep")]
    return [*others, f"resume={folder}"]


def quote_paths(argv: list[str]) -> list[str]:
    """`resume=`, `run=` and `sweep=` with their folders in quotes: Hydra would stumble over an = or an accent."""
    quoted = []
    for word in argv:
        key, _, value = word.partition("=")
        if key.lstrip("+") in ("resume", "run", "sweep") and value not in ("", "null"):
            word = f"{key}={quote(_unquoted(value))}"
        quoted.append(word)
    return quoted


def quote(value: str) -> str:
    """A value in quotes, in which Hydra takes every character for itself."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != value[-1] or value[0] not in "'\"":
        return value
    return value[1:-1].replace(f"\\{value[0]}", value[0]).replace("\\\\", "\\")  # as `quote` has written it


def help_text() -> str:
    """What `dlrun --help` prints; from file names alone."""
    lines = [
        "dlrun: deep-learning experiments from configuration",
        "",
        "  dlrun model=lenet data=mnist optimizer=adam       train, then test once on the best checkpoint",
        "  dlrun -m optimizer.lr=1e-4,1e-3 seed='range(3)'    a sweep: one run per combination, and a leaderboard",
        "  dlrun model=mlp seeds=5                            five seeds as one result: mean, spread, n",
        "  dlrun resume=outputs/<date>/<run>                  go on with a run, or with a sweep by its folder",
        "  dlrun action=compare sweep=outputs/multirun/<id>   which settings are better, and how sure that is",
        "  dlrun action=ensemble sweep=outputs/multirun/<id>  the runs of other seeds as one ensemble",
        "  dlrun action=test run=outputs/<date>/<run>         evaluate a run again",
        "  dlrun action=predict run=... action.input=new.csv  write predictions",
        "  dlrun action=profile model=... data=...            where an epoch goes, and which settings are faster here",
        "  dlrun action=verify_resume model=... data=...      prove that stopping and resuming changes no bit of a run",
        "  dlrun action=list action.group=model               every option and setting, with its meaning",
        "  tensorboard --logdir outputs                       curves, histograms, images",
        "",
        "Groups (choose one by group=option; those marked * take a list, group=[a,b]):",
    ]
    for group in (*GROUPS, "experiment"):
        if names := options(group):
            lines.append(f"  {group + ('*' if group in MAPPING_GROUPS else ''):16}{_wrap(', '.join(names), 18)}")
    lines += [
        "",
        "Settings: group.setting=value, such as optimizer.lr=1e-3 trainer.epochs=20 data.batch_size=64 seed=1 device=cpu",
        "",
        "  --cfg job             print the composed configuration      --multirun, -m   sweep over comma-separated values",
        "  --config-dir DIR      add a folder of your own options      --hydra-help     Hydra's own help",
        '  -sc install=bash      shell completion: eval "$(dlrun -sc install=bash)"',
    ]
    return "\n".join(lines)


def _wrap(text: str, indent: int) -> str:
    return textwrap.fill(text, 110 - indent, subsequent_indent=" " * indent, break_long_words=False)
