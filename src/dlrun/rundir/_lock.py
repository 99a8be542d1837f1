"""One process at a time writes into a folder. The system lets the lock go when its process dies, so none is ever stale."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from dlrun.registry import ConfigError

LOCK = ".lock"

_open: dict[int, Path] = {}  # lock files held now: descriptor -> path


@contextlib.contextmanager
def lock(folder: Path, key: str = "resume", patience_s: float = 0.5) -> Iterator[None]:
    """Holds the folder for this process.

    Args:
        folder: of a run; it must exist.
        key: the setting to blame, `resume` or `hydra.run.dir`.
        patience_s: how long to wait for a process that is about to leave.

    Raises ConfigError, with its pid and host, if another process writes there, or if the folder is gone, cannot be written,
    or lies on a file system without locks. Without `fcntl` (Windows) there is no lock.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        yield
        return
    path = folder / LOCK
    handle = _acquire(path, key, time.monotonic() + patience_s)
    _open[handle] = path.absolute()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: whoever has opened it meanwhile finds that it is no longer in the folder
        del _open[handle]
        os.close(handle)


def holds(folder: Path) -> bool:
    """Whether this process holds the lock of `folder`."""
    return (folder / LOCK).absolute() in _open.values()


def _acquire(path: Path, key: str, deadline: float) -> int:
    """An open, locked lock file with the name of this process in it."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # no link: it would be overwritten
        except OSError as error:
            reason = error.strerror if path.parent.is_dir() else "the folder was deleted"
            raise ConfigError(f"{key}: cannot write in '{path.parent}' ({reason})") from error
        try:
            if _lock(handle, path, key):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return handle
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
        except OSError as error:
            os.close(handle)
            raise ConfigError(f"{key}: cannot write in '{path.parent}' ({error.strerror})") from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if time.monotonic() >= deadline:
            raise ConfigError(f"{key}: '{path.parent}' is in use by {holder or 'another process'}")
        time.sleep(0.02)


def _lock(handle: int, path: Path, key: str) -> bool:
    """Locks an open lock file if nobody else has and it is still the one in the folder."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"{key}: '{path.parent}' cannot be locked ({error.strerror}); choose a folder on another file system by "
            "hydra.run.dir"
        ) from error
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:  # its holder has just left and taken it away
        return False


def _forget() -> None:
    """A forked worker process must not hold the lock of a parent that was killed."""
    for handle in _open:
        os.close(handle)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
