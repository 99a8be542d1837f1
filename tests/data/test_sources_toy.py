"""The generated data sets against what is known of them in closed form."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

from dlrun.data import DATASETS
from dlrun.data.gaussians import Gaussians
from dlrun.data.heteroscedastic import Heteroscedastic, mean, sigma
from dlrun.data.poly1d import Poly1d
from dlrun.data.spirals import Spirals
from dlrun.data.xor import Xor
from dlrun.registry import ConfigError

TOYS = {
    "xor": (2, "binary", 1),
    "two_moons": (2, "binary", 1),
    "circles": (2, "binary", 1),
    "gaussians": (2, "binary", 1),
    "spirals": (2, "class", 3),
    "blobs": (2, "class", 4),
    "poly1d": (1, "real", 1),
    "heteroscedastic": (1, "real", 1),
    "affine": (3, "real", 2),
}


def draw(name, seed=0, **settings):
    source = DATASETS.build({"name": name, **settings}, seed=seed)
    samples, spec = source.train()
    return samples.inputs, samples.targets, spec


def logistic(x, y, **settings):
    return LogisticRegression(C=1e8, **settings).fit(x.numpy(), y.numpy().ravel())


@pytest.mark.curriculum("T18", "T26")
@pytest.mark.parametrize("name", TOYS)
def test_form(name):
    """Each set has float32 vectors and targets of the declared kind, dtype and shape, and as many as asked for."""
    x, y, spec = draw(name, samples=120)
    features, kind, size = TOYS[name]
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (120, features))
    assert (spec.kind, spec.size, spec.mean) == (kind, size, ())
    if kind == "class":
        assert (y.dtype, tuple(y.shape)) == (torch.int64, (120,))
        assert y.bincount().tolist() == [120 // size] * size
    else:
        assert (y.dtype, tuple(y.shape)) == (torch.float32, (120, size))
    if kind == "binary":
        assert set(y.flatten().tolist()) == {0.0, 1.0}
    assert len(DATASETS.build({"name": name}, seed=0).feature_names) == features


@pytest.mark.parametrize("name", TOYS)
def test_seed(name):
    """The same seed gives the same points whatever the global generators hold, and another seed gives others."""
    x, y, _ = draw(name, seed=1)
    torch.manual_seed(5)
    np.random.seed(5)
    again, targets, _ = draw(name, seed=1)
    assert torch.equal(x, again)
    assert torch.equal(y, targets)
    assert not torch.equal(x, draw(name, seed=2)[0])


@pytest.mark.curriculum("T03")
@pytest.mark.parametrize("name", ["xor", "gaussians"])
def test_sign_labels(name):
    """Labels -1 and +1 belong to the same points as labels 0 and 1."""
    x, y, _ = draw(name)
    same, signed, spec = draw(name, labels="sign")
    assert spec.kind == "sign"
    assert torch.equal(x, same)
    assert torch.equal(signed, 2 * y - 1)


@pytest.mark.curriculum("T26", "M03")
@pytest.mark.parametrize(("function", "table"), [("xor", [0, 1, 1, 0]), ("and", [0, 0, 0, 1]), ("or", [0, 1, 1, 1])])
def test_truth_table(function, table):
    """Without noise the first four points are the corners 00, 01, 10, 11 with their truth table."""
    x, y, _ = draw("xor", samples=4, noise=0.0, function=function)
    assert x.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert y.flatten().tolist() == table


@pytest.mark.curriculum("T26")
def test_xor_is_not_linear():
    """No line gets more than about three of the four clusters right, and the 2-2-1 ReLU network |x1 - x2| gets all."""
    x, y, _ = draw("xor")
    best = max(
        ((x @ torch.tensor([np.cos(a), np.sin(a)]).float() > b).float() == y.flatten()).float().mean()
        for a in np.linspace(0, 2 * np.pi, 73)
        for b in np.linspace(-1.5, 1.5, 31)
    )
    assert 0.6 < best <= 0.76
    assert ((x[:, 0] - x[:, 1]).abs() > 0.5).eq(y.flatten() == 1).float().mean() > 0.995
    for function in ("and", "or"):
        a, b, _ = draw("xor", function=function)
        assert logistic(a, b).score(a.numpy(), b.numpy().ravel()) > 0.99


@pytest.mark.curriculum("D13", "T26")
def test_circles_in_polar_coordinates():
    """Circles are at chance for a linear model on (x, y) and separable on the radius."""
    x, y, _ = draw("circles")
    radius = x.norm(dim=1, keepdim=True)
    assert logistic(x, y).score(x.numpy(), y.numpy().ravel()) < 0.6
    assert logistic(radius, y).score(radius.numpy(), y.numpy().ravel()) > 0.99
    assert abs(radius[y == 1].mean() - 0.5) < 0.01
    assert abs(radius[y == 0].mean() - 1.0) < 0.01


def test_two_moons():
    """Every point lies within the noise of the half circle of its class, as scikit-learn defines the two."""
    x, y, _ = draw("two_moons", noise=0.0)
    upper, lower = x[y.flatten() == 0], x[y.flatten() == 1]
    assert torch.allclose(upper.norm(dim=1), torch.ones(len(upper)), atol=1e-5)
    assert torch.allclose((lower - torch.tensor([1.0, 0.5])).norm(dim=1), torch.ones(len(lower)), atol=1e-5)
    assert upper[:, 1].min() > -1e-5
    assert lower[:, 1].max() < 0.5 + 1e-5


def test_spirals_follow_their_curve():
    """Without noise, the angle of a point less its class's share of the circle is 2 pi turns times its radius."""
    source = Spirals(0, samples=600, classes=5, turns=1.5, noise=0.0)
    samples, _ = source.train()
    x, y = samples.inputs.double(), samples.targets
    radius = x.norm(dim=1)
    angle = torch.atan2(x[:, 1], x[:, 0]) / (2 * torch.pi) - 1.5 * radius - y / 5
    assert (angle - angle.round()).mul(radius).abs().max() < 1e-6
    assert 0.95 < radius.max() <= 1.0


@pytest.mark.curriculum("T09", "T26")
def test_blobs_are_separated():
    """K-means finds the four clusters again, up to a permutation; centres and spread are those asked for."""
    x, y, _ = draw("blobs")
    found = torch.from_numpy(KMeans(4, n_init=3, random_state=0).fit_predict(x.numpy()).astype("int64"))
    agreement = max((torch.tensor(p)[found] == y).float().mean() for p in itertools.permutations(range(4)))
    assert agreement > 0.999
    centres = torch.stack([x[y == k].mean(0) for k in range(4)])
    assert torch.allclose(centres, torch.tensor([[3.0, 0], [0, 3], [-3, 0], [0, -3]]), atol=0.1)
    assert torch.allclose(x[y == 0].std(0), torch.tensor(0.5), atol=0.05)


@pytest.mark.curriculum("T02", "M07", "L13")
@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_gaussians_closed_form(prior):
    """Posterior and Bayes accuracy equal those of SciPy's densities, and a logistic fit finds the closed-form weights."""
    source = Gaussians(3, samples=60000, distance=2.0, correlation=0.5, prior=prior)
    samples, _ = source.train()
    x, y = samples.inputs, samples.targets.flatten()
    covariance = [[1, 0.5], [0.5, 1]]
    first = stats.multivariate_normal([-1, 0], covariance).pdf(x) * (1 - prior)
    second = stats.multivariate_normal([1, 0], covariance).pdf(x) * prior
    assert np.allclose(source.posterior(x).numpy(), second / (first + second), atol=1e-12)
    accuracy = float(((source.posterior(x) > 0.5) == (y == 1)).double().mean())
    assert abs(accuracy - source.bayes_accuracy()) < 0.005
    assert abs(float(y.mean()) - prior) < 0.006
    w, b = source.weights()
    assert w.tolist() == pytest.approx([8 / 3, -4 / 3])  # [[1, .5], [.5, 1]]^-1 (2, 0)
    fit = logistic(x, y)
    assert np.allclose(fit.coef_[0], w.numpy(), atol=0.1)
    assert abs(fit.intercept_[0] - b) < 0.1
    assert np.abs(fit.predict_proba(x.numpy())[:, 1] - source.posterior(x).numpy()).mean() < 0.02


def test_bayes_accuracy_literal():
    """Unit covariance, means 2 apart, equal priors: the Bayes accuracy is the normal distribution function at 1."""
    assert Gaussians(0, correlation=0.0).bayes_accuracy() == pytest.approx(0.8413447460685429)


@pytest.mark.curriculum("T25")
def test_poly1d_exact_quadratic():
    """A degree-2 fit of the noiseless quadratic gives its coefficients to 1e-6."""
    samples, spec = Poly1d(0, noise=0.0).train()
    x, y = samples.inputs.double().numpy().ravel(), samples.targets.double().numpy().ravel()
    assert np.allclose(np.polyfit(x, y, 2)[::-1], [1.0, -2.0, 3.0], atol=1e-6)
    assert spec.names == ("y",)


def test_poly1d_settings():
    """Noise and interval are as asked for, whole numbers are taken as coefficients, and an empty interval is refused."""
    x, y, _ = draw("poly1d", samples=5000, coefficients=[0, 0, 0, 2], noise=0.5, low=1.0, high=3)
    residual = (y - 2 * x**3).flatten()
    assert 1 <= x.min() < 1.05
    assert 2.95 < x.max() <= 3
    assert abs(residual.mean()) < 0.03
    assert abs(residual.std() - 0.5) < 0.02
    with pytest.raises(ConfigError, match=r"data.low: got 3.0"):
        Poly1d(0, low=3.0, high=1.0)
    with pytest.raises(ConfigError, match="coefficients"):
        DATASETS.check({"name": "poly1d", "coefficients": []})


@pytest.mark.curriculum("T08")
def test_heteroscedastic_noise():
    """Residuals divided by the known sigma(x) are standard normal, and sigma has the values of its formula."""
    samples, _ = Heteroscedastic(0, samples=20000, noise=2.0).train()
    x, y = samples.inputs, samples.targets
    z = ((y - mean(x)) / sigma(x, 2.0)).flatten().numpy()
    assert stats.kstest(z, "norm").pvalue > 0.001
    left, middle = z[x.flatten().numpy() < -2], z[abs(x.flatten().numpy()) < 0.5]
    assert abs(left.std() - 1) < 0.05
    assert abs(middle.std() - 1) < 0.05
    assert sigma(torch.tensor([0.0, 3.0])).tolist() == pytest.approx([0.5, 0.1 + 0.4 * np.exp(-4.5)])


def test_read_inputs(tmp_path):
    """New points are read from a text table with or without a header; a wrong width and a word name their line."""
    source = Xor(0)
    (tmp_path / "a.csv").write_text("x1,x2\n0,1\n\n0.5,-2e0\n")
    (tmp_path / "b.txt").write_text("0 1\n0.5 -2\n")
    (tmp_path / "c.txt").write_text("0 1\n0.5\n")
    (tmp_path / "d.txt").write_text("0 1\n0.5 nan\n")
    (tmp_path / "e.txt").write_text("\n")
    for name in ("a.csv", "b.txt"):
        assert source.read_inputs(tmp_path / name).tolist() == [[0, 1], [0.5, -2]]
    for name, message in (("c.txt", "line 2: has 1"), ("d.txt", "line 2: 'nan'"), ("e.txt", "no rows"), ("f", "f: ")):
        with pytest.raises(ConfigError, match=message):
            source.read_inputs(tmp_path / name)
