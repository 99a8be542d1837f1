"""Weight averages against torch.optim.swa_utils, explicit sums and the curriculum's literals."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from dlrun.averaging import ArithmeticAverage, ExponentialAverage, WeightAverage, refresh_batch_norm
from dlrun.registry import ConfigError


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()


def walk(model: nn.Module, steps: int, seed: int = 0):
    """Changes the parameters at random, `steps` times, yielding after each."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        yield model


def averaged(average: WeightAverage, model: nn.Module) -> list[torch.Tensor]:
    with average.swap(model):
        return [p.detach().clone() for p in model.parameters()]


@pytest.mark.curriculum("O12")
def test_arithmetic_literals() -> None:
    """Iterates 1, 2, 6 average to 1, 1.5, 3."""
    model = nn.Linear(1, 1, bias=False)
    average, means = ArithmeticAverage(model), []
    for iterate in (1.0, 2.0, 6.0):
        nn.init.constant_(model.weight, iterate)
        average.update(model)
        means.append(averaged(average, model)[0].item())
    assert means == pytest.approx([1, 1.5, 3])


@pytest.mark.curriculum("O12")
def test_arithmetic_average_has_lower_variance_than_the_last_iterate() -> None:
    """On a noisy convex problem the averaged weights lie nearer the optimum than the last ones, over 20 repetitions."""
    generator = torch.Generator().manual_seed(0)
    last, mean = 0.0, 0.0
    for _ in range(20):
        model = nn.Linear(5, 1, bias=False)
        nn.init.zeros_(model.weight)
        average = ArithmeticAverage(model, start=50)
        for _ in range(200):
            with torch.no_grad():  # gradient of |w - 1|^2 / 2 with unit noise
                model.weight.sub_(0.1 * (model.weight - 1 + torch.randn(1, 5, generator=generator)))
            average.update(model)
        last += (model.weight.detach() - 1).pow(2).sum().item()
        mean += (averaged(average, model)[0] - 1).pow(2).sum().item()
    assert mean < 0.5 * last


def test_arithmetic_equals_swa_utils() -> None:
    """The mean of ten iterates equals AveragedModel's, and before the start nothing is averaged."""
    model = net()
    average, reference = ArithmeticAverage(model, start=3), swa_utils.AveragedModel(model)
    for number, _ in enumerate(walk(model, 10), start=1):
        average.update(model)
        assert average.started == (number > 3)
        if number > 3:
            reference.update_parameters(model)
    assert average.count == 7
    for got, expected in zip(averaged(average, model), reference.module.parameters(), strict=True):
        torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=1e-12)


def test_exponential_is_a_weighted_mean() -> None:
    """After t updates the average is the mean of the iterates weighted by decay ** age, without the initial weights."""
    model, decay, iterates = net(), 0.8, []
    average = ExponentialAverage(model, decay)
    for _ in walk(model, 6):
        average.update(model)
        iterates.append([p.detach().clone() for p in model.parameters()])
        proportions = [decay**age for age in reversed(range(len(iterates)))]
        for i, got in enumerate(averaged(average, model)):
            expected = sum(w * it[i] for w, it in zip(proportions, iterates, strict=True)) / sum(proportions)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_exponential_equals_swa_utils() -> None:
    """The average equals PyTorch's, begun at zero weights, divided by 1 - decay ** t."""
    model, decay = net(), 0.9
    average = ExponentialAverage(model, decay)
    zeros = copy.deepcopy(model)
    for parameter in zeros.parameters():
        nn.init.zeros_(parameter)
    reference = swa_utils.AveragedModel(zeros, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    reference.update_parameters(zeros)  # the first call only copies
    for _ in walk(model, 12):
        average.update(model)
        reference.update_parameters(model)
    for got, expected in zip(averaged(average, model), reference.module.parameters(), strict=True):
        torch.testing.assert_close(got, expected.detach() / (1 - decay**12), rtol=1e-11, atol=1e-12)


def test_swap_restores_everything_even_after_an_error() -> None:
    """After the block weights and buffers are bit-identical to before, whatever happened inside."""
    model = net()
    average = ExponentialAverage(model, 0.5)
    for _ in walk(model, 3):
        average.update(model)
    before = copy.deepcopy(model.state_dict())

    def use() -> None:
        with average.swap(model):
            assert not torch.equal(model[0].weight, before["0.weight"])
            model.train()
            model(torch.randn(8, 3, dtype=torch.float64))  # moves the batch-norm statistics
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        use()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_not_started() -> None:
    """Before the start the model is evaluated with its own weights."""
    model = net()
    average = ArithmeticAverage(model, start=10)
    for _ in walk(model, 2):
        average.update(model)
    before = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(averaged(average, model), before, strict=True))


def test_frozen_and_shared_parameters() -> None:
    """Frozen parameters are left alone and a tied weight is averaged once."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2).requires_grad_(False))
    model[1].weight = model[0].weight
    average = ArithmeticAverage(model)
    assert list(average.average) == ["0.weight", "0.bias"]
    for _ in range(2):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        average.update(model)
    expected = model[0].weight.detach() - 0.5
    average.apply(model)
    torch.testing.assert_close(model[1].weight.detach(), expected)


@pytest.mark.parametrize("make", [lambda m: ExponentialAverage(m, 0.9), lambda m: ArithmeticAverage(m, start=2)])
def test_state_round_trip(make) -> None:
    """Saved with safe types only, loaded and continued, an average is bit-identical to an unbroken one."""
    model = net()
    average = make(model)
    for _ in walk(model, 4):
        average.update(model)
    average.keep_buffers(model)
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(model)
    resumed = make(twin)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for m, a in ((model, average), (twin, resumed)):
        for _ in walk(m, 3, seed=1):
            a.update(m)
    assert resumed.count == average.count
    assert all(torch.equal(a, b) for a, b in zip(averaged(average, model), averaged(resumed, twin), strict=True))
    assert set(resumed.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_state_of_another_model() -> None:
    """The average of another model is refused."""
    average = ArithmeticAverage(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="another model"):
        average.load_state_dict(ArithmeticAverage(nn.Linear(3, 2)).state_dict())


def test_refresh_equals_update_bn() -> None:
    """The refreshed statistics equal torch.optim.swa_utils.update_bn's, and modes and momentum are put back."""
    model = net()
    batches = [torch.randn(8, 3, dtype=torch.float64) * 3 + 1 for _ in range(4)]
    reference = copy.deepcopy(model)
    swa_utils.update_bn(batches, reference)
    model.train()
    model[3].eval()
    refresh_batch_norm(model, iter(batches))
    torch.testing.assert_close(model[1].running_mean, reference[1].running_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[1].running_var, reference[1].running_var, rtol=1e-12, atol=1e-12)
    assert model[1].momentum == 0.1
    assert [m.training for m in model] == [True, True, True, False]


def test_refresh_leaves_frozen_layers_and_dropout_alone() -> None:
    """A frozen norm layer keeps its statistics, dropout is off meanwhile, and nothing is read without batch norm."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9), nn.BatchNorm1d(3).requires_grad_(False))
    frozen = model[2].running_mean.clone()
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(torch.equal(inputs[0], output)))
    refresh_batch_norm(model, [torch.randn(16, 3)])
    assert seen == [True]
    assert torch.equal(model[2].running_mean, frozen)
    batches = iter([torch.randn(2, 3)])
    refresh_batch_norm(nn.Linear(3, 3), batches)
    assert next(batches, None) is not None


def test_kept_buffers_belong_to_the_averaged_weights() -> None:
    """Statistics refreshed and kept inside a swap return in the next swap, and the live ones outside it."""
    model, batches = net(), [torch.randn(8, 3, dtype=torch.float64) for _ in range(3)]
    average = ArithmeticAverage(model)
    for _ in walk(model, 2):
        average.update(model)
    live = model[1].running_mean.clone()
    with average.swap(model):
        refresh_batch_norm(model, batches)
        average.keep_buffers(model)
        refreshed = model[1].running_mean.clone()
    assert torch.equal(model[1].running_mean, live)
    with average.swap(model):
        assert torch.equal(model[1].running_mean, refreshed)
    assert not torch.equal(live, refreshed)
