"""The words of the command line, and the line for what the system refuses."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from dlrun.arguments import quote, quote_paths, split_arguments
from dlrun.suggest import explain, file_error, is_users


def test_flags_and_overrides_come_apart() -> None:
    """Flags keep their values, whether they stand behind a space or an equals sign."""
    flags, overrides = split_arguments(["a=1", "--config-dir", "mine", "b=2", "-m", "--config-name=x"])
    assert flags == ["--config-dir", "mine", "-m", "--config-name", "x"]
    assert overrides == ["a=1", "b=2"]


@pytest.mark.parametrize("folder", ["a=b", "it's", "a,b", "é (1)"])
def test_folders_are_quoted_for_hydra(folder: str) -> None:
    """Hydra's parser gives back the folder, whatever characters it has."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (word,) = quote_paths([f"resume={folder}"])
    assert word == f"resume={quote(folder)}"
    assert OverridesParser.create().parse_override(word).value() == folder


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ESTALE, errno.EROFS, errno.EDQUOT])
def test_refusals_of_the_system_name_file_and_reason(number: int) -> None:
    """A full disk, a permission, a stale handle: one line with the file and the reason, and no traceback."""
    error = OSError(number, os.strerror(number), "runs/results.json")
    assert explain(error, []) == f"{os.strerror(number)}: runs/results.json"
    assert is_users(error)


def test_a_rename_names_both_files() -> None:
    """The error of a rename is about two files."""
    error = OSError(errno.EXDEV, "Invalid cross-device link", "a.tmp", None, "b")
    assert file_error(error) == "Invalid cross-device link: a.tmp -> b"


def test_a_failed_write_names_the_open_file(tmp_path: Path) -> None:
    """The system does not say which file a failed write was for (here beyond the limit of a file's size)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / "curve.bin"

    def write() -> None:
        with open(path, "wb") as file:
            file.write(bytes(2000))
            file.flush()

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large") as raised:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert raised.value.filename is None
    assert file_error(raised.value) == f"File too large: {path}"
