"""What writing a file safely needs, and what to say when it fails. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder outlast a power failure; where a system has no such call, nothing."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cannot_write(path: Path, error: OSError) -> str:
    """One line for a failed write: which file, why, and that what was there before is whole."""
    if not path.parent.is_dir() and not path.parent.parent.is_dir():
        return f"cannot write {path}: the run's folder is gone; it was moved or deleted while the run went on"
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += "; what was written before is whole: make room and go on with resume="
    return f"cannot write {path} ({reason})"
