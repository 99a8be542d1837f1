"""Fixtures for all tests. One thread each: the workers of pytest-xdist share the machine."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read when torch and numpy are first imported, by the tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `cuda` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data sets; skips the test where `DLRUN_DATA_DIR` is unset."""
    if "DLRUN_DATA_DIR" not in os.environ:
        pytest.skip("DLRUN_DATA_DIR is not set")
    return Path(os.environ["DLRUN_DATA_DIR"]).expanduser().resolve()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps tests away from the user's cache of data sets and from the user's own settings of dlrun and Hydra."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture(autouse=True)
def _own_random_numbers() -> None:
    """Every test draws the same global random numbers, whatever ran before it in this process."""
    import random

    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def hydra_clean() -> Iterator[None]:
    """Leaves no initialised Hydra behind, whatever the test did."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    yield
    GlobalHydra.instance().clear()


class Finished(NamedTuple):
    """A finished process."""

    rc: int
    stdout: str
    stderr: str


@pytest.fixture
def dlrun(tmp_path: Path) -> Callable[..., Finished]:
    """The command line in a process of its own, run in `tmp_path` unless `cwd` says otherwise: `dlrun("model=mlp")`."""

    def run(*words: str, cwd: Path | None = None, timeout: float = 300, env: dict[str, str] | None = None) -> Finished:
        done = subprocess.run(
            [sys.executable, "-m", "dlrun", *map(str, words)],
            cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def composed(hydra_clean: None) -> Callable[..., dict]:
    """The plain configuration that the command line would compose: `composed("model=mlp", "trainer.epochs=1")`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from dlrun import rundir
    from dlrun.settings import config_dir

    OmegaConf.register_new_resolver("dlrun.run_dir", rundir.claim, replace=True)

    def make(*overrides: str) -> dict:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)

    return make


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], hydra_clean: None):
    """The command line inside this process (no second import of torch), in `tmp_path`: `cli("model=mlp", ...)`."""
    from dlrun.cli import run

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Finished:
        capfd.readouterr()
        code = run([str(word) for word in words])
        return Finished(code, *capfd.readouterr())

    return call


@pytest.fixture
def two_steps(composed: Callable[..., dict], tmp_path: Path) -> Callable[..., Any]:
    """Trains a composed configuration for two steps on the CPU, loads its checkpoint into a fresh trainer, which must then
    be in the same state and give the same outputs, and tests it; gives the trainer: `two_steps("model=mlp", "loss=ce")`."""
    import torch

    from dlrun import checkpoint, rundir
    from dlrun.build import build_trainer, check

    def run(*overrides: str, folder: str = "run") -> Any:
        config = composed(*SHORT, *overrides)
        check(config)
        (tmp_path / folder).mkdir()
        trainer, fresh = (build_trainer(config, tmp_path / name) for name in (folder, f"{folder}_fresh"))
        batch = next(iter(trainer.run.data.split("val")))

        def outputs(of: Any) -> torch.Tensor:
            with torch.inference_mode():
                return of.run.model.eval()(batch.inputs)

        assert torch.equal(outputs(fresh), outputs(trainer)), "two builds start differently"
        trainer.fit()
        steps = 1 if trainer.whole_set else 2  # optimizer=closed_form sees all samples at once
        assert (trainer.run.step, trainer.run.epoch) == (steps, 1)
        assert not torch.equal(outputs(fresh), outputs(trainer)), "training changed nothing"
        fresh.load_state_dict(checkpoint.load(trainer.run.folder / rundir.LAST))
        assert torch.equal(outputs(fresh), outputs(trainer)), "the checkpoint gives other outputs"
        loaded, state = kept(fresh), kept(trainer)
        assert [key for key in state if not equal(loaded[key], state[key])] == [], "the checkpoint lacks something"
        assert all(math.isfinite(value) for value in trainer.test().values())
        return trainer

    return run


SHORT = (
    "device=cpu", "callbacks=none", "trainer.steps=2", "data.limit_train=8", "data.batch_size=4", "data.limit_val=16",
    "data.limit_test=16",
)  # fmt: skip


def kept(trainer: Any) -> dict[str, Any]:
    """What a trainer has right after loading: callbacks take their state, and groups their learning rate, when it goes on; its
    clock has gone on."""
    state = trainer.state_dict()
    return {**state, "optimizer": state["optimizer"]["state"], "callbacks": {}, "fit_seconds": None}


def equal(a: Any, b: Any) -> bool:
    """Whether two nests of containers, tensors and plain values hold the same."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool((a == b).all()) if hasattr(a, "shape") else a == b
