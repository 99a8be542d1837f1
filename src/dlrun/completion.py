"""Completion in the shell. Hydra knows groups, options and settings; here are the flags, which it does not complete."""

from __future__ import annotations

import contextlib
import os

from dlrun.arguments import FLAGS, FLAGS_WITH_VALUE, SHELLS, sort_arguments
from dlrun.registry import ConfigError


def is_query(argv: list[str]) -> bool:
    """Whether a shell asks how COMP_LINE may go on: then nothing may be said but the words."""
    return bool({f"query={shell}" for shell in SHELLS} & set(argv)) and bool({"-sc", "--shell-completion"} & set(argv))


def complete_flag() -> bool:
    """Prints the flags that the last word of COMP_LINE may become and returns True; False if that word is no flag, and
    then the line's flags stand first, where Hydra can read them."""
    command, *words = os.environ.get("COMP_LINE", "").split(" ")
    last = words[-1] if words else ""
    if last.startswith("-"):
        print(" ".join(flag for flag in FLAGS + FLAGS_WITH_VALUE if flag.startswith(last)))
        return True
    with contextlib.suppress(ConfigError):
        words = [*sort_arguments([word for word in words[:-1] if word]), last]
    os.environ["COMP_LINE"] = " ".join([command, *words])
    return False
