"""Components of one's own, without a fork: a module in the current folder, and YAML files in a folder of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from dlrun.settings import GROUPS

OWN_OF_EVERY_GROUP = """
import torch
from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback
from dlrun.data import DATASETS
from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data._base import Samples, Source
from dlrun.losses import LOSSES
from dlrun.losses.l2 import L2
from dlrun.models import MODELS
from dlrun.optimizers import OPTIMIZERS
from dlrun.registry import ConfigError
from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import Regularizer
from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler
from dlrun.spec import TargetSpec
from dlrun.tasks import TASKS
from dlrun.tasks.supervised import Supervised
from dlrun.trainer import TRAINERS, Trainer
from dlrun.transfer import TRANSFER
from dlrun.transfer._base import Transfer


@ACTIONS.register("own")
class OwnAction(Action):
    def __init__(self, *, word: str = "hello"):
        self.word = word

    def __call__(self, config, folder):
        print(self.word, config["model"]["name"], folder.name)


@CALLBACKS.register("own")
class OwnCallback(Callback):
    def on_step(self, run, result):
        with open(run.folder / "steps.txt", "a") as file:
            file.write(f"{run.step}\\n")


@DATASETS.register("own")
class OwnData(Source):
    def __init__(self, seed, *, samples: int = 10):
        self.seed, self.samples = seed, samples

    def train(self):
        inputs = torch.randn(self.samples, 3, generator=torch.Generator().manual_seed(self.seed))
        return Samples(inputs, inputs.sum(1, keepdim=True)), TargetSpec("real", 1)


@AUGMENTATIONS.register("own")
class OwnAugmentation(Augmentation):
    needs_image = False

    def __init__(self, *, shift: float = 0.0):
        self.shift = shift

    def __call__(self, inputs, key):
        return inputs + self.shift


@LOSSES.register("own")
class OwnLoss(L2):
    name = "own"

    def __init__(self, target, *, factor: float = 1.0):
        super().__init__(target)
        self.factor = factor

    def per_sample(self, outputs, targets):
        return self.factor * super().per_sample(outputs, targets)


@MODELS.register("own")
class OwnModel(torch.nn.Linear):
    def __init__(self, input_shape, num_outputs, *, bias: bool = True):
        super().__init__(input_shape[0], num_outputs, bias=bias)


@OPTIMIZERS.register("own")
def own_optimizer(params, *, lr: float = 0.1):
    return torch.optim.Rprop(params, lr=lr)


@REGULARIZATION.register("own")
class OwnRegularizer(Regularizer):
    def __init__(self, *, value: float = 0.5):
        self.value = value

    def penalty(self, model, outputs):
        return self.value + 0 * outputs.sum()


@SCHEDULERS.register("own")
class OwnScheduler(Scheduler):
    def __init__(self, total_steps, steps_per_epoch, *, slope: float = 1.0):
        super().__init__(total_steps, steps_per_epoch)
        self.slope = slope

    def shape(self, step):
        return 1 - self.slope * step / self.total_steps


@TASKS.register("own")
class OwnTask(Supervised):
    def __init__(self, data, *, strict: bool = True):
        super().__init__(data)


@TRAINERS.register("own")
class OwnTrainer(Trainer):
    pass


@TRANSFER.register("own")
class OwnTransfer(Transfer):
    def __init__(self, *, pattern: str = "head"):
        self.pattern = pattern
"""
SETTINGS = {
    "action": {"word": "hello"},
    "callbacks": {},
    "data": {"samples": 10, "batch_size": 4, "augmentation": {"own": {"shift": 0.25}}},
    "loss": {"factor": 1.0},
    "model": {"bias": True},
    "optimizer": {"lr": 0.1},
    "regularization": {"value": 0.5},
    "scheduler": {"slope": 1.0, "warmup_epochs": 0.0},
    "task": {"strict": True},
    "trainer": {},
    "transfer": {"pattern": "*.bias"},
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes `<module>.py` and `mine/<group>/own.yaml` into the current folder: own(module, text, model={...})."""
    from dlrun.catalogue import registries
    from dlrun.data._augmentation import AUGMENTATIONS

    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(module: str, text: str | None, **nodes: dict) -> None:
        if text is not None:
            (tmp_path / f"{module}.py").write_text(text)
        for group, settings in nodes.items():
            node = {"name": "own", "import": module, **settings}
            if group in ("callbacks", "regularization"):
                node = {"own": node}
            elif group in ("data", "trainer"):
                node = {"defaults": ["_common" if group == "data" else "default", "_self_"], **node}
            path = tmp_path / "mine" / group / "own.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(node, sort_keys=False))

    yield write
    for registry in (*registries().values(), AUGMENTATIONS):  # this process forgets what it has learned
        registry._entries.pop("own", None)


def test_own_component_in_every_group(own, cli, tmp_path: Path) -> None:
    """Components from a module in the current folder train through the installed command; the run is read back without
    the folder of YAML files, once its module is trusted."""
    assert set(SETTINGS) == set(GROUPS)
    own("own_everything", OWN_OF_EVERY_GROUP, **SETTINGS)
    chosen = [f"{g}=[own]" if g in ("callbacks", "regularization") else f"{g}=own" for g in GROUPS if g != "action"]
    words = ["--config-dir", "mine", *chosen, "trainer.steps=2", "device=cpu", "hydra.run.dir=run"]
    done = installed_command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["status"], results["steps"]) == ("finished", 2)
    assert results["metrics"]["train"]["penalty"] == pytest.approx(0.5)
    assert (tmp_path / "run" / "steps.txt").read_text() == "1\n2\n"
    done = cli("action=test", "run=run")
    assert (done.rc, "imports 'own_everything' (task.import), 'own_everything' (loss.import)" in done.stderr) == (
        1,
        True,
    )
    done = cli("action=test", "run=run", "trust_imports=true")
    assert done.rc == 0, done.stderr
    assert f"{results['metrics']['test']['loss']:.6g}" in done.stdout
    done = cli("--config-dir", "mine", "action=own", "run=run", "action.word=good", "trust_imports=true")
    assert (done.rc, done.stdout) == (0, "good own run\n"), done.stderr


def test_trust_is_for_one_command(own, cli, tmp_path: Path) -> None:
    """What is typed needs no trust; a run keeps none, and goes on only where it is given again."""
    own("own_module", "from dlrun.models import MODELS\nfrom dlrun.models.linear import Linear\n"
        "MODELS.register('own')(Linear)", model={})  # fmt: skip
    quick = ["device=cpu", "data=blobs", "callbacks=none", "hydra.run.dir=run"]
    done = cli("--config-dir", "mine", "model=own", *quick, "trainer.epochs=1", "trust_imports=true")
    assert done.rc == 0, done.stderr
    assert "trust" not in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
    (tmp_path / "run" / "results.json").unlink()
    done = cli("resume=run")
    assert (done.rc, "resume: the saved configuration imports 'own_module' (model.import)" in done.stderr) == (1, True)
    assert not (tmp_path / "run" / "results.json").exists()
    assert cli("resume=run", "trust_imports=true").rc == 0
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "finished"


def test_lazy_layers_are_initialised_from_the_seed(own, composed) -> None:
    """Layers that learn their input size from the first batch have their weights from the seed alone, as all others do."""
    import torch

    from dlrun.build import build_parts
    from dlrun.models import MODELS

    @MODELS.register("own")
    def build(input_shape, num_outputs):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(num_outputs))

    config = {**composed("data=blobs", "device=cpu"), "model": {"name": "own"}}
    first = build_parts(config).model
    torch.rand(3)
    assert torch.equal(build_parts(config).model[1].weight, first[1].weight)
    assert not torch.equal(build_parts({**config, "seed": 1}).model[1].weight, first[1].weight)


def installed_command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The `dlrun` that pip installs: unlike `python -m dlrun`, its path lacks the current folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = Path(sysconfig.get_path("scripts")) / "dlrun"
    return subprocess.run([command, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("module", "text", "settings", "expected"),
    [
        ("own_absent", None, {}, "model.import: no module 'own_absent' in the current folder ("),
        ("own_broken", "1 / 0", {}, "model.import: importing 'own_broken' failed: ZeroDivisionError: division by zero"),
        (
            "own_greedy",
            "from dlrun.models import MODELS\nMODELS.register('lenet')(dict)",
            {"name": "lenet"},
            "model.import: importing 'own_greedy' failed: ConfigError: model 'lenet' is shipped with dlrun and cannot be",
        ),
        ("own_other", "", {}, "model.name: unknown 'own'; allowed: "),
        (
            "own_model",
            "import torch\nfrom dlrun.models import MODELS\n\n@MODELS.register('own')\n"
            "def build(input_shape, num_outputs, *, width: int = 3): return torch.nn.Flatten()",
            {"widht": 3},
            "model.widht: unknown setting of own; allowed: width; did you mean 'width'?",
        ),
        (
            "own_shape",
            "import torch\nfrom dlrun.models import MODELS\n\n@MODELS.register('own')\n"
            "class Own(torch.nn.Linear):\n"
            "    def __init__(self, input_shape, num_outputs): super().__init__(8, 3)",
            {},
            "model: Own gives outputs of shape (1, 1, 8, 3); the loss needs (1, 10)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("own_") else "",
)
def test_what_is_wrong_with_it(own, cli, tmp_path: Path, module, text, settings, expected: str) -> None:
    """A module that is missing, broken or takes a shipped name, a wrong setting or model: one line, and no folder is left."""
    own(module, text, model=settings)
    done = cli("--config-dir", "mine", "model=own", "device=cpu", "data.limit_train=8", "data.batch_size=4")
    assert done.rc == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"dlrun: {expected}"), done.stderr
    assert not (tmp_path / "outputs").exists()
