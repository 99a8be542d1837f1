"""`make matrix`: what it says of models, data and losses that are sound, and that what is broken is found."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from dlrun.losses import _build
from dlrun.metrics.accuracy import Accuracy
from dlrun.metrics.rmse import RMSE
from dlrun.models import MODELS
from dlrun.models.linear import Linear
from dlrun.registry import ConfigError

SCRIPT = Path(__file__).parents[1] / "scripts" / "matrix.py"
Said = tuple[int, str]


@pytest.fixture
def module(hydra_clean: None, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module scripts/matrix.py, without published data."""
    spec = importlib.util.spec_from_file_location("matrix_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    monkeypatch.setitem(sys.modules, "matrix_script", module)  # where its data classes look for their annotations
    spec.loader.exec_module(module)
    monkeypatch.delenv("DLRUN_DATA_DIR", raising=False)
    return module


@pytest.fixture
def matrix(module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The script in this process: `matrix("mlp", "digits")` gives its exit code and what it printed."""

    def call(*words: str) -> Said:
        code = module.main([*words, "-n", "1", "--folder", str(tmp_path / "made")])
        return code, capsys.readouterr().out

    return call


def test_two_models_with_two_data_sets(matrix: Callable[..., Said]) -> None:
    """Those that fit are trained, the others refused by the loss or the model, and nothing is found; the counts add up."""
    code, said = matrix("linear", "lenet", "digits", "two_moons", "loss=ce", "loss=l2", "--lines")
    assert code == 0, said
    table = [line.split() for line in said.splitlines()]
    assert ["digits", "1", "1"] in table  # linear, lenet
    assert ["two_moons", "1", "M"] in table
    assert "2 models x 2 data sets x 2 losses = 8 triples" in said
    assert "3 trained, 0 built, 5 refused (4 by the loss, 1 by the model), 0 failed" in said
    assert "1 model.name: lenet needs images (channels, height, width), the data gives vectors of 2 values" in said
    assert "0 findings" in said


def test_large_models_are_built(
    matrix: Callable[..., Said], module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of more than so many parameters makes a step on the meta device and is not trained."""
    monkeypatch.setattr("matrix_triple.LARGE", 640)  # linear has 65 x 10
    monkeypatch.setattr("matrix_triple.perform", None)
    code, said = matrix("linear", "digits", "loss=ce")
    assert code == 0, said
    assert "0 trained, 1 built, 0 refused (none), 0 failed" in said


class Broken(nn.Module):
    """Runs on the meta device, and fails in training."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(input_shape[0], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not x.is_meta:
            raise RuntimeError("planted")
        return self.head(x)


def test_a_broken_model_is_found(matrix: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered model that fails is reported with the command that repeats it, and the exit code is 1."""
    monkeypatch.setitem(MODELS._entries, "broken", Broken)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "broken.yaml").write_text("name: broken\n")
    code, said = matrix("broken", "linear", "poly1d", "loss=l2", "--config-dir", str(tmp_path / "own"))
    assert code == 1
    assert ["poly1d", "!", "1"] in [line.split() for line in said.splitlines()]  # broken, linear
    assert "1 trained, 0 built, 0 refused (none), 1 failed" in said
    assert "1 findings\nbroken, poly1d, l2: RuntimeError: planted\n  dlrun --config-dir " in said
    assert "model=broken data=poly1d loss=l2 device=cpu" in said


def accuracy_of_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accuracy, "kinds", frozenset({"real"}))
    monkeypatch.setattr(Accuracy, "compute", lambda self: 0.5)
    monkeypatch.setattr(Accuracy, "update", lambda self, outputs, targets: None)


def advice_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, "fitting", lambda kind, size: ["hinge"])


def refusing(line: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Plants a `linear` that refuses everything in this line."""

    def refuse(self: nn.Module, *args: int, **settings: object) -> None:
        raise ConfigError(line)

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        refuse.__signature__ = inspect.signature(Linear.__init__)  # type: ignore[attr-defined]
        monkeypatch.setattr(Linear, "__init__", refuse)

    return plant


def an_error_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RMSE, "compute", lambda self: torch.nan)


@pytest.mark.parametrize(
    ("plant", "loss", "found"),
    [
        (accuracy_of_regression, "l2", "train: accuracy of targets of kind real"),
        (advice_that_is_refused, "ce", "these fit: hinge': but model=linear data=poly1d loss=hinge is refused too"),
        (refusing("model.name: no"), "l2", "'model.name: no' does not say what would fit"),
        (refusing("trainer.steps: no; use mlp"), "l2", "blames neither model nor loss: 'trainer.steps: no; use mlp'"),
        (an_error_that_is_no_number, "l2", "train: rmse is None"),
    ],
)
def test_what_is_not_clean_is_found(
    matrix: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    loss: str,
    found: str,
) -> None:
    """A metric that does not suit the target, a refusal that misleads, and values that are no numbers are findings."""
    plant(monkeypatch)
    code, said = matrix("linear", "poly1d", f"loss={loss}")
    assert code == 1
    assert found in said, said
    assert ["poly1d", "!"] in [line.split() for line in said.splitlines()]
    assert "1 findings" in said


def test_words_that_choose_nothing(matrix: Callable[..., Said], capsys: pytest.CaptureFixture[str]) -> None:
    """A word that is no model, no data set and no loss is refused with the nearest one."""
    with pytest.raises(SystemExit) as ended:
        matrix("digist")
    assert ended.value.code == 2
    assert "digist: no such model, data set or loss=...; did you mean 'digits'?" in capsys.readouterr().err


@pytest.mark.parametrize("helps", [True, False])
def test_the_setting_that_a_refusal_names_is_tried(
    matrix: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    """A model that is refused with the words that would help is clean only if they do."""
    linear = Linear.__init__

    def refuse(self: nn.Module, *args: int, bias: bool, **settings: str) -> None:
        if bias or not helps:
            raise ConfigError("model.bias: does not fit; model.bias=false does")
        linear(self, *args, bias=bias, **settings)

    refuse.__signature__ = inspect.signature(linear)  # type: ignore[attr-defined]
    monkeypatch.setattr(Linear, "__init__", refuse)
    code, said = matrix("linear", "poly1d", "loss=l2")
    assert "0 trained, 0 built, 1 refused (1 by the model), 0 failed" in said
    assert code == (0 if helps else 1), said
    assert ("but with model.bias=false: model.bias: does not fit" in said) == (not helps)


def test_workers(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers are processes of their own, and what they find comes together."""

    def row(self: object, model: str) -> dict[tuple[str, str, str], object]:
        return {(model, "digits", "ce"): module.Outcome((model,), "trained", str(os.getpid()))}

    monkeypatch.setattr(module.Matrix, "row", row)
    matrix = module.Matrix(["linear", "lenet", "mlp"], {"digits": ()}, [])
    module.run(matrix, 2)
    assert sorted(matrix.outcomes) == [(model, "digits", "ce") for model in ("lenet", "linear", "mlp")]
    assert str(os.getpid()) not in {outcome.line for outcome in matrix.outcomes.values()}
