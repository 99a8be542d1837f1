"""Downloads published files: several mirrors, checksum, progress bar; whole files only, and one download at a time."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlrun.registry import ConfigError

TIMEOUT_S = 20
_CHUNK = 1 << 18


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, its MD5 and the addresses that serve it, best first."""

    name: str
    md5: str
    urls: tuple[str, ...]


def fetch(wanted: RemoteFile, folder: Path, needed: Sequence[RemoteFile]) -> Path:
    """Downloads `wanted` into `folder` unless it is there by now; `needed` are all files the error should list.

    Raises ConfigError if no address gives a file with the right MD5, or the folder cannot be written.
    """
    target = folder / wanted.name
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as alone:
            if alone:
                _remove_parts(target)
            problems = _try_all(wanted, target)
    except OSError as error:
        problems = [reason(error)]
    except BaseException:  # Ctrl-C, SIGTERM
        _remove_empty(new)
        raise
    if problems is None:
        return target
    _remove_empty(new)
    listing = ", ".join(f"{file.name} (md5 {file.md5})" for file in needed)
    raise ConfigError(
        f"data.root: {wanted.name} is missing and cannot be downloaded ({'; '.join(problems)}); "
        f"put into {folder}: {listing}"
    )


def _try_all(wanted: RemoteFile, target: Path) -> list[str] | None:
    """Downloads from the first address that works, unless the file is there; what went wrong, or None."""
    problems = []
    if target.exists():  # another process was quicker
        return None
    for url in wanted.urls:
        problem = _download(url, target, wanted.md5)
        if problem is None:
            return None
        problems.append(f"{url}: {problem}")
    return problems


def _remove_parts(target: Path) -> None:
    """Removes what downloads of killed processes have left; with the folder locked there are no others."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders that were made for nothing, deepest first."""
    for path in folders:
        with contextlib.suppress(OSError):
            path.rmdir()


def _download(url: str, target: Path, md5: str) -> str | None:
    """Downloads one address to a temporary file and renames it; returns what went wrong, or None."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "dlrun"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer, part.open("wb") as out:
            expected = int(answer.headers.get("Content-Length") or 0)
            digest, received = hashlib.md5(usedforsecurity=False), 0
            for chunk in _with_progress(answer, expected, target.name):
                out.write(chunk)
                digest.update(chunk)
                received += len(chunk)
            out.flush()
            os.fsync(out.fileno())
        if received < expected:
            return f"broke off after {received} of {expected} bytes"
        if digest.hexdigest() != md5:
            return f"wrong checksum {digest.hexdigest()}"
        os.replace(part, target)
        return None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return reason(error)
    finally:
        part.unlink(missing_ok=True)


def _with_progress(answer: http.client.HTTPResponse, expected: int, name: str) -> Iterator[bytes]:
    """The body in chunks, drawing a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=expected or None)
        while chunk := answer.read(_CHUNK):
            progress.update(task, advance=len(chunk))
            yield chunk


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Holds an exclusive lock on a folder, which the system lets go when the process dies; gives whether there is one.

    Without `fcntl` (Windows), or on a file system without locks, there is none: downloads may then repeat each other, but
    files still appear whole.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(handle)


def md5_of(path: Path) -> str:
    """The MD5 of a file, read in pieces."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def reason(error: BaseException) -> str:
    """An exception on one line."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(cause).split()) or type(cause).__name__
