"""Rows of the curriculum that are about data, run as a user runs them: from the command line to the results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrun import checkpoint
from dlrun.data.affine import Affine
from dlrun.data.gaussians import Gaussians

QUICK = ("device=cpu", "callbacks=none")
LINEAR = ("model=linear", "optimizer.lr=0.1", "trainer.epochs=3", *QUICK)


@pytest.fixture
def trained(cli, tmp_path: Path) -> Callable[..., dict[str, float]]:
    """Trains, and gives the metrics of the test set: `trained("data=xor", ..., folder="run")`."""

    def run(*words: str, folder: str = "run") -> dict[str, float]:
        done = cli(*words, f"hydra.run.dir={folder}")
        assert done.rc == 0, done.stderr
        return json.loads((tmp_path / folder / "results.json").read_text())["metrics"]["test"]

    return run


@pytest.fixture
def predictions(cli, tmp_path: Path) -> Callable[..., list[dict[str, str]]]:
    """The rows that `action=predict` writes for new inputs of a run."""

    def predict(inputs: torch.Tensor, folder: str = "run") -> list[dict[str, str]]:
        (tmp_path / "new.txt").write_text("\n".join(" ".join(map(repr, row)) for row in inputs.tolist()))
        done = cli("action=predict", f"run={folder}", "action.input=new.txt")
        assert done.rc == 0, done.stderr
        with (tmp_path / folder / "predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return predict


def weights(folder: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias (None: none) of a run's linear model, float64."""
    model = checkpoint.load(folder / "checkpoints" / "best.pt")["model"]
    found = {name.rsplit(".", 1)[1]: value.double() for name, value in model.items()}
    return found["weight"], found.get("bias")


@pytest.mark.curriculum("D13", "T26")
def test_rings_become_separable_in_polar_coordinates(trained, predictions):
    """Logistic regression on two concentric rings: chance on (x, y), all right on (r, theta), which new points get too."""
    assert 0.4 < trained("data=circles", *LINEAR, folder="plain")["accuracy"] < 0.6
    assert trained("data=circles", "data.transform={polar: {}}", *LINEAR)["accuracy"] > 0.99
    angle = torch.linspace(0, 6, 13)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    rows = predictions(torch.cat([0.5 * ring, ring]))
    assert [row["class"] for row in rows] == ["1"] * 13 + ["0"] * 13


@pytest.mark.curriculum("D14", "M08")
def test_logistic_regression_on_fixed_basis_functions(trained, predictions, tmp_path: Path):
    """The circles are separable after (x1^2, x2^2, sqrt(2) x1 x2), and the probability of a new point is
    1 / (1 + exp(-(w.phi(x) + b))) with the weights of the checkpoint."""
    chosen = "data.transform={basis: {functions: [quadratic_kernel]}}"
    assert trained("data=circles", chosen, "data.normalize=unit", *LINEAR)["accuracy"] > 0.99
    x = torch.tensor([[0.3, -0.2], [0.9, 0.4], [0.0, 0.75], [-1.0, 0.1]], dtype=torch.float64)
    phi = torch.stack([x[:, 0] ** 2, x[:, 1] ** 2, 2**0.5 * x[:, 0] * x[:, 1]], 1)
    w, b = weights(tmp_path / "run")
    expected = 1 / (1 + np.exp(-(phi @ w[0] + b).numpy()))
    assert [float(row["p_1"]) for row in predictions(x)] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.curriculum("D16")
def test_pca_before_a_classifier(trained, cli, tmp_path: Path):
    """Twenty of 64 directions serve softmax regression on digits; the saved run is tested again with the same directions, and
    without them, or with others, it is refused."""
    words = ("data=digits", "data.transform={pca: {components: 20}}", "model=linear", "trainer.epochs=6", *QUICK)
    found = trained(*words, "optimizer.lr=0.02")
    assert found["accuracy"] > 0.9
    done = cli("action=test", "run=run")
    assert (done.rc, f"{found['loss']:.6g}" in done.stdout) == (0, True), done.stderr
    done = cli("action=test", "run=run", "data.transform={pca: {components: 19}}")
    assert done.rc == 1
    assert done.stderr.strip().startswith(
        "dlrun: data.transform: got {'pca': {'components': 19}}; the model was trained"
    )
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("chosen", ["{pca: {components: 5, whiten: true}, polynomial: {degree: 2}}", "{constant: {}}"])
def test_a_transformed_run_is_resumed_exactly(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen):
    """Stopped in mid-epoch and resumed, a run on transformed inputs ends bit for bit like a whole one."""
    from dlrun.tasks.supervised import Supervised

    step, calls = Supervised.__call__, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return step(self, *arguments)

    words = ("data=digits", "model=linear", "data.limit_train=200", "trainer.epochs=2", "device=cpu",
             "callbacks=[metrics_file]", f"data.transform={chosen}", "trainer.checkpoint_every_steps=4")  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(Supervised, "__call__", interrupted)
        assert cli(*words, "hydra.run.dir=run").rc == 130
    resumed = cli("resume=run")
    assert resumed.rc == 0
    assert "not those of the checkpoint" not in resumed.stderr
    assert cli(*words, "hydra.run.dir=whole").rc == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    ours, theirs = (checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("run", "whole"))
    assert ours["data"] == theirs["data"]
    assert all(torch.equal(value, theirs["model"][name]) for name, value in ours["model"].items())


@pytest.mark.curriculum("D05")
def test_the_bias_trick(trained, predictions, tmp_path: Path):
    """A linear model with a bias, and one without on (x, 1), learn the same weights; without both, whatever it has learnt, the
    boundary goes through the origin: x and -x get the probabilities p and 1 - p, and 0 gets one half."""
    words = ("data=gaussians", "data.samples=500", "data.prior=0.2", "model=linear", "model.init=zeros",
             "optimizer=sgd", "optimizer.lr=1", "trainer.epochs=2", *QUICK)  # fmt: skip
    with_bias = trained(*words, folder="bias")
    trick = trained(*words, "model.bias=false", "data.transform={constant: {}}", folder="trick")
    trained(*words, "model.bias=false", "data.normalize=unit", folder="without")
    assert trick["loss"] == pytest.approx(with_bias["loss"], rel=1e-5)
    (w, b), (appended, none) = weights(tmp_path / "bias"), weights(tmp_path / "trick")
    assert none is None
    torch.testing.assert_close(appended, torch.cat([w, b[:, None]], 1), atol=1e-5, rtol=0)
    assert b.item() < -0.5  # the second class is rare
    assert weights(tmp_path / "without")[1] is None
    x = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, -0.5], [3.0, -2.0], [-3.0, 2.0]])
    p = [float(row["p_1"]) for row in predictions(x, "without")]
    assert p[0] == 0.5
    assert p[1] + p[2] == pytest.approx(1, abs=1e-6)
    assert p[3] + p[4] == pytest.approx(1, abs=1e-6)
    assert [float(row["p_1"]) for row in predictions(x, "trick")] == pytest.approx(
        [float(row["p_1"]) for row in predictions(x, "bias")], abs=1e-5
    )


@pytest.mark.curriculum("D15", "M02")
def test_polynomial_regression_by_gradient(trained, tmp_path: Path):
    """A line fits a cubic badly, its monomials of degree 3 fit it to the noise."""
    words = (
        "data=poly1d",
        "data.coefficients=[0.5,1,-2,4]",
        "optimizer.lr=0.1",
        "data.batch_size=128",
        "trainer.epochs=30",
        "model=linear",
        *QUICK,
    )
    line = trained(*words, "data.transform={polynomial: {degree: 1}}", folder="line")
    cubic = trained(*words, "data.transform={polynomial: {degree: 3}}")
    assert weights(tmp_path / "run")[0].shape == (1, 4)
    assert line["rmse"] > 0.4
    assert 0.08 < cubic["rmse"] < 0.12


@pytest.mark.curriculum("T05")
def test_gradient_descent_finds_the_affine_map(trained, tmp_path: Path):
    """On affine data without noise, SGD ends at A and b, which is what the pseudoinverse gives, to 1e-4 in original units."""
    words = (
        "data=affine",
        "data.samples=500",
        "optimizer=sgd",
        "optimizer.lr=0.2",
        "scheduler=constant",
        "trainer.epochs=15",
    )
    assert trained(*words, "model=linear", *QUICK)["rmse"] < 1e-4
    source = Affine(0, samples=500)
    samples, _ = source.train()
    lifted = torch.cat([samples.inputs.double(), torch.ones(500, 1, dtype=torch.float64)], 1)
    pinv = torch.linalg.pinv(lifted) @ samples.targets.double()
    spec = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["data"]["spec"]
    mean, std, t_mean, t_std = (torch.tensor(v, dtype=torch.float64) for v in
                                (spec["mean"], spec["std"], spec["target"]["mean"], spec["target"]["std"]))  # fmt: skip
    w, b = weights(tmp_path / "run")
    a = t_std[:, None] * w / std
    offset = t_std * b + t_mean - a @ mean
    torch.testing.assert_close(torch.cat([a, offset[:, None]], 1), pinv.T, atol=1e-4, rtol=0)
    true = torch.cat([source.weights()[0], source.weights()[1][:, None]], 1)
    torch.testing.assert_close(pinv.T, true, atol=1e-6, rtol=1e-6)


@pytest.mark.curriculum("T02", "M04")
@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_detection_reaches_the_bayes_accuracy(trained, predictions, prior):
    """Logistic regression on two Gaussian classes is as accurate as the best classifier to 1 %, with one probability in (0, 1)
    for each sample, near the known posterior, and the class that is the more probable."""
    found = trained("data=gaussians", "data.samples=20000", f"data.prior={prior}", *LINEAR, "data.batch_size=256")
    truth = Gaussians(0, prior=prior)
    assert abs(found["accuracy"] - truth.bayes_accuracy()) < 0.01
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * 2
    rows = predictions(x)
    p = torch.tensor([float(row["p_1"]) for row in rows], dtype=torch.float64)
    assert ((p > 0) & (p < 1)).all()
    assert (p - truth.posterior(x)).abs().mean() < 0.02
    assert [row["class"] == "1" for row in rows] == (p > 0.5).tolist()


@pytest.mark.curriculum("T06")
def test_several_labels_of_a_table(trained, cli, tmp_path: Path):
    """Two columns of 0 and 1 are two detectors: each is learnt, and a sample may have both labels, one or none."""
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    rows = [f"{a:.4f},{b:.4f},{int(a > 0)},{int(b > 0.5)}" for a, b in x.tolist()]
    (tmp_path / "table.csv").write_text("\n".join(["x1,x2,left,right", *rows]))
    words = ("data=csv", "data.path=table.csv", "data.target=[left,right]", "model=mlp", "model.hidden=[16]")
    found = trained(*words, "model.dropout=0", "optimizer.lr=0.05", "trainer.epochs=8", *QUICK)
    assert found["accuracy"] > 0.9
    assert found["f1"] > 0.9
    (tmp_path / "new.csv").write_text("x1,x2\n2,2\n2,-2\n-2,2\n-2,-2\n")
    assert cli("action=predict", "run=run", "action.input=new.csv").rc == 0
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        detected = [[float(row[f"p_{label}"]) > 0.5 for label in ("left", "right")] for row in csv.DictReader(file)]
    assert detected == [[True, True], [True, False], [False, True], [False, False]]


@pytest.mark.curriculum("T03")
def test_labels_of_minus_and_plus_one(cli, trained, tmp_path: Path):
    """The perceptron takes targets -1 and +1, and gives the predictions that it gives for the same data with 0 and 1."""
    words = (
        "data=xor",
        "data.function=or",
        "model=linear",
        "loss=perceptron",
        "optimizer=sgd",
        "trainer.epochs=5",
        *QUICK,
    )
    found = {name: trained(*words, f"data.labels={name}", folder=name) for name in ("binary", "sign")}
    assert found["sign"]["accuracy"] == found["binary"]["accuracy"] > 0.97
    classes = {}
    for name in found:
        assert cli("action=predict", f"run={name}").rc == 0
        with (tmp_path / name / "predictions.csv").open(newline="") as file:
            classes[name] = [row["class"] for row in csv.DictReader(file)]
    assert set(classes["sign"]) == {"-1", "+1"}
    assert [{"-1": "0", "+1": "1"}[name] for name in classes["sign"]] == classes["binary"]


@pytest.mark.curriculum("T26", "P30")
def test_xor_needs_a_hidden_layer(trained):
    """A linear model gets at most three of the four clusters right, a 2-2-1 ReLU network all of them."""
    assert trained("data=xor", "data.samples=500", *LINEAR, folder="linear")["accuracy"] <= 0.76
    words = (
        "data=xor",
        "model=mlp",
        "model.hidden=[2]",
        "model.activation=relu",
        "model.dropout=0",
        "optimizer.lr=0.1",
    )
    assert trained(*words, "data.samples=500", "trainer.epochs=8", *QUICK)["accuracy"] > 0.99


@pytest.mark.curriculum("T21", "T20")
def test_a_table_of_mixed_columns_trains_an_mlp(trained, cli, tmp_path: Path):
    """A numeric and a categorical column decide the class together: an MLP learns it, and predicts rows of a new file."""
    generator = np.random.default_rng(0)
    lines = ["size,colour,note,ripe"]
    for size, colour in zip(generator.normal(size=600), generator.choice(["red", "green", "blue"], 600), strict=True):
        ripe = size > {"red": -0.5, "green": 1.0, "blue": 0.0}[colour]
        lines.append(f"{'' if size > 2.2 else f'{size:.3f}'},{colour},,{'yes' if ripe else 'no'}")
    (tmp_path / "fruit.csv").write_text("\n".join(lines) + "\n")
    words = (
        "data=csv",
        "data.path=fruit.csv",
        "data.target=ripe",
        "data.drop=[note]",
        "model=mlp",
        "model.hidden=[16]",
    )
    assert trained(*words, "optimizer.lr=0.02", "trainer.epochs=15", *QUICK)["accuracy"] > 0.93
    spec = checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt")["data"]["spec"]
    assert spec["feature_names"] == ("size", "colour=blue", "colour=green", "colour=red")  # as many as there are levels
    (tmp_path / "new.csv").write_text("colour,size\nred,0.5\ngreen,0.5\nblue,-2\n")
    assert cli("action=predict", "run=run", "action.input=new.csv").rc == 0
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["yes", "no", "no"]


@pytest.mark.curriculum("D18")
def test_without_a_gpu_the_cpu_is_used(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """device=auto trains on the CPU where there is no GPU, with the numbers of device=cpu."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ("data=blobs", "model=linear", "trainer.steps=3", "callbacks=none")
    for device in ("auto", "cpu"):
        done = cli(*words, f"device={device}", f"hydra.run.dir={device}")
        assert done.rc == 0, done.stderr
    auto, cpu = (json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in ("auto", "cpu"))
    assert auto == cpu
    assert cli(*words, "device=cuda").rc == 1


@pytest.mark.cuda
@pytest.mark.curriculum("D18")
@pytest.mark.parametrize(
    "words", [("data=digits", "model=lenet"), ("data=circles", "data.transform={polar: {}}", "model=mlp")]
)
def test_the_first_loss_is_the_same_on_a_gpu(cli, tmp_path: Path, words):
    """The loss of the first minibatch on CPU and CUDA agrees to 1e-4."""
    losses = []
    for device in ("cpu", "cuda"):
        quick = ("trainer.steps=1", "callbacks=[metrics_file]", "trainer.log_every_steps=1", "model.dropout=0")
        assert cli(*words, *quick, f"device={device}", f"hydra.run.dir={device}").rc == 0
        losses.append(json.loads((tmp_path / device / "results.json").read_text())["metrics"]["train"]["loss"])
    assert abs(losses[0] - losses[1]) < 1e-4


@pytest.mark.curriculum("T19", "T04")
def test_grey_and_colour_images_with_the_same_words(cli, tmp_path: Path):
    """The same model, without a change, takes images of one channel in ten classes and of three channels in two."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    sets = {"grey": ("data=digits",), "colour": ("data=image_folder", "data.path=photos", "data.image_size=16")}
    shapes = {}
    for name, words in sets.items():
        done = cli(*words, "model=cnn", "trainer.steps=1", "data.limit_train=16", *QUICK, f"hydra.run.dir={name}")
        assert done.rc == 0, done.stderr
        state = checkpoint.load(tmp_path / name / "checkpoints" / "last.pt")
        model = list(state["model"].values())
        shapes[name] = state["data"]["spec"]["input_shape"], model[0].shape[1], len(model[-1])
    assert shapes == {"grey": ((1, 8, 8), 1, 10), "colour": ((3, 16, 16), 3, 2)}


@pytest.mark.curriculum("T29")
@pytest.mark.parametrize(
    ("columns", "words", "loss", "metric"),
    [
        ("weight,height,breed", ("data.target=breed",), "ce", "accuracy"),  # which breed of dog
        ("left,right,yaw,pitch", ("data.target=[yaw,pitch]",), "l2", "rmse"),  # where a head is turned
        ("red,green,tree,car", ("data.target=[tree,car]",), "bce", "accuracy"),  # what an image shows, several at once
        ("words,links,spam", ("data.target=spam",), "bce", "accuracy"),  # spam or not
    ],
)
def test_one_example_of_each_task(cli, tmp_path: Path, columns, words, loss, metric):
    """Classification, regression, multi-label and detection: the table's target decides the loss, and with it the metrics."""
    cells = {"breed": ["poodle", "beagle", "husky"], "yaw": ["-31.5", "12.25", "4"], "pitch": ["0.5", "-7", "3"]}
    rows = [
        ",".join(str(row * 7 % 11) if i < 2 else cells.get(name, ["0", "1", "1"])[(row + i) % 3] for i, name in
                 enumerate(columns.split(","))) for row in range(60)
    ]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join([columns, *rows]) + "\n")
    done = cli(
        "data=csv",
        "data.path=t.csv",
        *words,
        "model=mlp",
        "model.hidden=[8]",
        "trainer.steps=2",
        *QUICK,
        "hydra.run.dir=r",
    )
    assert done.rc == 0, done.stderr
    assert metric in json.loads((tmp_path / "r" / "results.json").read_text())["metrics"]["test"]
    assert f"name: {loss}\n" in (tmp_path / "r" / ".hydra" / "config.yaml").read_text().split("loss:", 1)[1]
