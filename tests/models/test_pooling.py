"""Poolings: worked examples, limits, gradients, the random draw of stochastic pooling, and all of them in a run."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from dlrun import checkpoint, rundir
from dlrun.build import build_trainer, check
from dlrun.callbacks._base import Callback
from dlrun.models import MODELS
from dlrun.models._dropout import set_keys
from dlrun.models._pooling import StochasticPool, areas, pooling
from dlrun.models._summary import count_parameters

KINDS = ["max", "avg", "sum", "lp", "stochastic"]
EXAMPLE = torch.tensor([[3.0, 2, 0, 0], [0, 7, 1, 3], [5, 2, 3, 0], [0, 9, 2, 3]]).view(1, 1, 4, 4)
SIGNAL = torch.tensor([2.0, -5, 10, 3, -2, 1]).view(1, 1, 6)


def build(name, inputs=(1, 8, 8), outputs=10, **settings):
    return MODELS.build({"name": name, **settings}, input_shape=inputs, num_outputs=outputs)


def lone_pooling(kind, axes, size=2, p=2.0):
    """The pooling that a network of one block has behind an identity convolution."""
    name, shape = ("cnn", (1, 4, 4)) if axes == 2 else ("conv1d", (1, 6))
    block = {"channels": 1, "kernel": 1, "pool_size": size, "batch_norm": False}
    model = build(name, shape, blocks=[block], pool=kind, pool_p=p, activation="linear", hidden=[])
    nn.init.ones_(model.blocks.block1.conv.weight)
    return model.blocks.eval()


@pytest.mark.curriculum("M38")
@pytest.mark.parametrize(("kind", "expected"), [("max", [[7, 3], [9, 3]]), ("avg", [[3, 1], [4, 2]])])
def test_pooling_of_the_4x4_example(kind, expected):
    """2x2 areas with stride 2: max [[7, 3], [9, 3]], mean [[3, 1], [4, 2]]."""
    assert lone_pooling(kind, 2)(EXAMPLE)[0, 0].tolist() == expected


@pytest.mark.curriculum("M39")
def test_pooling_of_a_signal():
    """Pairs of [2, -5, 10, 3, -2, 1] have the maxima [2, 10, 1]; pooling adds no parameter."""
    pool = lone_pooling("max", 1)
    assert pool(SIGNAL).flatten().tolist() == [2, 10, 1]
    sizes = [[{"channels": 3, "pool_size": size}] for size in (1, 2, 3)]
    counts = {count_parameters(build("conv1d", (1, 6), blocks=blocks, hidden=[])) for blocks in sizes}
    assert len(counts) == 1


@pytest.mark.curriculum("M40")
@pytest.mark.parametrize(("axes", "x"), [(1, SIGNAL), (2, EXAMPLE)])
def test_sum_is_average_times_area(axes, x):
    """For images and signals."""
    torch.testing.assert_close(lone_pooling("sum", axes)(x), lone_pooling("avg", axes)(x) * 2**axes)


@pytest.mark.curriculum("M40")
@pytest.mark.parametrize(("axes", "x"), [(1, SIGNAL), (2, EXAMPLE - 4)])
def test_p_norms_come_down_to_the_largest_value(axes, x):
    """p = 1 is the sum of |x|, each larger p gives less, and p = 1000 the maximum of |x| but for area ** (1 / 1000)."""
    outputs = [lone_pooling("lp", axes, p=p)(x) for p in (1.0, 2.0, 3.0, 8.0, 64.0, 1000.0)]
    largest = lone_pooling("max", axes)(x.abs())
    torch.testing.assert_close(outputs[0], lone_pooling("sum", axes)(x.abs()))
    assert all(bool((a >= b - 1e-5).all()) for a, b in zip(outputs, [*outputs[1:], largest], strict=True))
    torch.testing.assert_close(outputs[-1], largest, rtol=0.0015, atol=0)


@pytest.mark.curriculum("M40")
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_p_norm_equals_pytorchs_on_positive_values(p):
    """Values and gradients, with areas that overlap."""
    x = (torch.rand(2, 3, 7, 7) + 0.1).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    ours, theirs = pooling("lp", 3, 2, p=p)(x), nn.LPPool2d(p, 3, 2)(twin)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_silent_areas_have_finite_gradients(kind, p):
    """All zeros, as ReLUs leave them, give finite gradients in training."""
    x = torch.zeros(1, 2, 4, 4, requires_grad=True)
    pooling(kind, 2, p=p).train()(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_areas_are_the_windows_of_the_image():
    """In rows, also where they overlap."""
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert areas(x, 2, 1, 2)[0, 0, 1, 2].tolist() == [6, 7, 10, 11]
    assert areas(x[0], 2, 2, 1)[0, 2].tolist() == [[8, 9], [10, 11]]


@pytest.mark.curriculum("M40")
def test_stochastic_pooling_in_evaluation():
    """The mean weighted by the values themselves, sum x^2 / sum x: 62/12, 10/4, 110/16 and 22/8 in the 4x4 example."""
    outputs = lone_pooling("stochastic", 2)(EXAMPLE)
    torch.testing.assert_close(outputs.flatten(), torch.tensor([62 / 12, 10 / 4, 110 / 16, 22 / 8]))


@pytest.mark.curriculum("M40")
def test_stochastic_pooling_draws_in_proportion_to_the_values():
    """Of 40,000 areas [0, 1, -2, 3] a quarter gives 1 and three quarters 3, within four standard errors; the gradient goes to
    the drawn value alone."""
    model = nn.Sequential(StochasticPool(2, 2, 2)).train()
    set_keys(model, seed=0, step=0)
    x = torch.tensor([[0.0, 1], [-2, 3]]).repeat(200, 200).view(1, 1, 400, 400).requires_grad_()
    outputs = model(x)
    assert set(outputs.unique().tolist()) == {1.0, 3.0}
    assert abs((outputs == 3).float().mean().item() - 0.75) < 4 * (0.75 * 0.25 / 40_000) ** 0.5
    outputs.sum().backward()
    assert torch.equal((x.grad * x.detach()).sum(), outputs.detach().sum())
    assert torch.equal(areas(x.grad, 2, 2, 2).sum(-1), torch.ones(1, 1, 200, 200))


def test_stochastic_pooling_draws_anew_at_each_step():
    """The same key gives the same draw, another step another one, and evaluation needs none."""
    model = nn.Sequential(StochasticPool(2, 2, 1)).train()
    x, drawn = torch.rand(4, 3, 20), []
    for step in (3, 4, 3):
        set_keys(model, seed=0, step=step)
        drawn.append(model(x))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.curriculum("M38", "M40")
@pytest.mark.parametrize(
    ("model", "kind"), [*(("lenet", kind) for kind in KINDS), ("cnn", "stochastic"), ("conv1d", "lp")]
)
def test_every_pooling_from_the_command_line(cli, model, kind):
    """Trains, validates and tests."""
    words = (f"model={model}", f"model.pool={kind}", "model.pool_p=3", "data=digits", "device=cpu")
    done = cli(*words, "callbacks=none", "trainer.fast_dev_run=true", "hydra.run.dir=run")
    assert done.rc == 0, done.stderr


@pytest.mark.curriculum("M40")
def test_unknown_poolings_and_norms_are_refused(cli):
    """In one line with what is allowed."""
    done = cli("model=lenet", "model.pool=stochastc")
    assert (done.rc, "model.pool: got 'stochastc'" in done.stderr, "did you mean 'stochastic'?" in done.stderr) == (
        1,
        True,
        True,
    )
    done = cli("model=cnn", "model.pool=lp", "model.pool_p=0.5")
    assert (done.rc, "model.pool_p: got 0.5; expected float >= 1" in done.stderr) == (1, True), done.stderr


class Stop(Exception):
    """Ends a run."""


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step(self, run, result):
        if run.step == self.step:
            raise Stop


@pytest.mark.parametrize("model", ["lenet", "cnn"])
def test_a_resumed_run_draws_as_one_never_stopped(composed, tmp_path, model):
    """With stochastic pooling: killed in mid-epoch and resumed, the weights are equal bit for bit."""
    words = (f"model={model}", "model.pool=stochastic", "data=digits", "data.limit_train=40", "data.batch_size=8")
    config = composed(*words, "trainer.epochs=2", "device=cpu", "callbacks=none", "trainer.checkpoint_every_steps=3")
    check(config)
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    whole, stopped = (build_trainer(config, tmp_path / folder) for folder in ("whole", "stopped"))
    whole.fit()
    stopped.callbacks.append(StopAt(7))
    with pytest.raises(Stop):
        stopped.fit()
    resumed = build_trainer(config, tmp_path / "stopped")
    resumed.load_state_dict(checkpoint.load(tmp_path / "stopped" / rundir.LAST))
    assert resumed.run.step == 6
    resumed.fit()
    for name, value in whole.run.model.state_dict().items():
        assert torch.equal(resumed.run.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lenet", {"pool": "stochastic"}),
        ("cnn", {"pool": "lp", "pool_p": 3.0, "features": "adaptive"}),
        ("conv1d", {"pool": "stochastic"}),
        ("lenet_1998", {}),
        ("inception", {"stages": [[16], [16]], "dropout": 0.5}),
        ("resnet_cifar", {"depth": 8, "residual": False, "batch_norm": False}),
    ],
)
def test_stacked_gradients_equal_lone_ones(name, settings):
    """vmap over grad of functional_call gives each member the gradient and the draws that it has alone, in float64."""
    models = [build(name, **settings).double().train() for _ in range(2)]
    for seed, model in enumerate(models):
        set_keys(model, seed, 1)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    parameters, buffers = stack_module_state(models)

    def loss(p, b):
        return functional_call(models[0], (p, b), (x,)).square().mean()

    stacked = vmap(grad(loss))(parameters, {n: b.clone() for n, b in buffers.items()})
    for i, model in enumerate(models):
        model(x).square().mean().backward()
        for n, parameter in model.named_parameters():
            torch.testing.assert_close(stacked[n][i], parameter.grad, atol=1e-10, rtol=1e-8)
