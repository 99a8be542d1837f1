"""Every option of every group runs: composed, checked, trained for two steps, saved, loaded, tested (`two_steps`).

Large models are built on the meta device instead. A new option is picked up by itself; the tables hold what some need.
"""

from __future__ import annotations

import math
import runpy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from dlrun import build
from dlrun.catalogue import option_nodes, read_option
from dlrun.losses import DEFAULT_LOSS, LOSSES
from dlrun.models import MODELS
from dlrun.models._summary import count_parameters
from dlrun.registry import ConfigError
from dlrun.settings import options
from dlrun.spec import CLASS_KINDS, Batch, DataSpec, TargetKind, TargetSpec
from dlrun.streams import Stream

SMALL_MODEL = ("model=mlp", "model.hidden=[8]")
LARGE = 5_000_000  # parameters: such models are not trained here

MODEL_NEEDS = {
    "alexnet": ("model.image_size=64",),
    "gaussian": ("loss=gaussian_nll",),
    "googlenet": ("model.image_size=32",),
    "vgg16": ("model.image_size=32",),
}
TASK_NEEDS = {"supervised": SMALL_MODEL, "density": ("model=constant",), "reconstruction": ("model=autoencoder",)}
ACTION_NEEDS = {
    "test": ("run=run",),
    "predict": ("run=run",),
    "profile": ("action.seconds=0.2", "action.variants=false", "device=cpu"),
}
REGULARIZATION_NEEDS = {"code_sparsity": ("model=autoencoder",), "augmentation": ("data=digits", "model=lenet")}
PUBLISHED = {  # data sets below DLRUN_DATA_DIR: overrides, input shape, target
    "mnist": ((), (1, 28, 28), ("class", 10)),
    "fashion_mnist": ((), (1, 28, 28), ("class", 10)),
    "cifar10": ((), (3, 32, 32), ("class", 10)),
    "uci": (("data.dataset=energy", "data.split=19"), (8,), ("real", 1)),
    "image_folder": (("data.path=hymenoptera_small", "data.image_size=48"), (3, 48, 48), ("class", 2)),
}
TABLES = {  # file below tabular/: overrides, number of features, target
    "penguins.csv": (("data.target=species",), 10, ("class", 3)),  # 4 numbers; 3 islands; 2 sexes and "missing"
    "mpg.csv": (("data.target=mpg", "data.drop=[name]"), 9, ("real", 1)),  # 6 numbers, one with gaps; 3 origins
    "iris.csv": (("data.target=-1",), 4, ("class", 3)),
    "wine.data": (("data.target=0",), 13, ("class", 3)),  # no header
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """The overrides of data sets that need a file: a table of all kinds of targets, and twelve small colour images."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 2))
    lines = [f"{a:.3f},{b:.3f},{int(a > 0)},{int(b > 0)},{abs(a + b):.3f}" for a, b in rows]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,left,right,minutes", *lines]))
    for i in range(12):
        path = tmp_path / "pictures" / ("no", "yes")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)
    pictures = ("data=image_folder", f"data.path={tmp_path / 'pictures'}", "data.image_size=32", "data.workers=0")
    table = ("data=csv", f"data.path={tmp_path / 'table.csv'}")
    waits = (*table, "data.target=minutes", "data.drop=[left,right]", "data.kind=non_negative")
    return {"csv": (*table, "data.target=[left,right]"), "image_folder": pictures, "non_negative": waits}


# ---- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["digits", "two_moons", "image_folder"])
@pytest.mark.parametrize("option", options("model"))
def test_model(two_steps, composed, files, monkeypatch: pytest.MonkeyPatch, option: str, inputs: str) -> None:
    """A model trains on small grey images, vectors and colour images, or refuses them; a large one is built only."""
    overrides = (f"model={option}", *MODEL_NEEDS.get(option, ()), *files.get(inputs, (f"data={inputs}",)))
    config = composed(*overrides, "device=cpu", "data.limit_train=8")
    build.check(config)
    spec = build.build_data(config["data"], seed=0, device=torch.device("cpu")).spec
    with monkeypatch.context() as patch:
        parts, refusal = on_meta(patch, config, spec)
        if parts and (large := count_parameters(parts.model) > LARGE):
            step_on_meta(parts)
    if not parts:
        assert refusal.startswith("model.name: ")
        assert not spec.is_image, "takes neither 8x8 nor 32x32, not even as MODEL_NEEDS says"
    elif not large:
        two_steps(*overrides)


@pytest.mark.parametrize("shape", [(3, 64, 64), (5,)], ids=["images", "vectors"])
@pytest.mark.parametrize("option", options("model"))
def test_every_model_with_every_target_and_loss(composed, monkeypatch, option: str, shape: tuple[int, ...]) -> None:
    """Model, target and loss either make a step of the right shapes, or are refused in one line that blames the right one."""
    config = composed(f"model={option}", "device=cpu")
    real_build, built = MODELS.build, dict[tuple[Any, ...], Any]()

    def build_once(node: Any, **context: Any) -> Any:  # the same for many pairs of target and loss
        wanted = tuple(context.items())
        if wanted not in built:
            built[wanted] = model = real_build(node, **context)
            outputs = model.eval()(torch.zeros(4, *shape))
            model.forward = lambda inputs: outputs[: len(inputs)]  # whatever target and loss are
        return built[wanted]

    monkeypatch.setattr(MODELS, "build", build_once)
    takes_shape = takes(config, shape)
    for kind, loss in product(get_args(TargetKind), options("loss")):
        size = {"binary": 1, "sign": 1, "none": 0}.get(kind, 3)
        spec = DataSpec(shape, TargetSpec(kind, size), 8, 4, None, (0.0,) * shape[0], (1.0,) * shape[0])
        config["loss"] = read_option("loss", loss)
        made = {"density": "real", "reconstruction": "unit" if spec.is_image else "real"}
        target = made.get(config["task"]["name"], kind)
        large = config["task"]["name"] == "density" and spec.is_image and loss == "gaussian_full_nll"
        fits = target in kinds_of(loss) and not large
        parts, refusal = on_meta(monkeypatch, config, spec)
        assert (parts is not None) == (fits and takes_shape), (kind, loss, refusal)
        if parts:
            step_on_meta(parts)
        else:
            assert refusal.startswith("model." if fits else "loss.name: "), refusal


def kinds_of(loss: str) -> list[str]:
    """The kinds of target that a loss accepts."""
    return sorted(DEFAULT_LOSS if loss == "auto" else LOSSES.get(loss).kinds)  # type: ignore[attr-defined]


def on_meta(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], spec: DataSpec) -> tuple[build.Parts | None, str]:
    """The parts of an experiment on data of `spec`, without data, on the meta device; or None and the line of its refusal."""
    data = SimpleNamespace(spec=spec, batch_size=4, why_vectors="")
    monkeypatch.setattr(build, "build_data", lambda *args, **kwargs: data)
    monkeypatch.setattr(build, "resolve_device", lambda name: torch.device("meta"))
    try:
        with torch.device("meta"):
            return build.build_parts(config), ""
    except ConfigError as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal
    return None, refusal


def step_on_meta(parts: build.Parts, size: int = 4) -> None:
    """Forward pass, loss and predictions of a batch have the shapes of the contract."""
    spec, target = parts.data.spec, parts.task.target()
    wide = spec.target.kind != "class"
    with torch.device("meta"):
        targets = torch.zeros(size, spec.target.size) if wide else torch.zeros(size, dtype=torch.int64)
        batch = Batch(torch.zeros(size, *spec.input_shape), targets, torch.arange(size))
        result = parts.task(parts.model, batch, Stream(0, "task"))
    assert result.loss.shape == ()
    assert result.outputs.shape == (size, parts.loss.num_outputs)
    assert parts.loss.predict(result.outputs).shape == ((size,) if target.kind == "class" else (size, target.size))
    probabilities, std = parts.loss.probabilities(result.outputs), parts.loss.std(result.outputs)
    assert probabilities is None or (target.kind in CLASS_KINDS and probabilities.shape == (size, target.size))
    assert std is None or std.shape == (size, target.size)


def takes(config: dict[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether the model takes inputs of this shape at all."""
    try:
        with torch.device("meta"):
            MODELS.build(config["model"], input_shape=shape, num_outputs=math.prod(shape))
    except ConfigError:
        return False
    return True


# ---- losses, optimizers, schedulers, tasks, regularization --------------------------------------------------------------

FITTING_DATA = {  # kind of target: overrides
    "class": ("data=blobs", *SMALL_MODEL),
    "binary": ("data=two_moons", *SMALL_MODEL),
    "sign": ("data=xor", "data.labels=sign", *SMALL_MODEL),
    "real": ("data=poly1d", *SMALL_MODEL),
    "unit": ("data=digits", "model=autoencoder"),
}


@pytest.mark.parametrize(("option", "kind"), [(o, k) for o in options("loss") for k in kinds_of(o)])
def test_loss(two_steps, files, option: str, kind: str) -> None:
    """A loss trains on every kind of target it accepts."""
    tables = {"multi_hot": files["csv"], "non_negative": files["non_negative"]}
    data = FITTING_DATA.get(kind) or (*tables[kind], *SMALL_MODEL)
    run = two_steps(*data, f"loss={option}").run
    assert run.task.target().kind == kind


@pytest.mark.parametrize("option", sorted({*options("optimizer")} - {"closed_form"}))
def test_optimizer(two_steps, option: str) -> None:
    """An optimizer trains, and its state is in the checkpoint."""
    two_steps(*SMALL_MODEL, "data=digits", f"optimizer={option}", "optimizer.weight_decay=0.1")


@pytest.mark.parametrize("warmup_epochs", [0, 0.5])
@pytest.mark.parametrize("option", options("scheduler"))
def test_scheduler(two_steps, option: str, warmup_epochs: float) -> None:
    """A schedule trains; a warm-up of half an epoch of two steps halves its first learning rate and leaves the second."""
    trainer = two_steps(*SMALL_MODEL, "data=digits", f"scheduler={option}", f"scheduler.warmup_epochs={warmup_epochs}")
    scheduler = trainer.scheduler
    assert scheduler.factor(0) == scheduler.shape(0) * (0.5 if warmup_epochs else 1.0)
    assert scheduler.factor(1) == scheduler.shape(1)
    assert trainer.run.optimizer.param_groups[0]["lr"] == pytest.approx(
        trainer.built_settings[0]["lr"] * scheduler.factor(1)
    )


@pytest.mark.parametrize("option", options("task"))
def test_task(two_steps, option: str) -> None:
    """A task trains a model that fits it."""
    two_steps("data=digits", *TASK_NEEDS.get(option, ()), f"task={option}")


@pytest.mark.parametrize("option", options("regularization"))
def test_regularization(two_steps, option: str) -> None:
    """A regularizer trains by itself."""
    two_steps(*REGULARIZATION_NEEDS.get(option, ("data=digits", "model=mlp")), f"regularization=[{option}]")


@pytest.mark.parametrize(
    ("model", "missing"),
    [("lenet", {"code_sparsity"}), ("autoencoder", {"dropout", "batch_norm", "label_smoothing"})],
)
def test_regularization_combined(two_steps, model: str, missing: set[str]) -> None:
    """All regularizers that a model can have work together; penalties are reported one by one."""
    chosen = [option for option in options("regularization") if option not in missing]
    trainer = two_steps("data=digits", f"model={model}", f"regularization=[{','.join(chosen)}]")
    assert set(trainer.regularizers) == {option for option in chosen if option_nodes("regularization", option)}
    assert trainer.run.history["train"]["penalty"] > 0
    assert trainer.best.patience == 5
    assert trainer.run.data.settings.augmentation


# ---- data ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", sorted({*options("data")} - {*PUBLISHED} | {"image_folder"}))
def test_data_without_downloads(two_steps, files, option: str) -> None:
    """A generated data set, scikit-learn's digits, or files made here: trained on and tested."""
    two_steps(*files.get(option, (f"data={option}",)), *SMALL_MODEL)


@pytest.fixture(scope="session")
def cifar10(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder above the published batches, unpacked from the strips they are kept as where they are not there."""
    if (data_dir / "cifar-10-batches-py").is_dir():
        return data_dir
    root = tmp_path_factory.mktemp("cifar10")
    runpy.run_path(str(data_dir / "cifar10.py"))["unpack"](root)
    return root


@pytest.mark.parametrize("option", PUBLISHED)
def test_published_data(two_steps, data_dir: Path, request: pytest.FixtureRequest, option: str) -> None:
    """A published data set is read as it lies, trained on, and its test set is opened."""
    overrides, shape, target = PUBLISHED[option]
    root = request.getfixturevalue("cifar10") if option == "cifar10" else data_dir
    trainer = two_steps(f"data={option}", f"data.root={root}", *overrides, *SMALL_MODEL)
    spec = trainer.run.spec
    assert (spec.input_shape, (spec.target.kind, spec.target.size)) == (shape, target)


@pytest.mark.parametrize("table", TABLES)
def test_tables(two_steps, data_dir: Path, table: str) -> None:
    """Real tables with text columns, missing values, and without a header are trained on."""
    overrides, features, target = TABLES[table]
    trainer = two_steps("data=csv", f"data.path={data_dir / 'tabular' / table}", *overrides, *SMALL_MODEL)
    spec = trainer.run.spec
    assert (spec.input_shape, (spec.target.kind, spec.target.size)) == ((features,), target)


# ---- callbacks, actions, trainer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", options("callbacks"))
def test_callbacks(two_steps, option: str) -> None:
    """A callback changes no weight: it only observes."""
    settings = ("data=digits", *SMALL_MODEL, "model.dropout=0.5")
    bare = two_steps(*settings, folder="bare")
    watched = two_steps(*settings, f"callbacks=[{option}]", folder="watched")
    for name, value in bare.run.model.state_dict().items():
        assert torch.equal(watched.run.model.state_dict()[name], value), name


READ_SWEEPS = dict.fromkeys(("compare", "ensemble", "resume_sweep"), ("sweep=sweep",))


@pytest.mark.parametrize("option", options("action"))
def test_action(cli, option: str) -> None:
    """An action ends well, on a run made before where it reads one."""
    made = (
        "data=digits",
        *SMALL_MODEL,
        "trainer.fast_dev_run=true",
        "device=cpu",
        "callbacks=none",
        "hydra.run.dir=run",
    )
    if option in READ_SWEEPS:
        assert cli(*made[:-1], "seed=0,1", "hydra.sweep.dir=sweep", "-m", "hydra/launcher=basic").rc == 0
    elif option in ACTION_NEEDS:
        assert cli(*made).rc == 0
    done = cli(
        f"action={option}", *(made if option == "train" else READ_SWEEPS.get(option) or ACTION_NEEDS.get(option, ()))
    )
    assert done.rc == 0, done.stderr


@pytest.mark.parametrize("option", options("trainer"))
def test_trainer(two_steps, option: str) -> None:
    """A trainer trains."""
    two_steps("data=digits", *SMALL_MODEL, f"trainer={option}")


@pytest.mark.parametrize(
    "setting",
    [
        "accumulate=2", "clip_norm=0.1", "ema_decay=0.5", "swa_start=0.0", "precision=bf16", "precision=fp16", "threads=1",
        "deterministic=true", "log_every_steps=1", "checkpoint_every_steps=1", "monitor=val/accuracy", "patience=1",
        "limit_train_batches=2", "limit_val_batches=1", "limit_test_batches=1", "fast_dev_run=true",
    ],
)  # fmt: skip
def test_trainer_setting(two_steps, setting: str) -> None:
    """A setting of the loop keeps its state in the checkpoint."""
    two_steps("data=digits", *SMALL_MODEL, "model.batch_norm=true", f"trainer.{setting}")
