"""Runs of one stack have the folders of lone runs, and what cannot be stacked is refused before anything is written."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun import rundir
from dlrun.actions.train import train
from dlrun.callbacks._base import Callback, Run
from dlrun.models import MODELS
from dlrun.stacking import NotStackable, train_stacked

Config = dict[str, Any]


def folders(path: Path, count: int) -> list[Path]:
    found = [path / str(number) for number in range(count)]
    for folder in found:
        folder.mkdir(parents=True)
    return found


def files(folder: Path) -> set[str]:
    """The names of all files, without the time in that of the event file."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {"tensorboard/events" if "tfevents" in name else name for name in names}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def three(lab: Any) -> list[Config]:
    """Three runs of two epochs with all that dlrun writes."""
    config = lab.config(
        "model=mlp", "model.hidden=[16]", "trainer.steps=20", "trainer.log_every_steps=5", "callbacks=none"
    )
    observers = {
        "progress": {"name": "progress"},
        "metrics_file": {"name": "metrics_file"},
        "tensorboard": {"name": "tensorboard", "images_every_epochs": 1},
    }
    config = lab.varied(config, {"callbacks": observers})
    return [lab.varied(config, {"seed": n // 2, "optimizer.lr": 0.01 / (n + 1)}) for n in range(3)]


def test_the_folder_of_a_lone_run(three: list[Config], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Files, results, curves and their tags are those of the lone runs; nothing is shown on the terminal."""
    told = []
    stacked = folders(tmp_path / "stack", 3)
    outcomes = train_stacked(three, stacked, lambda number, outcome: told.append((number, outcome)))
    assert capfd.readouterr() == ("", "")
    assert told == list(enumerate(outcomes))
    for config, folder, alone, outcome in zip(three, stacked, folders(tmp_path / "alone", 3), outcomes, strict=True):
        value = train(config, alone)
        assert (outcome.status, outcome.epochs, outcome.facts) == ("finished", 2, {"stacked": 3})
        assert outcome.value == pytest.approx(value, rel=1e-3)
        assert files(folder) == files(alone)
        check_results(folder, alone)
        check_curves(folder, alone)
        assert rundir.read_config(folder, "run") == {**rundir.read_config(alone, "run"), "trainer": contiguous(alone)}
        log = (folder / "dlrun.log").read_text()
        assert log.count("memory: weights") == log.count("started on") == log.count("epoch 2 step 20 val") == 1
        assert json.loads((folder / "run.json").read_text())["stacked"] == 3


def contiguous(folder: Path) -> Config:
    return {**rundir.read_config(folder, "run")["trainer"], "memory_format": "contiguous"}


def check_results(found: Path, wanted: Path) -> None:
    one, other = (json.loads((folder / rundir.RESULTS).read_text()) for folder in (found, wanted))
    assert one.keys() == other.keys()
    for name in ("status", "test", "epochs", "steps", "parameters"):
        assert one[name] == other[name]
    for split in ("train", "val", "test"):
        assert one["metrics"][split] == pytest.approx(other["metrics"][split], rel=1e-3)
    assert one["timing"].keys() == other["timing"].keys()
    assert len(one["timing"]["epoch_s"]) == 2


def check_curves(found: Path, wanted: Path) -> None:
    for one, other in zip(lines(found), lines(wanted), strict=True):
        assert one.pop("split") == other.pop("split")
        assert one == pytest.approx(other, rel=1e-3, abs=1e-9)
    (one,), (other,) = (list((folder / "tensorboard").iterdir()) for folder in (found, wanted))
    assert tags(one) == tags(other)


def tags(path: Path) -> list[tuple[str, int]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = EventFileLoader(str(path)).Load()
    return sorted((value.tag, event.step) for event in events for value in event.summary.value)


def test_resumed_and_tested_alone(three: list[Config], tmp_path: Path, cli: Callable[..., Any]) -> None:
    """A finished member has nothing left to do, and its test gives the metrics of its results."""
    stacked = folders(tmp_path / "stack", 3)
    train_stacked(three, stacked)
    done = cli(f"resume={stacked[1]}")
    assert done.rc == 0
    assert "nothing to do" in done.stdout
    done = cli("action=test", f"run={stacked[1]}")
    assert done.rc == 0, done.stderr
    results = json.loads((stacked[1] / rundir.RESULTS).read_text())
    assert results["status"] == "finished"


@pytest.mark.parametrize("at_once", [True, False])
def test_max_norm_and_clipping(at_once: bool, lab: Any) -> None:
    """Projections of the weights and the norms of clipped gradients are each member's own."""
    config = lab.config("regularization=[max_norm]", "model=mlp", "model.hidden=[16]", "trainer.steps=20")
    configs = [lab.varied(config, {"regularization.max_norm.limit": limit}) for limit in (0.3, 0.6)]
    configs[1]["trainer"]["clip_norm"] = 0.5
    lab.stack(configs, double=True, at_once=at_once)
    for number, limit in enumerate((0.3, 0.6)):
        alone = lab.build(configs[number], f"alone/{number}", double=True)
        alone.fit()
        assert lab.distance(lab.weights(f"stack/{number}"), lab.weights(f"alone/{number}")) < 1e-9
        rows = torch.linalg.vector_norm(lab.state(f"stack/{number}")["model"]["hidden.dense1.weight"], dim=1)
        assert rows.max() == pytest.approx(limit)


def test_reconstruction(lab: Any) -> None:
    """An autoencoder, whose penalty looks at its latest code, is stacked too."""
    config = lab.config("model=autoencoder", "regularization=[code_sparsity]", "trainer.steps=12")
    configs = [
        lab.varied(config, {"regularization.code_sparsity.strength": s, "seed": n}) for n, s in enumerate((1e-3, 0.1))
    ]
    assert {outcome.status for outcome in lab.stack(configs, double=True)} == {"finished"}
    for number, config in enumerate(configs):
        lab.build(config, f"alone/{number}", double=True).fit()
        assert lab.distance(lab.weights(f"stack/{number}"), lab.weights(f"alone/{number}")) < 1e-9


class Reassigning(nn.Module):
    """Replaces a buffer in its forward pass, which stacking would lose."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1 if self.training else self.seen
        return self.layer(x.flatten(1))


class Reading(Reassigning):
    """Looks at values of a tensor, which a mapped function cannot."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) * float(self.layer.weight.detach().norm() > 0)


class Mixing(Reassigning):
    """Its last layer is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    ("cls", "reason"), [(Reassigning, "buffer 'seen'"), (Reading, "cannot be stacked"), (Mixing, "cannot be stacked")]
)
def test_models_that_pytorch_cannot_stack(
    cls: type, reason: str, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial step finds them before anything is written; trained alone, they work."""
    monkeypatch.setattr("dlrun.models._dropout._draws", lambda module: False)  # else a user's model is refused at once
    monkeypatch.setitem(MODELS._entries, "strange", lambda: cls())
    config = lab.varied(lab.config("trainer.steps=2"), {"model": {"name": "strange"}})
    configs = [lab.varied(config, {"seed": seed}) for seed in range(2)]
    refused(configs, tmp_path, reason)
    alone = folders(tmp_path / "alone", 1)[0]
    train(configs[0], alone)
    assert json.loads((alone / rundir.RESULTS).read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"trainer.ema_decay": 0.9}, "trainer.ema_decay=0.9; stacking needs null"),
        ({"data.loader": "streaming"}, "data.loader=streaming; stacking needs auto or resident"),
        ({"trainer.accumulate": 2}, "trainer.accumulate=2; stacking needs 1"),
        ({"trainer.min_grad_norm": 1e-3}, "trainer.min_grad_norm=0.001; stacking needs null"),
        ({"loss.reduction": "sum"}, "loss.reduction=sum; stacking needs mean"),
        ({"model.hidden": [8]}, "differ in more than values"),
        ({"trainer.precision": "bf16"}, "trainer.precision=bf16"),
        ({"model.dropout": 2.0}, "model.dropout:"),
        ({"resume": "somewhere"}, "a run that is resumed goes on alone"),
    ],
)
def test_runs_that_are_refused(values: Config, reason: str, lab: Any, tmp_path: Path) -> None:
    """Each obstacle is named, and nothing is written."""
    config = lab.config("model=mlp", "model.hidden=[16]", "trainer.steps=2")
    refused([config, lab.varied(config, {"seed": 1, **values})], tmp_path, reason)


def test_users_components_are_refused(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's model may draw random numbers that are not those of the lone run."""

    class Own(nn.Linear):
        def __init__(self) -> None:
            super().__init__(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1))

    monkeypatch.setitem(MODELS._entries, "own", lambda: Own())
    config = lab.varied(lab.config("trainer.steps=2"), {"model": {"name": "own"}})
    refused([lab.varied(config, {"seed": seed}) for seed in range(2)], tmp_path, "global generators")


def refused(configs: list[Config], path: Path, reason: str) -> None:
    made = folders(path / "stack", len(configs))
    with pytest.raises(NotStackable) as raised:
        train_stacked(configs, made)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [list(folder.iterdir()) for folder in made] == [[]] * len(configs)


def test_a_folder_in_use(three: list[Config], tmp_path: Path) -> None:
    """A folder that holds a run is not written into."""
    made = folders(tmp_path / "stack", 3)
    train(three[1], made[1])
    before = files(made[1])
    with pytest.raises(NotStackable, match="already holds a run"):
        train_stacked(three, made)
    assert files(made[1]) == before
    assert not files(made[0])


def test_a_signal_between_checkpoints(lab: Any) -> None:
    """Members that write last.pt after every third epoch only write it at once when a signal comes after the fourth."""

    class Stops(Callback):
        def on_epoch_end(self, run: Run) -> None:
            if run.epoch == 4:
                signal.raise_signal(signal.SIGTERM)

    words = ("model=mlp", "model.hidden=[4]", "trainer.checkpoint_every_epochs=3")
    trainers = [lab.build(lab.config(*words, f"seed={seed}"), f"stack/{seed}") for seed in (0, 1)]
    trainers[1].callbacks.append(Stops())  # the last of them to end its epoch
    assert {outcome.status for outcome in lab.fit(trainers)} == {"interrupted"}
    assert [lab.state(f"stack/{seed}")["counters"]["epoch"] for seed in (0, 1)] == [4, 4]
