"""How commands and folders are typed in the user's shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(name: str) -> str:
    """How to type the command `name` here: by its name where the shell finds it, else by its path beside this Python (as
    in `.venv/bin`)."""
    beside = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not beside.is_file() else shlex.quote(readable(beside))


def readable(folder: Path) -> str:
    """Relative to the current folder where it lies inside, else as it is."""
    relative = os.path.relpath(folder)
    return str(folder) if relative.startswith("..") else relative
