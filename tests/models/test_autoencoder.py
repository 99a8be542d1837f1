"""Autoencoders: counts, tied weights, codes, and PCA as the linear optimum."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from dlrun.models import MODELS
from dlrun.models._summary import count_parameters
from dlrun.registry import ConfigError


def build(inputs, outputs, **settings):
    return MODELS.build({"name": "autoencoder", **settings}, input_shape=inputs, num_outputs=outputs)


@pytest.mark.curriculum("M51", "R14", "U11", "U12")
@pytest.mark.parametrize(("tied", "count"), [(True, 784 * 64 + 64 + 784), (False, 2 * 784 * 64 + 64 + 784)])
def test_parameters_of_one_layer(tied, count):
    """d h + h + d with tied weights, and d h more without."""
    assert count_parameters(build((1, 28, 28), 784, hidden=[], code_size=64, tied=tied)) == count


@pytest.mark.curriculum("M51", "U11", "U12")
def test_tied_sigmoid_autoencoder_is_the_formula():
    """h = sigmoid(b + W x) and x' = c + W^T h, with one shared weight."""
    model = build((6,), 6, hidden=[], code_size=3, tied=True, code_activation="sigmoid")
    weight, bias, output_bias = model.parameters()
    with torch.no_grad():
        bias.uniform_()
        output_bias.uniform_()
    x = torch.randn(4, 6)
    torch.testing.assert_close(model(x), F.linear(torch.sigmoid(F.linear(x, weight, bias)), weight.t(), output_bias))


@pytest.mark.curriculum("U12")
@pytest.mark.parametrize("settings", [{"hidden": []}, {"hidden": [5]}, {"hidden": [], "channels": [2]}])
def test_gradient_of_a_tied_weight_is_the_sum_of_both_uses(settings):
    """An untied twin with copied weights gives two gradients; the tied one gives their sum."""
    torch.manual_seed(0)
    tied = build((1, 5, 6), 30, code_size=3, tied=True, activation="tanh", **settings)
    untied = build((1, 5, 6), 30, code_size=3, activation="tanh", **settings)
    first, *_ = (p for p in tied.parameters() if p.ndim > 1)
    encoder = [p for p in untied.encoder.parameters() if p.ndim > 1]
    decoder = [p for p in untied.decoder.parameters() if p.ndim > 1][::-1]
    shared = [p for p in tied.encoder.parameters() if p.ndim > 1]
    with torch.no_grad():
        for own, up, down in zip(shared, encoder, decoder, strict=True):
            up.copy_(own)
            down.copy_(own if own.ndim == 4 else own.t())
    x = torch.randn(4, 1, 5, 6)
    torch.testing.assert_close(tied(x), untied(x))
    for model in (tied, untied):
        model(x).square().sum().backward()
    second = decoder[0].grad if first.ndim == 4 else decoder[0].grad.t()
    torch.testing.assert_close(first.grad, encoder[0].grad + second)
    assert second.abs().max() > 0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("shape", "channels"), [((1, 28, 28), [4, 8]), ((3, 7, 5), [4, 4]), ((2, 8, 9), [3]), ((20,), [])]
)
def test_shapes_of_code_and_output(shape, channels, tied):
    """encode gives the code, decode flattened pixels, for odd and even image sizes."""
    size = torch.Size(shape).numel()
    model = build(shape, size, channels=channels, hidden=[12], code_size=5, tied=tied)
    x = torch.randn(3, *shape)
    code = model.encode(x)
    assert code.shape == (3, 5)
    assert model.decode(code).shape == (3, size)
    torch.testing.assert_close(model(x), model.decode(code))
    torch.testing.assert_close(model.code, code)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.curriculum("U13", "R13")
def test_a_penalty_on_the_code_reaches_the_encoder_only():
    """L1 of the code has a gradient in the encoder and none in the decoder."""
    model = build((6,), 6, hidden=[4], code_size=3)
    model(torch.randn(5, 6))
    model.code.abs().mean().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is None for p in model.decoder.parameters())


@pytest.mark.curriculum("R13", "U13")
def test_a_stronger_penalty_makes_the_code_smaller_and_sparser(composed, tmp_path):
    """Trained on digits with three strengths, mean |h| falls and the share of |h| < 0.1 rises."""
    from dlrun.build import build_trainer

    means, shares = [], []
    for strength in (0.0, 1.0, 10.0):
        words = (
            "model=autoencoder",
            "data=digits",
            "model.hidden=[64]",
            "regularization=[code_sparsity]",
            "callbacks=none",
        )
        more = (
            f"regularization.code_sparsity.strength={strength}",
            "trainer.epochs=5",
            "data.limit_train=500",
            "device=cpu",
        )
        folder = tmp_path / str(strength)
        folder.mkdir()
        trainer = build_trainer(composed(*words, *more), folder)
        trainer.fit()
        with torch.no_grad():
            code = trainer.run.model.eval().encode(next(iter(trainer.run.data.split("val"))).inputs).abs()
        means.append(code.mean().item())
        shares.append((code < 0.1).float().mean().item())
    assert means[0] > 2 * means[1] > 2 * 1.3 * means[2]
    assert 2 * shares[0] < shares[1] < shares[2] / 1.2


@pytest.mark.parametrize("tied", [False, True])
def test_copies_after_a_step(tied):
    """Copying and pickling work while the last code hangs on a graph, and a tied copy is tied to itself."""
    model = build((6,), 6, hidden=[4], code_size=3, tied=tied)
    x = torch.randn(5, 6)
    expected = model(x).detach()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.code is None
        with torch.no_grad():
            torch.testing.assert_close(twin(x), expected)
            next(twin.parameters()).zero_()
            assert (twin(x) - expected).abs().max() > 0
            torch.testing.assert_close(model(x), expected)


def test_outputs_that_no_decoder_has_are_refused():
    """Tied and convolutional decoders name the loss's number and the way out."""
    with pytest.raises(ConfigError, match=r"^model\.tied: tied weights give 784 outputs[^\n]* needs 10; use "):
        build((1, 28, 28), 10, tied=True)
    with pytest.raises(ConfigError, match=r"^model\.channels: [^\n]*multiple of 28x28 outputs[^\n]* needs 10; use "):
        build((1, 28, 28), 10, channels=[4])
    with pytest.raises(ConfigError, match=r"needs images [^\n]*vectors of 20 values; use model\.channels=\[\]$"):
        build((20,), 20, channels=[4])


@pytest.mark.curriculum("U10")
def test_linear_autoencoder_reaches_the_error_of_pca():
    """The best linear code of 2 units is as good as 2 principal components, and no better."""
    from sklearn.decomposition import PCA

    torch.manual_seed(0)
    x = torch.randn(200, 6) @ torch.randn(6, 6)
    x = x - x.mean(0)
    pca = PCA(2).fit(x.numpy())
    best = ((x.numpy() - pca.inverse_transform(pca.transform(x.numpy()))) ** 2).sum(1).mean()
    model = build((6,), 6, hidden=[], code_size=2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - x).square().sum(1).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() == pytest.approx(best, rel=1e-3)
