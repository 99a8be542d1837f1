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


def cannot_write(path: Path, error: OSError, folder: Path | None = None) -> str:
    """One line for a failed write to the run in `folder` (None: two above `path`): which file, why, and that what was there
    before is whole."""
    if not (folder or path.parent.parent).is_dir():
        return f"cannot write {path}: the run's folder is gone; it was moved or deleted while the run went on"
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += "; what was written before is whole: make room and go on with resume="
    return f"cannot write {path} ({reason})"


def remove_stale(folder: Path, pattern: str) -> None:
    """Removes the temporary files `<name>.<process>.tmp` among those that match `pattern` whose writer was killed."""
    with contextlib.suppress(OSError):
        for path in folder.glob(pattern):
            process = path.name.split(".")[-2]
            if process.isdecimal() and not _lives(int(process)):
                path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if process == os.getpid():
        return False  # it is writing nothing now
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True
