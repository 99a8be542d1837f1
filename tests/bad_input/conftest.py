"""What the tables of bad input share: no network, one line per refusal, nothing left behind."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

QUICK = ("model=mlp", "model.hidden=[4]", "model.dropout=0", "device=cpu", "trainer.epochs=1", "callbacks=none")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that is not there is not there: no test downloads one."""

    def refuse(*args: object, **settings: object) -> None:
        raise urllib.error.URLError("no network in the tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def listing(folder: Path) -> set[str]:
    """Everything in a folder, however deep."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def said(stderr: str) -> list[str]:
    """The lines of an error; warnings are told apart by their beginning."""
    return [line for line in stderr.strip().splitlines() if not line.startswith("dlrun: warning: ")]


@pytest.fixture
def refused(cli, tmp_path: Path) -> Callable[..., str]:
    """Runs a bad command line, which must exit with `rc` and one line that holds the `expected` texts, and leave the folder
    as it was; gives the line."""

    def call(words: list[str] | tuple[str, ...], expected: list[str], rc: int = 1) -> str:
        before = listing(tmp_path)
        done = cli(*words)
        assert done.rc == rc, done.stderr
        lines = said(done.stderr)
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("dlrun: ")
        assert [text for text in expected if text not in lines[0]] == [], lines[0]
        assert listing(tmp_path) == before
        return lines[0]

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """The folder of a small trained run, made once per module for the same words: `trained("data=xor")`."""
    from dlrun.cli import run

    made: dict[tuple[str, ...], Path] = {}

    def train(*words: str, files: dict[str, str] | None = None) -> Path:
        if words not in made:
            folder = tmp_path_factory.mktemp("trained")
            for name, text in (files or {}).items():
                (folder / name).write_text(text)
            here = os.getcwd()
            os.chdir(folder)
            try:
                assert run([*QUICK, *words, "hydra.run.dir=run"]) == 0
            finally:
                os.chdir(here)
            made[words] = folder / "run"
        return made[words]

    return train
