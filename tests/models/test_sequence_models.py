"""Recurrent networks and the transformer: against loops written out, PyTorch's own layers and the papers' formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._dropout import has_foreign_randomness, set_keys
from dlrun.models._sequence import steps_of, to_steps
from dlrun.models._summary import count_parameters, summarize
from dlrun.models.transformer import SelfAttention, sinusoids
from dlrun.registry import ConfigError

RECURRENT = ("rnn", "lstm", "gru")
QUIET = ("device=cpu", "callbacks=none", "trainer.threads=1")


def build(name: str, shape: tuple[int, ...], outputs: int = 3, **settings: Any) -> Any:
    return MODELS.build({"name": name, **settings}, input_shape=shape, num_outputs=outputs).double().eval()


def cell(name: str, x: Tensor, state: tuple[Tensor, Tensor], weights: Any, activation: str) -> tuple[Tensor, Tensor]:
    """One step of a recurrent layer by its formula: the new h and c (of no meaning but for the LSTM)."""
    h, c = state
    w, u, b, d = (getattr(weights, f"{n}_l0") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    if name == "rnn":
        return {"tanh": torch.tanh, "relu": torch.relu}[activation](x @ w.T + b + h @ u.T + d), c
    if name == "lstm":
        i, f, g, o = (x @ w.T + b + h @ u.T + d).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    (xr, xz, xn), (hr, hz, hn) = (x @ w.T + b).chunk(3, 1), (h @ u.T + d).chunk(3, 1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    return (1 - z) * (xn + r * hn).tanh() + z * h, c


def unfolded(name: str, model: Any, x: Tensor, activation: str = "tanh") -> Tensor:
    """The states of the last layer by a loop over the steps of x (N, T, D), the same weights at each."""
    for layer in model.layers:
        state = (x.new_zeros(len(x), layer.hidden_size),) * 2
        states = []
        for step in x.unbind(1):
            state = cell(name, step, state, layer, activation)
            states.append(state[0])
        x = torch.stack(states, 1)
    return x


@pytest.mark.curriculum("X01", "X02")
@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize(
    ("name", "settings"), [("rnn", {}), ("rnn", {"activation": "relu"}), ("lstm", {"forget_bias": 1.0}), ("gru", {})]
)
def test_recurrent_network_is_a_loop_over_the_steps(name: str, settings: dict[str, Any], readout: str) -> None:
    """Two layers give what s_t = f(U x_t + W s_(t-1)), unfolded in time, gives, and the formulas of LSTM and GRU."""
    model = build(name, (4, 7), hidden=5, layers=2, readout=readout, **settings)
    x = torch.randn(6, 4, 7, dtype=torch.float64)
    states = unfolded(name, model, x.transpose(1, 2), settings.get("activation", "tanh"))
    torch.testing.assert_close(model.states(x), states, rtol=0, atol=1e-12)
    read = states[:, -1] if readout == "last" else states.mean(1)
    torch.testing.assert_close(model(x), read @ model.head.weight.T + model.head.bias, rtol=0, atol=1e-12)


@pytest.mark.curriculum("X01")
@pytest.mark.parametrize(("name", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_weights_are_shared_over_time(name: str, gates: int) -> None:
    """A sequence ten times as long has no weight more: gates * (D h + h^2 + 2 h), and the head; gradients add up over time."""
    counts = {count_parameters(build(name, (4, length), hidden=5)) for length in (7, 70)}
    assert counts == {gates * (4 * 5 + 5 * 5 + 2 * 5) + 5 * 3 + 3}
    model = build("rnn", (1, 2), 1, hidden=1)
    values = {"weight_ih": 0.5, "weight_hh": 2.0, "bias_ih": 0.0, "bias_hh": 0.0}
    for key, value in values.items():
        nn.init.constant_(getattr(model.layers[0], f"{key}_l0"), value)
    nn.init.constant_(model.head.weight, 1.0)
    model(torch.tensor([[[0.2, -0.3]]], dtype=torch.float64)).backward()
    first = math.tanh(0.5 * 0.2)  # s_2 = tanh(0.5 x_2 + 2 s_1), s_1 = tanh(0.5 x_1)
    outer = 1 - math.tanh(0.5 * -0.3 + 2 * first) ** 2
    assert model.layers[0].weight_ih_l0.grad.item() == pytest.approx(outer * (-0.3 + 2 * (1 - first**2) * 0.2))
    assert model.layers[0].weight_hh_l0.grad.item() == pytest.approx(outer * first)


@pytest.mark.curriculum("X03")
@pytest.mark.parametrize("name", RECURRENT)
def test_bidirectional_is_two_networks(name: str) -> None:
    """Output of size 2h, twice the parameters, other weights for either direction; each half is a network of its own, the
    second on the steps in reverse, and the head reads where each of them ends."""
    both = build(name, (4, 7), hidden=5, bidirectional=True)
    x = torch.randn(6, 4, 7, dtype=torch.float64)
    halves = {suffix: build(name, (4, 7), hidden=5) for suffix in ("", "_reverse")}
    for suffix, one in halves.items():
        for key, parameter in one.layers[0].named_parameters():
            parameter.data = getattr(both.layers[0], key + suffix).data
    layer, single = both.layers[0], halves[""].layers[0]
    assert count_parameters(layer) == 2 * count_parameters(single)
    assert not torch.equal(layer.weight_ih_l0, layer.weight_ih_l0_reverse)
    states = both.states(x)
    assert states.shape == (6, 7, 10)
    torch.testing.assert_close(states[..., :5], halves[""].states(x))
    torch.testing.assert_close(states[..., 5:], halves["_reverse"].states(x.flip(2)).flip(1))
    ends = torch.cat([halves[""].states(x)[:, -1], halves["_reverse"].states(x.flip(2))[:, -1]], 1)
    torch.testing.assert_close(both(x), both.head(ends))


@pytest.mark.curriculum("X01")
def test_what_the_steps_are() -> None:
    """Rows of an image with all channels of a row side by side; samples of a signal; single values of a vector."""
    assert [steps_of("rnn", shape) for shape in [(3, 28, 20), (2, 50), (9,)]] == [(28, 60), (50, 2), (9, 1)]
    image = torch.arange(2 * 3 * 4).view(1, 2, 3, 4)
    assert to_steps(image)[0].tolist() == [
        [0, 1, 2, 3, 12, 13, 14, 15],
        [4, 5, 6, 7, 16, 17, 18, 19],
        [*range(8, 12), *range(20, 24)],
    ]
    assert to_steps(torch.tensor([[[1, 2], [3, 4]]]))[0].tolist() == [[1, 3], [2, 4]]
    assert to_steps(torch.tensor([[5, 6]]))[0].tolist() == [[5], [6]]
    with pytest.raises(
        ConfigError, match=r"^model\.name: gru needs images .*, sequences .* or vectors, the data gives"
    ):
        build("gru", (1, 2, 3, 4))


def test_forget_bias() -> None:
    """The setting moves the forget gates' biases, and nothing else."""
    torch.manual_seed(1)
    plain = build("lstm", (4, 7), hidden=5, bidirectional=True)
    torch.manual_seed(1)
    shifted = build("lstm", (4, 7), hidden=5, bidirectional=True, forget_bias=2.0)
    moved = {
        n: (q - p).abs().max().item() for (n, p), q in zip(plain.named_parameters(), shifted.parameters(), strict=True)
    }
    assert {n for n, by in moved.items() if by} == {"layers.0.bias_ih_l0", "layers.0.bias_ih_l0_reverse"}
    difference = shifted.layers[0].bias_ih_l0 - plain.layers[0].bias_ih_l0
    torch.testing.assert_close(difference, torch.tensor([0.0] * 5 + [2.0] * 5 + [0.0] * 10, dtype=torch.float64))


@pytest.mark.parametrize("name", [*RECURRENT, "transformer"])
def test_dropout_is_dlruns_own(name: str) -> None:
    """Masks follow from seed and step alone; a single layer has dropout, too, before its head."""
    model = build(name, (4, 7), layers=1, dropout=0.5).train()
    x, outputs = torch.randn(6, 4, 7, dtype=torch.float64), []
    for step in (0, 1, 0):
        set_keys(model, 3, step)
        torch.manual_seed(step)
        outputs.append(model(x))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])
    assert not has_foreign_randomness(model)


@pytest.mark.curriculum("X06")
@pytest.mark.parametrize(("activation", "readout"), [("relu", "mean"), ("gelu", "class_token")])
def test_transformer_is_pytorchs_encoder(activation: Any, readout: str) -> None:
    """With the same weights it computes what nn.TransformerEncoder with layer normalisation first does."""
    model = build("transformer", (4, 7), width=12, heads=3, mlp_ratio=1.5, activation=activation, readout=readout)
    layer = nn.TransformerEncoderLayer(12, 3, 18, 0.0, activation, batch_first=True, norm_first=True)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False).double()
    theirs.norm.load_state_dict(model.norm.state_dict())
    for own, other in zip(model.blocks, theirs.layers, strict=True):
        pairs = {
            own.norm1: other.norm1, own.norm2: other.norm2, own.attention.combine: other.self_attn.out_proj,
            own.mlp[0]: other.linear1, own.mlp[3]: other.linear2,
        }  # fmt: skip
        for source, target in pairs.items():
            target.load_state_dict(source.state_dict())
        other.self_attn.in_proj_weight.data = own.attention.query_key_value.weight.data
        other.self_attn.in_proj_bias.data = own.attention.query_key_value.bias.data
    x = torch.randn(5, 4, 7, dtype=torch.float64)
    tokens = model.tokens(x)
    assert tokens.shape == (5, 7 + (readout == "class_token"), 12)
    encoded = theirs(tokens)
    torch.testing.assert_close(model(x), model.head(encoded.mean(1) if readout == "mean" else encoded[:, 0]))


@pytest.mark.curriculum("X05")
def test_attention_weights() -> None:
    """The weights of every head and token are positive and sum to 1; equal keys get equal weights; the output is the
    weighted mean of the values, combined."""
    model = build("transformer", (1, 6, 8), width=12, heads=3, layers=2)
    x = torch.randn(5, 1, 6, 8, dtype=torch.float64)
    for weights in model.attention(x):
        assert weights.shape == (5, 3, 6, 6)
        assert (weights > 0).all()
        torch.testing.assert_close(weights.sum(3), torch.ones(5, 3, 6, dtype=torch.float64))
    attention = SelfAttention(4, 2, 0.0).double()
    nn.init.zeros_(attention.query_key_value.weight[:8])  # queries and keys
    nn.init.zeros_(attention.query_key_value.bias)
    tokens = torch.randn(1, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(attention.split(tokens)[0], torch.full((1, 2, 5, 5), 0.2, dtype=torch.float64))
    mean = tokens.mean(1, keepdim=True) @ attention.query_key_value.weight[8:].T
    torch.testing.assert_close(attention(tokens), attention.combine(mean).expand(1, 5, 4))


@pytest.mark.curriculum("X05", "X06")
def test_order_of_tokens_matters_by_positions_only() -> None:
    """Without positions the mean over the tokens is that of the tokens in any order; with them it is not."""
    model = build("transformer", (4, 7))
    x, order = torch.randn(5, 4, 7, dtype=torch.float64), [3, 0, 6, 1, 5, 2, 4]
    assert not torch.allclose(model(x), model(x[:, :, order]))
    nn.init.zeros_(model.positions)
    torch.testing.assert_close(model(x), model(x[:, :, order]))


def test_sinusoidal_positions() -> None:
    """Column 2i holds sin(t / 10000^(2i / d)), column 2i + 1 the cosine of the same, and there is no parameter for them."""
    table = sinusoids(3, 4)
    assert table[0].tolist() == [0, 1, 0, 1]
    assert table[2].tolist() == pytest.approx([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)])
    learned, fixed = (build("transformer", (4, 7), width=12, positions=p) for p in ("learned", "sinusoidal"))
    assert count_parameters(learned) - count_parameters(fixed) == 7 * 12
    assert "positions" not in fixed.state_dict()


def test_patches() -> None:
    """An image of 2x4x6 in patches of 2 has 2x3 tokens of 8 values, from the top left row by row."""
    model = build("transformer", (2, 4, 6), patch=2, width=8, heads=1)
    nn.init.eye_(model.embedding.weight)
    nn.init.zeros_(model.positions)
    tokens = model.tokens(torch.arange(48.0, dtype=torch.float64).view(1, 2, 4, 6))[0]
    assert tokens.shape == (6, 8)
    assert tokens[1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]
    assert tokens[3].tolist() == [12, 13, 18, 19, 36, 37, 42, 43]


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        (
            (1, 28, 28),
            {"heads": 5},
            r"^model\.heads: 5 heads do not divide a width of 64; allowed: 1, 2, 4, 8, 16, 32, 64$",
        ),
        ((1, 28, 20), {"patch": 8}, r"^model\.patch: 8 does not divide images of 1x28x20; allowed: 1, 2, 4, or null$"),
        ((20,), {"patch": 4}, r"^model\.patch: got 4; patches need images .* vectors of 20 values; set it to null$"),
        ((2, 20), {"patch": 4}, r"^model\.patch: got 4; patches need images .* set it to null$"),
    ],
)
def test_transformer_refuses(shape: tuple[int, ...], settings: dict[str, Any], message: str) -> None:
    """What does not fit is refused in one line with what would."""
    with pytest.raises(ConfigError, match=message):
        build("transformer", shape, **settings)


def macs(model: nn.Module, shape: tuple[int, ...], *layers: str) -> int:
    """Multiplications of one sample in these layers, or in the whole model."""
    summary = summarize(model.float(), shape)
    return sum(row.macs for row in summary.layers if row.name in layers) if layers else summary.macs


@pytest.mark.curriculum("H18", "X01", "X06")
def test_complexity_of_layer_types() -> None:
    """Multiplications: recurrent n d^2, convolution k n d^2, attention n^2 d beside the maps of queries, keys, values."""
    for n, d in ((10, 8), (20, 8), (10, 16)):
        recurrent = build("rnn", (d, n), hidden=d)
        assert macs(recurrent, (d, n)) - macs(recurrent, (d, n), "head") == 2 * n * d**2  # U x and W s
        assert macs(nn.Conv1d(d, d, 5, padding=2), (d, n)) == 5 * n * d**2
        encoder = build("transformer", (d, n), width=d, heads=2, layers=1)
        maps = ("query_key_value", "combine")
        attention = macs(encoder, (d, n), *(f"blocks.0.attention.{name}" for name in maps))
        assert attention == 4 * n * d**2
        rest = macs(encoder, (d, n), "embedding", "blocks.0.mlp.0", "blocks.0.mlp.3", "head")
        assert macs(encoder, (d, n)) - rest - attention == 2 * n**2 * d  # Q K' and weights times V


@pytest.mark.curriculum("X01", "X02", "X03", "X06")
@pytest.mark.parametrize(
    "words",
    [
        ("model=rnn", "model.hidden=64"),
        ("model=lstm", "model.hidden=48", "model.layers=2", "model.dropout=0.1", "model.bidirectional=true"),
        ("model=gru", "model.hidden=64"),
        ("model=transformer", "model.layers=1", "model.width=32", "model.dropout=0.1"),
        ("model=transformer", "model.patch=4", "model.readout=class_token", "model.positions=sinusoidal"),
    ],
    ids=lambda words: " ".join(words),
)
def test_digits_row_by_row(cli, words: tuple[str, ...]) -> None:
    """Images read row by row, or in patches, are told apart: test accuracy above 0.85 after 200 updates."""
    settings = (
        "data=digits",
        "data.limit_train=800",
        "data.batch_size=32",
        "trainer.epochs=8",
        "optimizer.lr=5e-3",
        *QUIET,
    )
    done = cli(*words, *settings, "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    assert json.loads(Path("run/results.json").read_text())["metrics"]["test"]["accuracy"] > 0.85


DYNAMIC = """
import torch
from torch import nn
from dlrun.models import MODELS

@MODELS.register("{name}")
class Dynamic(nn.Module):
    '''As many passes through one layer as the data ask for.'''
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layer, self.head = nn.Linear(2, 8), nn.Linear(8, num_outputs)
        self.again = nn.Linear(8, 8)

    def forward(self, x):
        h = torch.tanh(self.layer(x))
        passes = 0
        while passes < 5 and (passes == 0 or float(h.detach().abs().mean()) < 0.5):
            h = torch.tanh(self.again(h) + h)
            passes += 1
        return self.head(h if passes > 1 else torch.relu(h))
"""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*RECURRENT, "transformer"])
def test_mixed_precision(name: str, dtype: torch.dtype) -> None:
    """Under autocast a step forward and backward gives about what float32 gives."""
    model = build(name, (4, 7)).float()
    x = torch.randn(6, 4, 7)
    with torch.autocast("cpu", dtype):
        outputs = model(x)
    outputs.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    torch.testing.assert_close(outputs.float(), model(x), rtol=0, atol=0.03)


@pytest.mark.curriculum("X24")
def test_a_network_that_depends_on_the_data(cli, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any module with loops and conditions in its forward pass trains, once it is registered."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "dynamic_network.py").write_text(DYNAMIC.format(name="dynamic"))
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "dynamic.yaml").write_text("name: dynamic\nimport: dynamic_network\n")
    words = ("data=two_moons", "trainer.epochs=5", "optimizer.lr=0.02", *QUIET)
    try:
        done = cli("--config-dir", "mine", "model=dynamic", *words, "hydra.run.dir=run")
    finally:
        MODELS._entries.pop("dynamic", None)
    assert done.rc == 0, done.stderr
    assert json.loads(Path("run/results.json").read_text())["metrics"]["test"]["accuracy"] > 0.9


@pytest.mark.parametrize("name", RECURRENT)
def test_stacking_goes_back_to_single_runs(composed, tmp_path, name: str) -> None:
    """Recurrent layers have no stacked kernels: that is said in one line before anything is written."""
    from dlrun.stacking import NotStackable, train_stacked

    shared = ("data=digits", "data.limit_train=32", f"model={name}", "trainer.steps=2", *QUIET)
    configs = [composed(*shared, f"seed={seed}") for seed in (0, 1)]
    folders = [tmp_path / str(seed) for seed in (0, 1)]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(NotStackable) as raised:
        train_stacked(configs, folders)
    assert str(raised.value)
    assert "\n" not in str(raised.value)
