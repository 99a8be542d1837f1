"""What a convolution computes: the worked examples of the courses, through the blocks of `conv1d` and `cnn`."""

import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import toeplitz
from scipy.signal import convolve2d

from dlrun.models import MODELS
from dlrun.models._convolution import receptive_field
from dlrun.models._summary import count_parameters, summarize
from dlrun.optimizers._groups import build_optimizer
from dlrun.registry import ConfigError

X = [2, -5, 10, 3, -2, 1]


def build(name, inputs, outputs=10, **settings):
    return MODELS.build({"name": name, **settings}, input_shape=inputs, num_outputs=outputs)


def blocks_of(name, inputs, *blocks, **settings):
    """The blocks of a network of these blocks, linear and without batch norm unless said otherwise."""
    settings = {"activation": "linear", "batch_norm": False, "features": "average", "hidden": [], **settings}
    return build(name, inputs, blocks=list(blocks), **settings).blocks.double()


def filtered(x, kernel, bias=0.0, **block):
    """A signal or an image (lists of numbers) through one filter of a `conv1d` or `cnn` block."""
    x, kernel = torch.as_tensor(x, dtype=torch.float64), torch.as_tensor(kernel, dtype=torch.float64)
    name = "conv1d" if x.dim() == 1 else "cnn"
    settings = {"channels": 1, "kernel": len(kernel), "padding": 0, **block}
    blocks = blocks_of(name, (1, *x.shape), settings)
    conv = blocks.block1.conv
    conv.weight.data = kernel.view(1, 1, *kernel.shape)
    conv.bias.data.fill_(bias)
    return blocks(x.view(1, 1, *x.shape)).detach()[0, 0]


# ---- one dimension --------------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("M25")
def test_convolution_layers_compute_cross_correlation():
    """(x * u)_i = sum over b of x_{i+b} u_b with M - k + 1 values: numpy's convolution with the flipped filter."""
    rng = np.random.default_rng(0)
    x, u = rng.normal(size=17), rng.normal(size=5)
    outputs = filtered(x, u).numpy()
    assert outputs.shape == (17 - 5 + 1,)
    np.testing.assert_allclose(outputs, np.convolve(x, u[::-1], mode="valid"), atol=1e-12)
    np.testing.assert_allclose(outputs[3], sum(x[3 + b] * u[b] for b in range(5)), atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "block", "expected"),
    [
        pytest.param([-1, 2, -3], {}, [-42, 16, 2, -10], id="valid", marks=pytest.mark.curriculum("M26")),
        pytest.param(
            [-1, 2, -3], {"padding": 1}, [19, -42, 16, 2, -10, 4], id="same", marks=pytest.mark.curriculum("M27")
        ),
        pytest.param(
            [-1, 2, -3, 8, -5],
            {"padding": 2},
            [-96, 84, -8, -5, 10, -10],
            id="same, 5 wide",
            marks=pytest.mark.curriculum("M27"),
        ),
        pytest.param(
            [-1, 2, -3], {"padding": 1, "stride": 2}, [19, 16, -10], id="stride 2", marks=pytest.mark.curriculum("M28")
        ),
    ],
)
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_worked_example(kernel, block, expected, bias):
    """The filter over [2, -5, 10, 3, -2, 1], plus the bias."""
    assert filtered(X, kernel, bias, **block).tolist() == [value + bias for value in expected]


@pytest.mark.curriculum("M27")
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_default_padding_keeps_the_size(kernel):
    """(kernel - 1) // 2 zeros on each side: 'same' for odd kernels."""
    block = {"channels": 2, "kernel": kernel}
    assert blocks_of("conv1d", (1, 20), block)(torch.zeros(1, 1, 20).double()).shape == (1, 2, 20)
    assert blocks_of("cnn", (1, 9, 11), block)(torch.zeros(1, 1, 9, 11).double()).shape == (1, 2, 9, 11)


@pytest.mark.curriculum("M28")
@pytest.mark.parametrize(("stride", "factor"), [(2, 4), (3, 9)])
def test_pooling_with_stride_leaves_fewer_values(stride, factor):
    """Stride 2 leaves a quarter of the values of an image, stride 3 a ninth."""
    blocks = blocks_of("cnn", (1, 18, 18), {"channels": 1, "pool_size": stride})
    assert blocks(torch.zeros(1, 1, 18, 18).double()).numel() * factor == 18 * 18


@pytest.mark.curriculum("M32")
def test_edge_mask():
    """(0,0,0,0,1,2,3,4,4,4,4) with the mask (-1, 1) gives (0,0,0,1,1,1,1,0,0,0)."""
    signal = [0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4]
    assert filtered(signal, [-1, 1]).tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.curriculum("M43")
def test_convolution_is_a_product_with_a_toeplitz_matrix():
    """W x with W = Toeplitz of the filter, (M - k + 1, M) with k non-zeros in each row, equals the layer."""
    rng = np.random.default_rng(1)
    x, u = rng.normal(size=12), rng.normal(size=4)
    matrix = toeplitz(np.r_[u[0], np.zeros(8)], np.r_[u, np.zeros(8)])
    assert matrix.shape == (9, 12)
    assert (np.count_nonzero(matrix, axis=1) == 4).all()
    np.testing.assert_allclose(filtered(x, u).numpy(), matrix @ x, atol=1e-6)


# ---- two dimensions -------------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("M29")
@pytest.mark.parametrize(
    ("size", "block", "expected"),
    [
        (32, {"kernel": 5, "padding": 0}, 28),
        (28, {"kernel": 1, "pool_size": 2}, 14),
        (9, {"kernel": 3, "padding": 0, "stride": 3}, 3),
        (10, {"kernel": 3, "padding": 0, "stride": 3}, 3),
        (12, {"kernel": 5, "stride": 2}, 6),
        (7, {"kernel": 1, "pool_size": 3, "pool_stride": 2}, 3),
    ],
)
def test_output_size(size, block, expected, caplog):
    """(size + 2 padding - kernel) / stride + 1, rounded down; where values of the image are left out, the log says so."""
    with caplog.at_level(logging.INFO, "dlrun"):
        blocks = blocks_of("cnn", (1, size, size), {"channels": 3, **block})
    assert blocks(torch.zeros(2, 1, size, size).double()).shape == (2, 3, expected, expected)
    said = "model.blocks.0: strides do not divide maps of 10x10, whose last values are left out: they give 3x3"
    assert (said in caplog.text) is (size == 10)


@pytest.mark.curriculum("M29")
@pytest.mark.parametrize(("name", "shape", "maps"), [("cnn", (1, 4, 9), "4x9"), ("conv1d", (2, 4), "length 4")])
def test_kernels_larger_than_the_maps_are_refused(name, shape, maps):
    """In one line with the block and the size of its maps."""
    with pytest.raises(
        ConfigError, match=rf"^model\.blocks\.0: kernel 5 and pool_size 1 do not fit into maps of {maps};"
    ):
        build(name, shape, blocks=[{"channels": 1, "kernel": 5, "padding": 0}])


@pytest.mark.curriculum("M30")
@pytest.mark.parametrize(("mode", "padding"), [("valid", 0), ("same", 1), ("full", 2)])
def test_flipped_kernels_give_the_convolution_of_signal_processing(mode, padding):
    """conv2d(x, flip(K)) = scipy.signal.convolve2d(x, K)."""
    rng = np.random.default_rng(2)
    x, k = rng.normal(size=(8, 10)), rng.normal(size=(3, 3))
    outputs = filtered(x, k[::-1, ::-1].copy(), padding=padding)
    np.testing.assert_allclose(outputs.numpy(), convolve2d(x, k, mode), atol=1e-12)


@pytest.mark.curriculum("M30")
def test_convolution_commutes_and_associates():
    """With full padding a * b = b * a and a * (b * c) = (a * b) * c; cross-correlation, unflipped, does not commute."""

    def convolve(a, b):
        return filtered(a, b.flip((0, 1)), padding=len(b) - 1)

    a, b, c = (torch.randn(n, n, dtype=torch.float64) for n in (4, 3, 2))
    torch.testing.assert_close(convolve(a, b), convolve(b, a))
    torch.testing.assert_close(convolve(a, convolve(b, c)), convolve(convolve(a, b), c))
    assert (filtered(a, b, padding=2) - filtered(b, a, padding=3)).abs().max() > 0.1


KERNELS = {
    "identity": ([[0, 0, 0], [0, 1, 0], [0, 0, 0]], 1),
    "edge": ([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], 1),
    "sharpen": ([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], 1),
    "box": ([[1, 1, 1], [1, 1, 1], [1, 1, 1]], 9),
    "gaussian": ([[1, 2, 1], [2, 4, 2], [1, 2, 1]], 16),
    "unsharp": ([[-1, -2, -1], [-2, 28, -2], [-1, -2, -1]], 16),
}


def kernel_of(name):
    numbers, divisor = KERNELS[name]
    return torch.tensor(numbers, dtype=torch.float64) / divisor


@pytest.mark.curriculum("M31", "M32")
def test_fixed_kernels():
    """Their sums are 1, 0, 1, 1, 1, 1, which is what a flat image becomes; unsharp = 2 identity - Gaussian."""
    for name, total in zip(KERNELS, [1, 0, 1, 1, 1, 1], strict=True):
        assert kernel_of(name).sum().item() == pytest.approx(total)
        torch.testing.assert_close(
            filtered(torch.ones(5, 5), kernel_of(name)), torch.full((3, 3), float(total)).double()
        )
    torch.testing.assert_close(kernel_of("unsharp"), 2 * kernel_of("identity") - kernel_of("gaussian"))
    image = torch.randn(6, 6)
    assert torch.equal(filtered(image, kernel_of("identity"), padding=1), image.double())


@pytest.mark.curriculum("M31")
@pytest.mark.parametrize("name", KERNELS)
def test_a_network_of_one_filter_learns_the_kernel(name):
    """Trained on images and the filtered images, its weights become the kernel to 1e-4."""
    blocks = blocks_of("cnn", (1, 10, 10), {"channels": 1, "padding": 0}).float()
    images = torch.randn(64, 1, 10, 10)
    targets = F.conv2d(images, kernel_of(name).float().view(1, 1, 3, 3))
    optimizer = build_optimizer({"name": "sgd", "lr": 0.2}, blocks)
    for _ in range(60):
        optimizer.zero_grad()
        (blocks(images) - targets).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(blocks.block1.conv.weight[0, 0].double(), kernel_of(name), atol=1e-4, rtol=0)
    assert abs(blocks.block1.conv.bias.item()) < 1e-4


@pytest.mark.curriculum("M33", "M34")
@pytest.mark.parametrize(("name", "shape"), [("cnn", (3, 8, 8)), ("conv1d", (3, 8))])
def test_filters_sum_over_channels(name, shape):
    """Weights (K, C, h, w), K (C h w + 1) parameters, one bias per map, and the sum of what each channel gives alone."""
    blocks = blocks_of(name, shape, {"channels": 6, "kernel": 3, "padding": 0})
    conv, axes = blocks.block1.conv, len(shape) - 1
    assert conv.weight.shape == (6, 3, *[3] * axes)
    assert conv.bias.shape == (6,)
    assert count_parameters(blocks) == 6 * (3 * 3**axes + 1)
    x = torch.randn(1, *shape, dtype=torch.float64)
    outputs = blocks(x)
    assert outputs.shape == (1, 6, *[6] * axes)
    alone = [blocks(x * mask.view(1, 3, *[1] * axes)) - conv.bias.view(1, 6, *[1] * axes) for mask in torch.eye(3)]
    conv.bias.data += torch.arange(6.0)
    shift = (blocks(x) - outputs).flatten(2)
    torch.testing.assert_close(outputs, sum(alone) + (conv.bias - torch.arange(6.0)).view(1, 6, *[1] * axes))
    torch.testing.assert_close(shift, torch.arange(6.0).double().view(1, 6, 1).expand_as(shift))


@pytest.mark.curriculum("M42")
@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ([{"channels": 1, "pool_size": 2}], 4),
        ([{"channels": 1}] * 3, 7),
        ([{"channels": 1, "kernel": 5, "pool_size": 2}] * 2, 16),
        ([{"channels": 1, "stride": 2}, {"channels": 1, "pool_size": 3, "pool_stride": 1}], 11),
    ],
)
@pytest.mark.parametrize(("name", "axes"), [("cnn", 2), ("conv1d", 1)])
def test_receptive_field(blocks, expected, name, axes):
    """Counted from kernels and strides (convolution of 3 and pooling of 2: 4), it is where the gradient of one output with
    respect to the input is not zero."""
    assert receptive_field(blocks) == expected
    layers = blocks_of(name, (1, *[64] * axes), *blocks, pool="avg", activation="tanh")
    x = torch.randn(1, 1, *[64] * axes, dtype=torch.float64, requires_grad=True)
    maps = layers(x)
    maps[(0, 0, *(n // 2 for n in maps.shape[2:]))].backward()
    seen = [places.unique() for places in x.grad[0, 0].nonzero(as_tuple=True)]
    assert [len(places) for places in seen] == [expected] * axes
    assert x.grad.count_nonzero() == expected**axes
    assert build(name, (1, *[64] * axes), blocks=list(blocks)).receptive_field == expected


@pytest.mark.curriculum("M44")
def test_counts_of_sparse_connections_and_shared_weights():
    """A 3x3 filter of colours has 27 weights; a dense layer between images of 256x256x3 has 3.87e10, and one of 280x320
    to 280x319 has 8.003e9 where a filter of two weights does with 2 * 89,320 multiplications."""
    with torch.device("meta"):
        conv = build("cnn", (3, 256, 256), blocks=[{"channels": 1, "batch_norm": False}], features="average", hidden=[])
        dense = build("linear", (3, 256, 256), 3 * 256 * 256)
        other = build("linear", (1, 280, 320), 280 * 319)
    weights = next(row for row in summarize(conv, (3, 256, 256)).layers if row.name == "blocks.block1.conv")
    assert weights.parameters == 27 + 1
    assert weights.macs == 27 * 256 * 256
    summary = summarize(dense, (3, 256, 256))
    assert summary.macs == 196_608**2 == 38_654_705_664
    assert f"{summary.macs:.2e}" == "3.87e+10"
    assert summarize(other, (1, 280, 320)).macs == 280 * 320 * 280 * 319 == 8_003_072_000
    assert 280 * 319 == 89_320


@pytest.mark.curriculum("M44")
@pytest.mark.parametrize("length", [50, 500])
def test_a_convolution_needs_multiplications_in_proportion_to_the_length(length):
    """S times L for a filter of S values, against L^2 of a dense layer."""
    with torch.device("meta"):
        conv = build("conv1d", (1, length), blocks=[{"channels": 1, "batch_norm": False}])
        dense = build("linear", (length,), length)
    layers = {row.name: row for row in summarize(conv, (1, length)).layers}
    assert layers["blocks.block1.conv"].macs == 3 * length
    assert summarize(dense, (length,)).macs == length**2


# ---- equivariance and invariance --------------------------------------------------------------------------------------------


@pytest.mark.curriculum("M45")
def test_equivariance_to_shifts_alone():
    """Away from the borders a shifted image gives shifted maps; a rotated or enlarged one does not give rotated or enlarged
    maps."""
    conv = blocks_of("cnn", (1, 28, 28), {"channels": 3}, activation="tanh")
    x = torch.randn(1, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(
        conv(x.roll((2, -1), (2, 3)))[..., 4:-4, 4:-4], conv(x).roll((2, -1), (2, 3))[..., 4:-4, 4:-4]
    )
    assert (conv(x.rot90(1, (2, 3))) - conv(x).rot90(1, (2, 3))).abs().max() > 0.1
    assert (conv(F.interpolate(x, scale_factor=2)) - F.interpolate(conv(x), scale_factor=2)).abs().max() > 0.1


@pytest.mark.curriculum("M45")
def test_convolution_and_pooling_are_invariant_to_shifts():
    """A pattern in an empty image gives the same averaged maps wherever it lies; pooling by 2 changes less than the maps."""
    settings = {"activation": "tanh", "batch_norm": False, "hidden": [], "dropout": 0.0}
    net = build("cnn", (1, 28, 28), blocks=[{"channels": 3}] * 2, features="average", **settings).double()
    torch.nn.init.constant_(net.blocks.block1.conv.bias, 0.3)
    pattern = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    pattern[..., 8:14, 9:15] = torch.randn(6, 6, dtype=torch.float64)
    torch.testing.assert_close(net(pattern), net(pattern.roll((5, 3), (2, 3))))
    pooled = blocks_of("cnn", (1, 28, 28), {"channels": 3, "pool_size": 4}, activation="tanh")
    plain = pooled.block1[:2]  # without the pooling
    shifted = pattern.roll(1, 2)

    def change(layers):
        return ((layers(shifted) - layers(pattern)).norm() / layers(pattern).norm()).item()

    assert change(pooled) < change(plain)


@pytest.mark.curriculum("M45")
@pytest.mark.parametrize("kind", ["max", "avg", "sum", "lp", "stochastic"])
def test_pooling_ignores_the_order_within_an_area(kind):
    """Permuting the values of every 2x2 area leaves the outputs as they are; permuting across areas does not."""
    pool = blocks_of("cnn", (1, 6, 6), {"channels": 1, "kernel": 1, "pool_size": 2}, pool=kind).eval()
    torch.nn.init.ones_(pool.block1.conv.weight)
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    swapped = x.view(3, 2, 3, 2).flip((1, 3)).reshape(1, 1, 6, 6)
    assert not torch.equal(swapped, x)
    torch.testing.assert_close(pool(swapped), pool(x))
    assert (pool(x.roll(1, 3)) - pool(x)).abs().max() > 0.01


@pytest.mark.curriculum("M36")
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 17, 40), (1, 28, 28)])
def test_flatten_size_is_inferred(shape):
    """An activation after each convolution, then maps are flattened into dense layers, for any size of image."""
    model = build("cnn", shape, hidden=[16, 12], batch_norm=False)
    kinds = [type(m).__name__ for m in model.modules() if not list(m.children())]
    assert kinds[:3] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert [k for k in kinds if k in ("Conv2d", "ReLU", "Linear")] == ["Conv2d", "ReLU"] * 3 + [
        "Linear",
        "ReLU",
    ] * 2 + ["Linear"]
    x = torch.randn(2, *shape)
    assert model.hidden.dense1.in_features == math.prod(model.blocks(x).shape[1:])
    assert model(x).shape == (2, 10)
