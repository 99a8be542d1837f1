"""Transfer learning: weights of another run, a new head, frozen layers, learning rates by layer."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from dlrun import checkpoint, rundir
from dlrun.actions.train import train, write_origin
from dlrun.build import build_trainer
from dlrun.callbacks._base import Callback, Run
from dlrun.registry import ConfigError
from dlrun.settings import options
from dlrun.spec import StepResult
from dlrun.transfer._fit import fit, renamed, wrapped
from dlrun.transfer._names import head_of, matches
from dlrun.transfer._source import read, weights_file
from dlrun.transfer.finetune import Finetune

SHORT = ("device=cpu", "callbacks=none", "data.limit_val=32", "data.limit_test=32", "trainer.threads=1")
MODEL = ("model=mlp", "model.hidden=[12,8]", "model.batch_norm=true", "model.dropout=0.3")
BLOBS = ("data=blobs", "data.limit_train=64", "data.batch_size=16", "trainer.epochs=2", *MODEL, *SHORT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that `source` copies is kept."""
    return tmp_path_factory.mktemp("made") / "source"


@pytest.fixture
def source(cli: Callable[..., Any], made: Path) -> Path:
    """A run on four blobs, in the folder `source`; trained once."""
    if not made.exists():
        done = cli(*BLOBS, f"hydra.run.dir={made}")
        assert done.rc == 0, done.stderr
    shutil.copytree(made, "source")
    return Path("source")


def weights(folder: Path | str, name: Path = rundir.LAST) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(Path(folder) / name)["model"]
    return found


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    """The names of tensors in which two states differ in a bit, in shape, or that only one has."""
    return {n for n in a.keys() | b.keys() if n not in a or n not in b or not torch.equal(a[n], b[n])}


@pytest.mark.parametrize(
    ("word", "warned"),
    [("data.split_seed=7", True), ("data.folds=3", True), ("seed=7", False), ("data.std=0.7", False)],
)
def test_samples_that_the_source_has_seen(cli, source: Path, word: str, warned: bool) -> None:
    """Weights from a run on another split of the same data: a warning; from the same split, or from other data: none."""
    done = cli(*BLOBS, "transfer=finetune", "transfer.source=source", word, "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    assert ("its weights have seen samples" in done.stderr) == warned


# ---- frozen, new head -------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("X18")
def test_frozen_layers_stay_and_the_new_head_is_trained(cli, source: Path) -> None:
    """After training on other classes every tensor of the body, batch-norm statistics included, is that of the source's best
    checkpoint bit for bit; the head has the new classes, has moved, and alone has a state in the optimizer."""
    done = cli(*BLOBS, "data.classes=3", "transfer=frozen", "transfer.source=source", "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    before, after = weights(source, rundir.BEST), weights("run")
    assert different(before, after) == {"head.weight", "head.bias"}
    assert after["head.weight"].shape == (3, 8)
    fresh = build_trainer(saved("run") | {"resume": None}, Path("again")).run.model.state_dict()
    assert different(fresh, after) == {"head.weight", "head.bias"}
    state = checkpoint.load(Path("run") / rundir.LAST)["optimizer"]
    assert sorted(tuple(s["exp_avg"].shape) for s in state["state"].values()) == [(3,), (3, 8)]


@pytest.mark.curriculum("X18")
def test_fine_tuning_moves_everything(cli, source: Path) -> None:
    """Fine-tuning starts from the source's weights and changes all of them; the head begins anew as it would by itself."""
    words = (
        *BLOBS,
        "trainer.steps=1",
        "optimizer=sgd",
        "scheduler=constant",
        "optimizer.lr=1e-12",
        "model.batch_norm=false",
    )
    assert cli(*words, "hydra.run.dir=plain").rc == 0
    assert cli(*BLOBS, "model.batch_norm=false", "hydra.run.dir=other").rc == 0
    tuned = (*words, "transfer=finetune", "transfer.source=other")
    assert cli(*tuned, "hydra.run.dir=tuned").rc == 0
    assert cli(*tuned, "transfer.reset=[]", "hydra.run.dir=kept").rc == 0
    assert all(
        torch.allclose(weights("tuned")[n], t, atol=1e-9)
        for n, t in weights("other", rundir.BEST).items()
        if "head" not in n
    )
    assert all(torch.allclose(weights("tuned")[n], t, atol=1e-9) for n, t in weights("plain").items() if "head" in n)
    assert all(torch.allclose(weights("kept")[n], t, atol=1e-9) for n, t in weights("other", rundir.BEST).items())
    assert cli(*BLOBS, "transfer=finetune", "transfer.source=source", "hydra.run.dir=run").rc == 0
    assert different(weights(source, rundir.BEST), weights("run")) == set(weights("run"))


@pytest.mark.curriculum("X18")
def test_learning_rates_by_layer(cli, source: Path) -> None:
    """A factor of the learning rate acts on the updates of its layers alone: the first update of plain gradient descent is
    that many times as large, and in the log stands the rate of the rest."""
    words = (*BLOBS, "trainer.steps=1", "optimizer=sgd", "scheduler=constant", "optimizer.lr=0.1", "transfer=finetune")
    words = (*words, "transfer.source=source")
    assert cli(*words, "optimizer.lr=1e-30", "hydra.run.dir=still").rc == 0
    assert cli(*words, "hydra.run.dir=one").rc == 0
    assert cli(*words, "transfer.lr_scale={hidden.dense1: 0.25, body: 0.5}", "hydra.run.dir=scaled").rc == 0
    still, one, scaled = (weights(name) for name in ("still", "one", "scaled"))
    for name in (n for n in still if n.endswith(("weight", "bias"))):
        factor = 0.25 if "dense1" in name else 1.0 if "head" in name else 0.5
        torch.testing.assert_close(scaled[name] - still[name], factor * (one[name] - still[name]), rtol=1e-3, atol=1e-7)


def saved(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((Path(folder) / rundir.CONFIG).read_text())
    return found


def table(path: Path, rows: slice, label: Callable[[int], str]) -> None:
    """8x8 digits as a CSV file."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pairs = zip(found.data[rows] / 16, found.target[rows], strict=True)
    lines = [",".join([*map(str, pixels), label(digit)]) for pixels, digit in pairs]
    path.write_text("\n".join([",".join([*(f"p{i}" for i in range(64)), "digit"]), *lines]) + "\n")


@pytest.mark.curriculum("X18")
def test_transfer_helps_where_labels_are_few(cli, tmp_path: Path) -> None:
    """A net that knows the ten digits learns five groups of them from 50 labels better than one that sees those labels only:
    test accuracy on other images, means over two seeds, of none 0.77, frozen 0.81, finetune 0.89 (validation: likewise)."""
    table(tmp_path / "many.csv", slice(0, 900), str)
    table(tmp_path / "few.csv", slice(900, None), lambda digit: "abcde"[digit // 2])
    shared = (
        "data=csv",
        "data.target=digit",
        "data.normalize=unit",
        "model=mlp",
        "model.hidden=[64,32]",
        *SHORT[:2],
        SHORT[-1],
    )
    many = ("data.path=many.csv", "data.kind=class", "data.batch_size=16", "optimizer.lr=3e-3", "trainer.epochs=12")
    few = ("data.path=few.csv", "data.limit_train=50", "data.batch_size=10", "optimizer.lr=1e-2", "trainer.epochs=20")
    assert cli(*shared, *many, "hydra.run.dir=many").rc == 0
    accuracy = {}
    for option in options("transfer"):
        words = (*shared, *few, "trainer.validate_every_epochs=10", f"transfer={option}")
        words = words if option == "none" else (*words, "transfer.source=many")
        for seed in range(2):
            done = cli(*words, f"seed={seed}", f"hydra.run.dir={option}{seed}")
            assert done.rc == 0, done.stderr
        files = [Path(f"{option}{seed}/results.json") for seed in range(2)]
        found = [json.loads(file.read_text())["metrics"] for file in files]
        accuracy[option] = {
            split: float(np.mean([run[split]["accuracy"] for run in found])) for split in ("val", "test")
        }
    for split in ("val", "test"):
        assert accuracy["frozen"][split] > accuracy["none"][split] + 0.01, accuracy
        assert accuracy["finetune"][split] > accuracy["none"][split] + 0.05, accuracy


# ---- resuming, saved runs, sweeps -------------------------------------------------------------------------------------


class Stop(Callback):
    """Ends the run after a number of updates, as SIGKILL does."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, run: Run, result: StepResult) -> None:
        if run.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.curriculum("X18")
@pytest.mark.parametrize(
    "words",
    [
        ("transfer=frozen",),
        ("transfer=frozen", "trainer.ema_decay=0.9"),
        (
            "transfer=finetune",
            "transfer.lr_scale={body: 0.1}",
            "transfer.freeze=[hidden.dense1]",
            "trainer.swa_start=0.2",
        ),
    ],
    ids=["frozen", "averaged", "rates by layer"],
)
def test_resumed_without_the_source(cli, composed, source: Path, words: tuple[str, ...]) -> None:
    """A run whose source is gone goes on from its checkpoint, and ends bit for bit like one never stopped."""
    config = composed(*BLOBS, *words, "transfer.source=source", "trainer.checkpoint_every_steps=3", "trainer.epochs=3")
    for name in ("whole", "stopped"):
        Path(name).mkdir()
    train(config, Path("whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config, Path("stopped"), [Stop(5)])
    source.rename("elsewhere")
    assert cli("resume=stopped").rc == 0
    for name in (rundir.LAST, rundir.BEST):
        assert different(weights("whole", name), weights("stopped", name)) == set()
    assert saved("stopped")["transfer"] == saved("whole")["transfer"]
    assert cli("action=test", "run=whole").rc == 0


def test_a_run_that_was_stopped_before_its_first_checkpoint(cli, composed, source: Path) -> None:
    """It begins anew from the source, which must be the same: the saved configuration has its path and hash."""
    config = composed(*BLOBS, "transfer=frozen", "transfer.source=source")
    Path("stopped").mkdir()
    trainer = build_trainer(config, Path("stopped"))
    write_origin(trainer, "started")
    trainer.run.data.close()
    file = source / rundir.BEST
    transfer = saved("stopped")["transfer"]
    assert transfer["source"] == str(source.absolute())
    assert transfer["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes((source / rundir.LAST).read_bytes())
    done = cli("resume=stopped")
    assert (
        done.rc,
        done.stderr.startswith(f"dlrun: transfer.sha256: expected {transfer['sha256']}, but that of "),
    ) == (1, True)


def test_a_run_of_an_older_dlrun(cli, source: Path) -> None:
    """A saved configuration without the group is read as transfer=none."""
    config = saved("source")
    assert config.pop("transfer") == {"name": "none"}
    (source / rundir.CONFIG).write_text(yaml.safe_dump(config))
    assert cli("action=test", "run=source").rc == 0
    assert cli("resume=source").rc == 0


@pytest.mark.parametrize("word", ["transfer.freeze=[]", "transfer.source=other"])
def test_nothing_of_it_can_be_changed_for_a_saved_run(cli, source: Path, word: str) -> None:
    """It is about the beginning of a run."""
    for key in ("resume", "run"):
        done = cli(f"{key}=source", word)
        assert done.rc == 1
        assert done.stderr.startswith(f"dlrun: {word.partition('=')[0]}: is about the beginning of a run")
    assert "transfer: cannot be exchanged for 'frozen' in a saved run" in cli("resume=source", "transfer=frozen").stderr


def test_in_a_sweep(cli, source: Path) -> None:
    """Every run of a sweep begins with the weights of a folder that is given by a relative path."""
    words = (*BLOBS, "transfer=finetune", "transfer.source=source", "transfer.freeze=[body],[]")
    done = cli("-m", *words, "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    assert done.rc == 0, done.stderr
    assert different(weights(source, rundir.BEST), weights("sweep/0")) == {"head.weight", "head.bias"}
    assert saved("sweep/1")["transfer"]["source"] == str(source.absolute())


def test_stacking_refuses_learning_rates_by_layer(composed, source: Path, tmp_path: Path) -> None:
    """A stacked model has one learning rate for each member; fine-tuning at one rate can be stacked."""
    from dlrun.stacking import NotStackable
    from dlrun.stacking._obstacles import check_trainers

    shared = (*BLOBS, "transfer=finetune", "transfer.source=source", "trainer.memory_format=contiguous")
    check_trainers([build_trainer(composed(*shared), tmp_path / "a")])
    scaled = build_trainer(composed(*shared, "transfer.lr_scale={body: 0.1}"), tmp_path / "b")
    with pytest.raises(NotStackable, match="learning rate differs from layer to layer"):
        check_trainers([scaled])


# ---- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("transfer.source=null",), "transfer.source: no weights given; expected the folder of a run"),
        (("transfer.source=sourc",), "transfer.source: no such file or folder 'sourc'; did you mean 'source'?"),
        (("transfer.sha256=00",), "transfer.sha256: expected 00, but that of source/checkpoints/best.pt is "),
        (
            ("transfer.freeze=[hiden]",),
            "transfer.freeze: 'hiden' means no parameter of MLP; its layers: hidden.dense1, ",
        ),
        (("transfer.lr_scale={body: 0}",), "transfer.lr_scale.body: got 0; expected"),
        (("transfer.freeze=['*']",), "optimizer: MLP has no trainable parameter"),
        (("transfer.freeze=body",), "transfer.freeze: got 'body'; expected list of text"),
        (
            ("model.hidden=[12,9]",),
            "transfer.source: 'source/checkpoints/best.pt' is of another model than MLP: hidden.dense2.weight (9x12 here, "
            "8x12 there), hidden.norm2.weight (9 here, 8 there), ",
        ),
        (
            ("model.weights=[[[1,2]],[[1],[1],[1],[1]]]", "model.hidden=[1]"),
            "model.weights: not together with transfer.source, which replaces them; leave one away",
        ),
        (("model.biases=[[0],[0,0,0,0]]", "model.hidden=[1]"), "model.biases: not together with transfer.source"),
        (("model.hidden=[12,9]",), "the run has model.hidden=[12, 8]; "),
        (("model.hidden=[12]",), "hidden.dense2.weight (8x12 there, is not here)"),
        (("model=linear",), "the run has the model 'mlp'; "),
        (("data=digits",), "hidden.dense1.weight (12x64 here, 12x2 there); transfer.reset=[...] leaves out layers"),
    ],
)
def test_refused_in_one_line(cli, source: Path, words: tuple[str, ...], expected: str) -> None:
    """What does not fit, where, and what would; nothing is left behind."""
    model = [] if any(word.startswith("model=") for word in words) else list(MODEL)
    rest = [word for word in BLOBS if word not in MODEL]
    done = cli(*model, *rest, "transfer=finetune", "transfer.source=source", *words, "hydra.run.dir=run")
    assert done.rc == 1
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not Path("run").exists()


def test_a_head_that_does_not_fit_is_named(cli, source: Path) -> None:
    """Where the old head is asked for and has other classes, it begins anew, and a line says so."""
    words = (*BLOBS, "data.classes=3", "transfer=finetune", "transfer.source=source", "transfer.reset=[]")
    done = cli(*words, "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    line = "dlrun: warning: transfer: a new head: head.weight (3x8 here, 4x8 there), head.bias (3 here, 4 there)\n"
    assert done.stderr.count(line) == 1


# ---- names and files --------------------------------------------------------------------------------------------------


class Nested(nn.Module):
    """A network within another, as torchvision's are held."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("c1", "c1.conv.weight", True), ("c1", "c10.conv.weight", False), ("c1.conv", "c1.conv.bias", True),
        ("*.bias", "c1.conv.bias", True), ("*.bias", "c1.conv.weight", False), ("net.layer[12]", "net.layer2.0.bias", True),
        ("net.layer[12]", "net.layer3.0.bias", False), ("head", "net.fc.bias", True), ("head", "net.fcx.bias", False),
        ("body", "net.fc.bias", False), ("body", "net.layer3", True), ("*", "net.fc.bias", True), ("C1", "c1.weight", False),
    ],
)  # fmt: skip
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    """A pattern means a layer with all below it; `head` and `body` follow the last layer."""
    assert matches(pattern, name, "net.fc") is expected


def test_head() -> None:
    """The layer of that name, else the last one with weights."""
    with_head = nn.ModuleDict({"head": nn.Linear(2, 2), "extra": nn.Linear(2, 2)})
    assert head_of(with_head) == "head"
    assert head_of(Nested()) == "net.2"
    assert head_of(nn.Linear(2, 2)) == head_of(nn.ReLU()) == ""


def test_frozen_modules_are_as_in_an_evaluation(composed, source: Path, tmp_path: Path) -> None:
    """Dropout and batch norm of frozen layers stay in evaluation mode in a copy of the model too, those of others do not."""
    import copy

    words = ("transfer=finetune", "transfer.source=source", "transfer.freeze=[hidden.dense1,hidden.norm1]")
    model = build_trainer(composed(*BLOBS, *words), tmp_path / "run").run.model
    for one in (model.train(), copy.deepcopy(model).eval().train()):
        assert {name for name, m in one.named_modules() if not m.training} == {"hidden.dense1", "hidden.norm1"}
    twin = copy.deepcopy(model)
    twin.train()
    twin.hidden.norm1.train()
    assert twin.hidden.norm1.train.__self__ is twin.hidden.norm1
    frozen = build_trainer(
        composed(*BLOBS, "transfer=frozen", "transfer.source=source"), tmp_path / "b"
    ).run.model.train()
    assert {name for name, m in frozen.named_modules() if m.training} == {"", "head"}


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ("['layers.1']", {"layers.1"}),
        ("[body]", {"layers", "layers.0", "layers.1", "dropouts", "dropouts.0", "dropouts.1"}),
        ("['layers.*.weight_*','layers.*.bias_*']", {"layers", "layers.0", "layers.1"}),
    ],
)
def test_frozen_recurrent_layers_follow_the_mode_of_the_model(
    composed, tmp_path: Path, freeze: str, frozen: set
) -> None:
    """In training they are in training mode, without which gradients do not go back through cuDNN's to the layers below; in
    an evaluation they are not. What holds them, and dropout beside them, stays in evaluation mode."""
    import copy

    words = (
        "data=digits",
        "data.limit_train=32",
        "model=gru",
        "model.hidden=5",
        "model.layers=2",
        "model.dropout=0.5",
        *SHORT,
    )
    plain = build_trainer(composed(*words), tmp_path / "plain").run.model
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    source = ("transfer=finetune", f"transfer.source={tmp_path}/plain.pt", "transfer.reset=[]")
    model = build_trainer(composed(*words, *source, f"transfer.freeze={freeze}"), tmp_path / "run").run.model
    recurrent = {"layers.0", "layers.1"}
    for one in (model, copy.deepcopy(model)):
        assert not any(m.training for m in one.eval().modules())
        assert {name for name, m in one.train().named_modules() if not m.training} == frozen - recurrent
    with torch.no_grad():
        x = torch.randn(2, 1, 8, 8)
        assert torch.equal(model.layers.train()[0](x[:, 0])[0], model.layers.eval()[0](x[:, 0])[0])


def test_frozen_recurrent_layers_with_dropout_in_their_kernel() -> None:
    """They stay in evaluation mode: their dropout is off. Of a single layer it never is on."""
    for layers, dropout, training in ((2, 0.5, False), (1, 0.5, True), (2, 0.0, True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of the dropout of a single layer
            net = nn.Sequential(nn.LSTM(3, 3, layers, dropout=dropout), nn.Linear(3, 2))
        Finetune(freeze=("0",)).freeze(net)
        assert (net.train()[0].training, net.eval()[0].training) == (training, False)


def test_what_is_no_file_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged files, files with more than tensors (nothing in them is run), without tensors, and with values that are not
    finite are refused in a line, and so are folders without a checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.yaml").write_text("")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"a": print}, protocol=2))
    torch.save({"a": 1}, "numbers.pt")
    torch.save({}, "none.pt")
    torch.save({"head.bias": torch.tensor([1.0, float("nan")])}, "nan.pt")
    torch.save(Nested().state_dict(), "short.pt")
    (tmp_path / "short.pt").write_bytes((tmp_path / "short.pt").read_bytes()[:-200])
    expected = {
        "empty": "no checkpoint in 'empty': give the folder of a run",
        "sweep": "'sweep' is the folder of a sweep; give that of one of its runs, such as sweep/0",
        "text.pt": "checkpoint text.pt is damaged",
        "short.pt": "checkpoint short.pt is damaged",
        "code.pt": "'code.pt' holds more than tensors and plain values; it was not loaded",
        "numbers.pt": "'numbers.pt' is no state dict: 'a' is a int",
        "none.pt": "'none.pt' holds no state dict",
        "nan.pt": "'head.bias' of 'nan.pt' holds values that are not finite",
    }
    for source, message in expected.items():
        with pytest.raises(ConfigError) as raised:
            read(weights_file(source))
        assert str(raised.value).startswith(f"transfer.source: {message}")
        assert "\n" not in str(raised.value)


def test_patterns_that_mean_nothing() -> None:
    """Each setting says which pattern means none of its tensors, what layers there are, and which is near."""
    net = Nested()
    with pytest.raises(
        ConfigError, match=r"^transfer.freeze: 'net.1' means no parameter of Nested; its layers: net.0, net.2"
    ):
        Finetune(freeze=("net.1",)).freeze(net)
    with pytest.raises(
        ConfigError, match=r"^transfer.reset: 'nett' means no tensor of Nested; .*; did you mean 'net'\?$"
    ):
        Finetune(reset=("head", "nett")).load(net, {})
    Finetune(freeze=("body",)).freeze(net)
    with pytest.raises(ConfigError, match=r"^transfer.lr_scale: 'body' means no trainable parameter of Nested"):
        Finetune(lr_scale={"head": 2.0, "body": 0.1}).factors(net)
    assert Finetune(lr_scale={"*.bias": 2.0, "head": 3.0}).factors(net) == {"net.2.bias": 2.0, "net.2.weight": 3.0}


def test_files_of_other_programs(tmp_path: Path) -> None:
    """State dicts alone, beside other things, with the prefixes of wrappers, and of a network that the model holds."""
    net = Nested()
    plain = net.state_dict()
    for number, content in enumerate(
        (
            plain,
            {"state_dict": {f"module.{n}": t for n, t in plain.items()}, "epoch": 3},
            {"model": {f"_orig_mod.{n}": t for n, t in plain.items()}, "lr": 0.1},
        )
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        assert different(read(tmp_path / f"{number}.pt"), plain) == set()
    torch.save(plain, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert different(read(tmp_path / "old.pt"), plain) == set()
    assert different(wrapped(net.net.state_dict(), net), plain) == set()
    assert weights_file(str(tmp_path / "old.pt")) == tmp_path / "old.pt"


def test_renamed_layers() -> None:
    """An encoder's layers under the names of a classifier's; what is mapped to null is left out; halves become floats."""
    state = {
        "encoder.0.weight": torch.ones(3, 2).half(),
        "encoder.0.bias": torch.ones(3),
        "decoder.weight": torch.ones(1),
    }
    state = renamed(state, {"encoder.0": "net.0", "decoder": None})
    assert list(state) == ["net.0.weight", "net.0.bias"]
    net = Nested()
    fresh = fit(net, state, (), "it")
    assert fresh == ["net.2.weight (2x3 here, is not there)", "net.2.bias (2 here, is not there)"]
    assert (net.net[0].weight == 1).all()
    assert net.net[0].weight.dtype == torch.float32
    with pytest.raises(
        ConfigError, match=r"^transfer\.map: nothing in the source is called 'nett'; did you mean 'net'\?$"
    ):
        renamed(net.state_dict(), {"nett": "x"})
    with pytest.raises(
        ConfigError, match=r"^transfer\.map: two tensors of the source would be called 'net\.2\.weight'$"
    ):
        renamed(net.state_dict(), {"net.0": "net.2"})
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ConfigError, match=r"nothing is left of it"):
        fit(net, {}, ("*",), "it")
    with pytest.raises(ConfigError, match=r"net\.0\.bias \(3 here, 4 there\), other \(1 there, is not here\)"):
        fit(net, {"net.0.weight": torch.zeros(3, 2), "net.0.bias": torch.ones(4), "other": torch.ones(1)}, (), "it")
    assert different(before, net.state_dict()) == set()


def test_freezing_what_the_model_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed) -> None:
    """Without a source, layers of torchvision's pretrained weights are frozen, and given rates, by name."""
    from torchvision.models import ResNet18_Weights, resnet18

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(resnet18().state_dict(), tmp_path / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1])
    words = (
        "data=digits",
        "data.limit_train=4",
        *SHORT,
        "model=resnet18",
        "model.pretrained=true",
        "transfer=finetune",
    )
    layers = ("transfer.freeze=[net.conv1,net.bn1,'net.layer[12]']", "transfer.lr_scale={body: 0.1}")
    trainer = build_trainer(composed(*words, *layers), tmp_path / "run")
    names = [n for n, p in trainer.run.model.named_parameters() if p.requires_grad]
    assert {name.split(".")[1] for name in names} == {"layer3", "layer4", "fc"}
    rates = {group["lr"] for group in trainer.built_settings}
    assert rates == {1e-3, 1e-3 * 0.1}
    with pytest.raises(ConfigError, match=r"^model\.pretrained: not together with transfer\.source"):
        build_trainer(composed(*words, "transfer.source=x.pt"), tmp_path / "run")
