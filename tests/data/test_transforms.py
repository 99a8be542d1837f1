"""Feature transforms against scikit-learn and hand-made references, and how the data module applies them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn import decomposition
from sklearn.preprocessing import PolynomialFeatures

from dlrun import checkpoint
from dlrun.data import _pipeline
from dlrun.data._base import Samples, Source
from dlrun.data._module import DataModule, build_data, check_data
from dlrun.data._pipeline import Pipeline
from dlrun.data._settings import DataSettings
from dlrun.data._transform import TRANSFORMS, from_text, to_text
from dlrun.registry import ConfigError, settings_of
from dlrun.spec import TargetSpec

CPU = torch.device("cpu")
EVERY = {
    "polar": {},
    "basis": {"functions": ["x", "sin", "quadratic_kernel"]},
    "polynomial": {"degree": 3},
    "pca": {"components": 2, "whiten": True},
    "constant": {},
}


class Table(Source):
    """Given inputs with one real target."""

    def __init__(self, inputs: torch.Tensor, names: tuple[str, ...] = ()) -> None:
        self.inputs, self.feature_names = inputs, names

    def train(self):
        return Samples(self.inputs, torch.arange(float(len(self.inputs)))[:, None]), TargetSpec("real", 1)


def points(n: int = 300, features: int = 2) -> torch.Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(1))


def module(inputs: torch.Tensor, names=(), **settings) -> DataModule:
    return DataModule(Table(inputs, names), DataSettings(**settings), seed=0, device=CPU)


def whole(data: DataModule, name: str) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in data.split(name)])


def apply(name: str, inputs: torch.Tensor, **settings) -> torch.Tensor:
    """What one transform gives for float64 inputs."""
    shape = tuple(inputs.shape[1:])
    return TRANSFORMS.build({"name": name, **settings}, input_shape=shape)(inputs.double())


def test_the_table_of_transforms_is_complete():
    """Every transform is in the table that the tests below go through, and each of its settings is documented."""
    assert set(EVERY) == set(TRANSFORMS.names())
    for name in TRANSFORMS.names():
        assert len((TRANSFORMS.get(name).__doc__ or "").splitlines()[0]) > 10
        assert all(setting.help for setting in settings_of(TRANSFORMS.get(name)).values())


@pytest.mark.curriculum("D13")
def test_polar_by_hand():
    """Radius and angle of points on the axes and the diagonal, also around another centre."""
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    expected = [[1, 0], [2, math.pi / 2], [3, math.pi], [1, -math.pi / 2], [math.sqrt(2), math.pi / 4], [0, 0]]
    torch.testing.assert_close(apply("polar", x), torch.tensor(expected, dtype=torch.float64))
    moved = apply("polar", x + torch.tensor([5.0, -7.0]), centre=[5.0, -7.0])
    torch.testing.assert_close(moved, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.curriculum("D14")
def test_basis_functions_are_those_of_numpy():
    """Each function is NumPy's, function by function, feature by feature."""
    x = points(50).abs() + 0.1
    functions = ["square", "sin", "log", "x", "cube", "sqrt", "abs", "cos", "exp"]
    v = x.double().numpy()
    expected = [v**2, np.sin(v), np.log(v), v, v**3, np.sqrt(v), np.abs(v), np.cos(v), np.exp(v)]
    np.testing.assert_allclose(apply("basis", x, functions=functions), np.hstack(expected), rtol=1e-14)


@pytest.mark.curriculum("D14")
@pytest.mark.parametrize("features", [1, 2, 5])
def test_quadratic_kernel(features):
    """phi(x).phi(x') = (x.x')^2; for two features phi is (x1^2, x2^2, sqrt(2) x1 x2)."""
    x = points(20, features).double()
    phi = apply("basis", x, functions=["quadratic_kernel"])
    torch.testing.assert_close(phi @ phi.T, (x @ x.T) ** 2)
    assert phi.shape[1] == features * (features + 1) // 2
    if features == 2:
        torch.testing.assert_close(phi, torch.stack([x[:, 0] ** 2, x[:, 1] ** 2, math.sqrt(2) * x[:, 0] * x[:, 1]], 1))


@pytest.mark.curriculum("D15")
@pytest.mark.parametrize(("features", "degree", "count"), [(2, 2, 6), (3, 3, 20), (10, 2, 66), (1, 9, 10), (4, 5, 126)])
@pytest.mark.parametrize("constant", [True, False])
def test_polynomial_equals_scikit_learn(features, degree, count, constant):
    """C(D + K, K) monomials in scikit-learn's order, with and without the constant; models are built for so many."""
    x = points(30, features)
    ours = apply("polynomial", x, degree=degree, include_constant=constant)
    theirs = PolynomialFeatures(degree, include_bias=constant).fit_transform(x.double().numpy())
    assert ours.shape[1] == count - (not constant)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    node = {"name": "affine", "features": features, "samples": 20, "val_fraction": 0.5}
    chosen = {"polynomial": {"degree": degree, "include_constant": constant}}
    assert build_data({**node, "transform": chosen}, seed=0, device=CPU).spec.input_shape == (count - (not constant),)


def test_names_of_features():
    """Names tell what a feature has been made of, as scikit-learn's do for polynomials."""
    x = points(40)
    names = ("a", "b")
    data = module(x, names, transform={"polynomial": {"degree": 3}})
    theirs = PolynomialFeatures(3).fit(x.numpy()).get_feature_names_out(["a", "b"])
    assert data.spec.feature_names == tuple(theirs)
    chain = {"basis": {"functions": ["x", "log", "quadratic_kernel"]}, "constant": {}}
    found = module(x.abs(), names, transform=chain).spec.feature_names
    assert found == ("a", "b", "log(a)", "log(b)", "a^2", "b^2", "sqrt(2) a b", "1")
    assert module(x, names, transform={"polar": {}}).spec.feature_names == ("r", "theta")
    assert module(x, (), transform={"polar": {}}).spec.feature_names == ()


@pytest.mark.curriculum("D16")
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_equals_scikit_learn_fitted_on_the_training_rows(whiten):
    """Coordinates of all splits are, up to the sign of a direction, those of scikit-learn fitted on the training rows alone;
    whitened by the deviation with 1/N."""
    from sklearn.datasets import load_digits

    node = {"name": "digits", "transform": {"pca": {"components": 10, "whiten": whiten}}, "normalize": "unit"}
    data = build_data(node, seed=0, device=CPU)
    assert data.spec.input_shape == (10,)
    pixels = np.round(load_digits().data * 255 / 16) / 255
    rows = {
        name: data.source_rows(name, list(range(count)))
        for name, count in (("train", data.spec.num_train), ("val", data.spec.num_val), ("test", data.spec.num_test))
    }
    reference = decomposition.PCA(10, svd_solver="full", whiten=whiten).fit(pixels[rows["train"]])
    n = data.spec.num_train
    for name in rows:
        ours, theirs = whole(data, name).numpy(), reference.transform(pixels[rows[name]])
        if whiten:
            theirs = theirs * math.sqrt(n / (n - 1))
        signs = np.sign((ours * theirs).sum(0))
        np.testing.assert_allclose(ours * signs, theirs, atol=2e-5)


def test_pca_directions_have_a_fixed_sign():
    """The largest entry of every direction is positive, so that the coordinates do not depend on the solver's choice."""
    x = points(200, 6) @ torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    stage = Pipeline({"pca": {"components": 6}}, (6,))
    stage.fit(Samples(x, x))
    directions = stage.stages[0][1].directions
    assert (directions.gather(0, directions.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(directions.T @ directions, torch.eye(6, dtype=torch.float64))


@pytest.mark.curriculum("D16")
def test_fitted_on_the_training_split_only():
    """Whatever the validation and test rows are, the training batches and the fitted state are the same."""
    x = points(300, 4)
    chosen = {"pca": {"components": 3}}
    data = module(x, transform=chosen)
    held_out = data.source_rows("val", list(range(data.spec.num_val)))
    held_out += data.source_rows("test", list(range(data.spec.num_test)))
    other = x.clone()
    other[held_out] = other[held_out] * 5 - 3
    changed = module(other, transform=chosen)
    assert changed.state_dict() == data.state_dict()
    assert torch.equal(whole(changed, "train"), whole(data, "train"))
    assert not torch.equal(whole(changed, "val"), whole(data, "val"))
    everything = whole(module(x, transform=chosen, normalize="unit"), "train")
    torch.testing.assert_close(everything.mean(0), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.curriculum("D05")
@pytest.mark.parametrize("normalize", ["standardize", "unit"])
@pytest.mark.parametrize(
    "chosen", [{"constant": {}}, {"polynomial": {"degree": 2}}, {"constant": {}, "polynomial": {"degree": 2}}]
)
def test_the_constant_stays_one(normalize, chosen):
    """The appended 1, the monomial of degree 0 and products of ones are 1 in every split and in new samples; all other
    features are standardised."""
    x = points() * 3 + 5
    data = module(x, transform=chosen, normalize=normalize)
    expected = {1: [-1], 2: [0, 3, 9]}[len(chosen)] if "constant" in chosen else [0]
    parts = [whole(data, name) for name in ("train", "val", "test")] + [data.transform(x[:3])]
    for part in parts:
        assert (part[:, expected] == 1).all()
        assert int((part == 1).all(0).sum()) == len(expected)
    if normalize == "standardize":
        others = [i for i in range(parts[0].shape[1]) if i not in {e % parts[0].shape[1] for e in expected}]
        torch.testing.assert_close(parts[0][:, others].mean(0), torch.zeros(len(others)), atol=1e-5, rtol=0)
        torch.testing.assert_close(parts[0][:, others].std(0, correction=0), torch.ones(len(others)), atol=1e-5, rtol=0)


def test_without_a_transform_a_constant_is_centred_as_ever():
    """A column of ones in the data themselves still becomes 0."""
    x = torch.cat([points(), torch.ones(300, 1)], 1)
    assert (whole(module(x), "train")[:, 2] == 0).all()


@pytest.mark.parametrize("name", sorted(EVERY))
def test_state_goes_through_checkpoint_and_json(tmp_path, name):
    """A module that is given the saved state treats data bit for bit alike, without reading the training data first."""
    x = points()
    x[::9, 1] = float("nan")
    data = module(x, transform={name: EVERY[name]})
    checkpoint.save(tmp_path / "state.pt", {"data": data.state_dict()})
    loaded = checkpoint.load(tmp_path / "state.pt")["data"]
    assert loaded == data.state_dict()
    for state in (loaded, json.loads(json.dumps(data.state_dict()))):

        class Unread(Table):
            def train(self):
                raise AssertionError("read")

        settings = DataSettings(transform={name: EVERY[name]})
        restored = DataModule(Unread(x), settings, seed=0, device=CPU, state=state)
        assert torch.equal(restored.transform(x), data.transform(x))
        assert restored.spec == data.spec
    again = DataModule(Table(x), settings, seed=0, device=CPU, state=loaded)
    for split in ("train", "val", "test"):
        assert torch.equal(whole(again, split), whole(data, split))
    assert torch.equal(whole(data, "val"), data.transform(x[data.source_rows("val", list(range(data.spec.num_val)))]))


def test_state_of_older_runs():
    """Without a transform the saved state has the form it had before there were any, and such a state is taken back."""
    data = module(points())
    assert set(data.state_dict()) == {"spec", "fill", "source"}
    DataModule(Table(points()), DataSettings(), seed=0, device=CPU, state=data.state_dict())


@pytest.mark.parametrize(
    ("trained", "given"),
    [
        ({"pca": {"components": 2}}, {"pca": {"components": 1}}),
        ({"pca": {"components": 2}}, None),
        (None, {"polar": {}}),
        ({"polar": {}, "constant": {}}, {"constant": {}, "polar": {}}),
    ],
)
def test_another_transform_than_in_training_is_refused(trained, given):
    """A trained model gets the features it was trained on, or none."""
    state = module(points(), transform=trained).state_dict()
    with pytest.raises(
        ConfigError, match=r"^data\.transform: got .*; the model was trained with .*must stay as it is$"
    ):
        DataModule(Table(points()), DataSettings(transform=given), seed=0, device=CPU, state=state)


def test_missing_values_are_filled_before():
    """A missing number is the training mean of its column before any function of it is taken."""
    x = points() + 2
    x[::4, 0] = float("nan")
    data = module(x, transform={"basis": {"functions": ["square"]}}, normalize="unit")
    train = data.source_rows("train", list(range(data.spec.num_train)))
    mean = float(x[train, 0].nanmean())
    assert data.transform(torch.tensor([[float("nan"), 3.0]]))[0].tolist() == pytest.approx([mean**2, 9.0])


def test_order_and_entries_that_are_off():
    """Transforms apply in the order written; null switches one off; an empty mapping is none."""
    x = points()
    squares_last = module(x, transform={"polar": {}, "basis": {"functions": ["square"]}}, normalize="unit")
    squares_first = module(x, transform={"basis": {"functions": ["square"]}, "polar": {}}, normalize="unit")
    one = x[:1].double()
    r, theta = float(one.norm()), float(torch.atan2(one[0, 1], one[0, 0]))
    assert squares_last.transform(x[:1])[0].tolist() == pytest.approx([r**2, theta**2], rel=1e-6)
    assert squares_first.transform(x[:1])[0, 0].item() == pytest.approx(float((one**2).norm()), rel=1e-6)
    off = module(x, transform={"polar": None})
    assert torch.equal(whole(off, "train"), whole(module(x, transform={}), "train"))
    assert torch.equal(whole(off, "train"), whole(module(x), "train"))


@pytest.mark.parametrize("values", [1, 100])
def test_pieces_change_nothing(monkeypatch, values):
    """How many samples are transformed at a time changes nothing but rounding."""
    x = points()
    expected = whole(module(x, transform={"polynomial": {"degree": 3}, "pca": {"components": 4}}), "train")
    monkeypatch.setattr(_pipeline, "VALUES", values)
    found = whole(module(x, transform={"polynomial": {"degree": 3}, "pca": {"components": 4}}), "train")
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loader", ["resident", "streaming"])
@pytest.mark.parametrize("name", ["basis", "polynomial", "pca", "constant"])
def test_images_are_flattened(loader, name):
    """Images become vectors of features of their values in [0, 1], with either loader and with noise as augmentation."""
    settings = {**EVERY[name], "degree": 2} if name == "polynomial" else EVERY[name]
    node = {"name": "digits", "limit_train": 100, "loader": loader, "transform": {name: settings}, "normalize": "unit"}
    data = build_data(node, seed=0, device=CPU)
    sizes = {"basis": 64 + 64 + 64 * 65 // 2, "polynomial": math.comb(66, 2), "pca": 2, "constant": 65}
    assert data.spec.input_shape == (sizes[name],)
    assert not data.spec.is_image
    raw = data.source.train()[0].inputs[data.source_rows("val", [0, 1])]
    if name in ("basis", "constant"):
        expected = (raw.double() / 255).float().flatten(1)
        assert torch.equal(whole(data, "val")[:2, :64], expected)
    assert torch.equal(data.transform(raw), whole(data, "val")[:2])
    noisy = build_data({**node, "augmentation": {"noise": {"std": 0.5}}}, seed=0, device=CPU)
    assert next(iter(noisy.epoch(0))).inputs.shape[1:] == (sizes[name],)


def test_sequences_are_flattened():
    """A sequence (C, L) becomes its C * L values."""
    node = {"name": "adding", "length": 4, "samples": 50, "transform": {"constant": {}}, "normalize": "unit"}
    data = build_data(node, seed=0, device=CPU)
    assert data.spec.input_shape == (9,)
    raw = data.source.train()[0].inputs[:5]
    assert torch.equal(data.transform(raw)[:, :8], raw.flatten(1))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"polr": {}}, r"data\.transform: unknown 'polr'; allowed: .*did you mean 'polar'\?"),
        ({"polynomial": {"deg": 2}}, r"data\.transform\.polynomial\.deg: unknown setting .*allowed: degree"),
        ({"polynomial": {"degree": 0}}, r"data\.transform\.polynomial\.degree: got 0; expected int >= 1"),
        ({"polynomial": {"degree": 2.0}}, r"data\.transform\.polynomial\.degree: got 2\.0"),
        ({"pca": {"components": 0}}, r"data\.transform\.pca\.components: got 0"),
        ({"basis": {"functions": []}}, r"data\.transform\.basis\.functions: got \[\]"),
        ({"basis": {"functions": ["sine"]}}, r"data\.transform\.basis\.functions\.0: got 'sine'"),
        ({"basis": {"functions": "sin"}}, r"data\.transform\.basis\.functions: got 'sin'"),
        ({"polar": {"centre": [0.0]}}, r"data\.transform\.polar\.centre"),
        ({"constant": {"input_shape": 3}}, r"data\.transform\.constant\.input_shape: is set by dlrun itself"),
        ({"constant": 3}, r"data\.transform"),
        ("polar", r"data\.transform: got 'polar'"),
    ],
)
def test_wrong_settings_are_refused_before_data_are_read(node, message):
    """A misspelt name or setting, a wrong type or value is one line with the dotted key; no file is touched."""
    with pytest.raises(ConfigError, match=message) as caught:
        check_data({"name": "csv", "path": "nowhere.csv", "target": "y", "transform": node})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "node", "message"),
    [
        (
            points(40, 3),
            {"polar": {}},
            r"data\.transform\.polar: needs vectors of 2 features, but inputs have 3 features",
        ),
        (torch.zeros(40, 1, 8, 8, dtype=torch.uint8), {"polar": {}}, r"2 features, but inputs have shape \(1, 8, 8\)"),
        (
            points(40, 784),
            {"polynomial": {"degree": 5}},
            r"polynomial: makes 2,515,874,132,157 features of 784; at most",
        ),
        (points(40, 3), {"pca": {"components": 4}}, r"pca\.components: got 4; at most 3, the number of features"),
        (
            points(10, 30),
            {"pca": {"components": 8}},
            r"pca\.components: got 8; the 7 training samples vary in 6 directions",
        ),
        (points(40, 1).expand(40, 3), {"pca": {"components": 2}}, r"samples vary in 1 direction$"),
        (torch.ones(40, 3), {"pca": {"components": 1}}, r"samples vary in 0 directions"),
        (torch.zeros(8, 5000), {"pca": {"components": 1}}, r"pca: takes at most 4,096 features, but inputs have 5,000"),
        (
            points(40, 2),
            {"basis": {"functions": ["log"]}},
            r"data\.transform\.basis: feature \d is (nan|-inf) for a sample",
        ),
        (points(40, 2) * 1e3, {"polynomial": {"degree": 40}}, r"data\.transform\.polynomial: feature \d+ is"),
        (points(40, 2) / 0, {"pca": {"components": 1}}, r"data: feature 0 has infinite values"),
    ],
)
def test_data_that_do_not_fit_are_refused(inputs, node, message):
    """Inputs that a transform cannot take, too many features, values where a function is not defined: one line each."""
    with pytest.raises(ConfigError, match=message) as caught:
        module(inputs, transform=node)
    assert "\n" not in str(caught.value)


def test_held_out_samples_are_checked_before_training():
    """A test sample at which a function is not defined is found when the data are read, not hours later."""
    x = points().abs() + 0.1
    rows = module(x).source_rows("test", [0])
    x[rows, 1] = -1.0
    with pytest.raises(
        ConfigError, match=r"basis: feature log\(b\) is nan for a sample with the values .*, -1; expected"
    ):
        module(x, ("a", "b"), transform={"basis": {"functions": ["log"]}})


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    """The size of the transformed samples is compared with the free memory before they are made."""
    monkeypatch.setattr(_pipeline, "free_memory", lambda device: 100_000)
    with pytest.raises(ConfigError, match=r"data\.transform: 216 samples of 286 features take 0\.00023 GiB"):
        module(points(300, 10), transform={"polynomial": {"degree": 3}})


def test_streamed_files_are_refused(tmp_path):
    """Images that stay in their files cannot be transformed; in memory they can."""
    from PIL import Image

    for number in range(20):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number * 10, 0, 255 - number)).save(path)
    node = {"name": "image_folder", "path": str(tmp_path), "image_size": 4, "transform": {"pca": {"components": 1}}}
    with pytest.raises(ConfigError, match=r"^data\.transform: needs the samples in memory, not streamed from files"):
        build_data({**node, "loader": "streaming"}, seed=0, device=CPU)
    data = build_data({**node, "loader": "resident"}, seed=0, device=CPU)
    assert data.spec.input_shape == (1,)
    assert torch.equal(data.transform(data.source.read_inputs(tmp_path / "a"))[:1].isfinite(), torch.ones(1, 1) > 0)


def test_tensors_as_text():
    """Every float64 comes back with its bits, special values too; damaged text is a ValueError."""
    x = torch.tensor([[0.1, -0.0, float("inf")], [1e-310, math.pi, float("nan")]], dtype=torch.float64)
    back = from_text(json.loads(json.dumps(to_text(x))))
    assert torch.equal(back.view(torch.int64), x.view(torch.int64))
    for damaged in ([[2, 3], "###"], [[7], to_text(x)[1]], [[2, 3]]):
        with pytest.raises(ValueError, match=r"base64|reshape|unpack"):
            from_text(damaged)


PCA = "data.transform={pca: {components: 3}}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("data=digits", "model=lenet", PCA),
            "model.name: lenet needs images (channels, height, width), the data gives vectors of 3 values (because of "
            "data.transform.pca, which flattens inputs of 1x8x8); use mlp or linear",
        ),
        (
            ("data=digits", "model=mlp", "data.augmentation={crop: {}}", PCA),
            "data.augmentation.crop: needs images, but inputs are vectors of 3 features (because of data.transform.pca, which "
            "flattens inputs of 1x8x8); these fit: noise",
        ),
        (
            ("data=blobs", "model=lenet", "data.transform={constant: {}}"),
            "model.name: lenet needs images (channels, height, width), the data gives vectors of 3 values; use mlp or linear",
        ),
    ],
    ids=["model", "augmentation", "vectors before it"],
)
def test_it_is_said_that_a_transform_made_vectors(cli, words, message):
    """What needs images is refused with the transform that flattens them, where it does."""
    assert cli("data.limit_train=64", *words).stderr == f"dlrun: {message}\n"
