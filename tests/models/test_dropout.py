"""Dropout: its statistics, its keys, and what happens to other modules' randomness."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torchvision.models import resnet18
from torchvision.ops import StochasticDepth

from dlrun import streams
from dlrun.models import MODELS
from dlrun.models._dropout import Dropout, has_foreign_randomness, random_modules, replace_dropout, set_keys


def keyed(rate, step, seed=0):
    dropout = Dropout(rate).train()
    set_keys([("layer", dropout)], seed, step)
    return dropout


@pytest.mark.curriculum("R05")
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.8])
def test_share_of_zeros_is_the_rate(rate):
    """Within 5 standard errors of the rate, at several steps."""
    for step in range(3):
        share = (keyed(rate, step)(torch.ones(500, 400)) == 0).double().mean().item()
        assert abs(share - rate) < 5 * (rate * (1 - rate) / 200_000) ** 0.5


@pytest.mark.curriculum("R05")
def test_masks_differ_by_sample_step_seed_and_layer():
    """Masks of other samples, steps, seeds, layers and micro-batches agree in about half of their places."""
    x = torch.ones(2, 20_000)

    def mask(name="a", seed=0, step=0, micro=0):
        dropout = Dropout(0.5)
        set_keys([(name, dropout)], seed, step, micro)
        return dropout(x) > 0

    base = mask()
    others = [mask(name="b"), mask(seed=1), mask(step=1), mask(micro=1)]
    for pair in [(base[0], base[1]), *((base, other) for other in others)]:
        assert (pair[0] == pair[1]).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(base, mask())


@pytest.mark.curriculum("R05")
def test_a_dropped_unit_gets_no_gradient():
    """The mask of the forward pass holds in the backward pass."""
    x = torch.ones(4, 50, requires_grad=True)
    y = keyed(0.5, 0)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert set(y.unique().tolist()) == {0.0, 2.0}


@pytest.mark.curriculum("R06", "R07")
def test_mean_of_many_passes_is_the_evaluation_output():
    """For a linear layer behind dropout, the mean of 1000 stochastic passes is the deterministic output."""
    torch.manual_seed(0)
    model = nn.Sequential(Dropout(0.5), nn.Linear(20, 3))
    x = torch.randn(5, 20)
    model.train()
    passes = []
    for step in range(1000):
        set_keys(model, 0, step)
        passes.append(model(x).detach())
    stack = torch.stack(passes)
    model.eval()
    error = (stack.mean(0) - model(x)).abs() / (stack.std(0) / 1000**0.5)
    assert error.max() < 4.5
    assert torch.equal(model(x), model(x))


@pytest.mark.curriculum("R05")
def test_inputs_and_outputs_are_not_dropped():
    """The first affine map sees the whole input, the outputs are the head's, and every hidden layer has its own mask."""
    model = MODELS.build({"name": "mlp", "dropout": 0.5, "hidden": [40, 30]}, input_shape=(6,), num_outputs=50).train()
    set_keys(model, 0, 0)
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, inputs, output, name=name: seen.update({name: (inputs[0], output)}))
    x = torch.rand(20, 6) + 1
    y = model(x)
    assert torch.equal(seen["hidden.dense1"][0], x)
    assert torch.equal(seen["head"][1], y)
    assert (y != 0).all()
    for layer in (1, 2):
        before, after = seen[f"hidden.dropout{layer}"]
        dropped = (before != 0) & (after == 0)
        assert dropped.sum() / (before != 0).sum() == pytest.approx(0.5, abs=0.1)


@pytest.mark.curriculum("R06")
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_scaling_in_training_is_the_courses_dropout_with_rescaled_weights(rate):
    """h * m in training and h * (1 - p) in evaluation, with weights W / (1 - p), give our outputs in both."""
    layer, dropout, h = nn.Linear(8, 3), keyed(rate, 0), torch.rand(50, 8)
    kept = (dropout(torch.ones(50, 8)) > 0).float()
    rescaled = layer.weight / (1 - rate)
    torch.testing.assert_close(layer(dropout(h)), (h * kept) @ rescaled.t() + layer.bias)
    torch.testing.assert_close(layer(dropout.eval()(h)), (h * (1 - rate)) @ rescaled.t() + layer.bias)


def test_keys_come_from_the_named_stream():
    """The key of a dropout is that of stream dropout/<module name> at the step."""
    model = MODELS.build({"name": "mlp", "dropout": 0.5, "hidden": [4, 3]}, input_shape=(2,), num_outputs=1)
    assert [name for name, _ in random_modules(model)] == ["hidden.dropout1", "hidden.dropout2"]
    set_keys(model, 7, 11, micro=2)
    assert tuple(model.hidden.dropout2.key.tolist()) == streams.key(7, "dropout/hidden.dropout2", 11, 2)


# printed by the first version of `set_keys` for seed 5: (step, micro) and the keys of hidden.dropout1 and hidden.dropout2
FIRST_KEYS = [
    ((0, 0), (-688585394, 1686300269), (-1921356011, 1602614250)),
    ((1, 0), (628055562, 1915418739), (753776449, 1199379266)),
    ((1, 1), (1132182771, 591704537), (1821267959, 2021194847)),
    ((254, 0), (354901010, 648158632), (-2043273008, 836325685)),
    ((255, 0), (889218038, 1281525517), (1573862417, 165862458)),
    ((256, 0), (702746339, 2140031451), (1914503660, 1458778815)),
    ((257, 3), (1924716090, 1657003915), (-1973358437, 249019509)),
    ((100000, 0), (-2074667034, 1290211059), (-1996275065, 425166717)),
    ((2147483653, 2), (-2097859975, -406205771), (-1221326430, 1634076566)),
    ((4294967296, 0), (-271840240, 1133165239), (-714712072, 652260337)),
]


def test_keys_are_those_of_the_first_version():
    """Every dropout gets the literals of the first version, whatever steps came before, model or list given."""
    model = MODELS.build({"name": "mlp", "dropout": 0.5, "hidden": [4, 3]}, input_shape=(2,), num_outputs=1)
    for given in (model, random_modules(model), tuple(random_modules(model))):
        for (step, micro), *expected in FIRST_KEYS + FIRST_KEYS[::-1]:
            set_keys(given, 5, step, micro)
            assert [tuple(d.key.tolist()) for _, d in random_modules(model)] == expected, (step, micro)


def test_keys_are_written_where_the_old_ones_were():
    """A captured graph reads its keys from a fixed address: the buffer stays, and is filled on its own device."""
    dropout = Dropout(0.5)
    address = dropout.key.data_ptr()
    set_keys([("a", dropout)], 0, 1)
    first = dropout.key.clone()
    set_keys([("a", dropout)], 0, 2)
    assert dropout.key.data_ptr() == address
    assert not torch.equal(dropout.key, first)
    set_keys([("a", dropout.to("meta"))], 0, 3)
    assert dropout.key.is_meta


def test_keys_do_not_share_memory_with_what_is_kept():
    """Whoever writes into a key changes no key of a later step or of another model."""
    first, second = Dropout(0.5), Dropout(0.5)
    set_keys([("a", first)], 3, 4)
    expected = first.key.clone()
    first.key.zero_()
    set_keys([("a", second)], 3, 4)
    assert torch.equal(second.key, expected)


def test_keys_set_in_inference_mode_serve_training():
    """The keys of a step are the same when evaluation code made them first, and training may go on with them."""
    dropout, x = Dropout(0.5).train(), torch.ones(50, requires_grad=True)
    with torch.inference_mode():
        set_keys([("only_here", dropout)], 0, 0)
        inferred = dropout(torch.ones(50))
    set_keys([("only_here", dropout)], 0, 0)
    y = dropout(x)
    y.sum().backward()
    assert torch.equal(y.detach(), inferred)
    assert torch.equal(x.grad, y.detach())


def test_a_model_without_dropout_is_left_alone():
    """Neither a model nor an empty list needs keys."""
    set_keys(nn.Linear(2, 2), 0, 0)
    set_keys([], 0, 0)


def test_rate_zero_passes_its_input_through():
    """No copy, no key to fill."""
    dropout, x = Dropout(0.0), torch.randn(3)
    assert dropout(x) is x
    assert random_modules(nn.Sequential(dropout)) == []


def test_keys_are_not_saved_and_masks_do_not_depend_on_precision():
    """The state dictionary has no keys; float64 and bfloat16 drop the same values as float32."""
    dropout = keyed(0.3, 5)
    assert dropout.state_dict() == {}
    single = dropout(torch.ones(1000))
    assert torch.equal(dropout(torch.ones(1000, dtype=torch.bfloat16)) == 0, single == 0)
    assert torch.equal(copy.deepcopy(dropout).double()(torch.ones(1000, dtype=torch.float64)) == 0, single == 0)


def test_stacked_models_draw_the_masks_of_lone_ones():
    """Under vmap, members of several seeds and rates give what they give alone."""
    torch.manual_seed(0)
    rates = [0.2, 0.5, 0.8]
    models = [
        MODELS.build({"name": "mlp", "hidden": [16], "dropout": r}, input_shape=(6,), num_outputs=2) for r in rates
    ]
    for seed, model in enumerate(models):
        set_keys(model, seed, 3)
    x = torch.randn(10, 6)
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")
    stacked = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    for i, model in enumerate(models):
        torch.testing.assert_close(stacked[i], model(x))


def test_torchs_dropout_is_replaced():
    """Every nn.Dropout becomes ours, nested ones too, and keeps its rate."""
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4)))
    assert has_foreign_randomness(model)
    replace_dropout(model)
    assert not has_foreign_randomness(model)
    assert [(n, d.rate) for n, d in random_modules(model)] == [("0", 0.2), ("1.1", 0.4)]


class Users(nn.Module):
    """What its forward calls cannot be seen."""


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.Dropout2d(0.1), True),
        (nn.RReLU(), True),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), True),
        (nn.LSTM(2, 2), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (nn.Linear(2, 2), False),
        (Dropout(0.5), False),
        (StochasticDepth(0.1, "row"), True),
        (resnet18(), False),
        (Users(), True),
    ],
)
def test_foreign_randomness_is_found(module, expected):
    """Modules that draw from the global generators are told from those that do not."""
    assert has_foreign_randomness(nn.Sequential(module)) is expected


@pytest.mark.cuda
def test_masks_are_equal_on_cuda():
    """The same key drops the same values on the CPU and on CUDA."""
    dropout = keyed(0.5, 9)
    cpu = dropout(torch.ones(1000))
    assert torch.equal(dropout.cuda()(torch.ones(1000, device="cuda")).cpu(), cpu)


@pytest.mark.cuda
def test_keys_are_filled_without_waiting_for_cuda():
    """On CUDA the literals of the first version are filled in, and nothing synchronises the device."""
    model = MODELS.build({"name": "mlp", "dropout": 0.5, "hidden": [4, 3]}, input_shape=(2,), num_outputs=1).cuda()
    found = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for (step, micro), *_ in FIRST_KEYS:
            set_keys(random_modules(model), 5, step, micro)
            found.append([dropout.key.clone() for _, dropout in random_modules(model)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [[tuple(key.tolist()) for key in keys] for keys in found] == [expected for _, *expected in FIRST_KEYS]
