"""What a run needs of memory: estimated before it, told, and measured after it."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dlrun import memory
from dlrun.memory import MemoryEstimate, estimate, state_tensors
from dlrun.models import MODELS
from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import build_optimizer

CPU = torch.device("cpu")
MODELS_AND_INPUTS = {
    "mlp": ({"name": "mlp"}, (1, 28, 28), 256),
    "lenet": ({"name": "lenet"}, (1, 28, 28), 64),
    "lenet, batch norm": ({"name": "lenet", "batch_norm": True, "dropout": 0.25}, (1, 28, 28), 64),
    "resnet-20": ({"name": "resnet_cifar"}, (3, 32, 32), 16),
    "cnn": ({"name": "cnn"}, (1, 28, 28), 32),
    "autoencoder": ({"name": "autoencoder"}, (1, 28, 28), 512),
}


def build(node: dict[str, Any], shape: tuple[int, ...]) -> nn.Module:
    return MODELS.build(node, input_shape=shape, num_outputs=10)


def allocated(model: nn.Module, shape: tuple[int, ...], batch: int, precision: str) -> int:
    """The most bytes that PyTorch's allocator had given at a time in a forward and backward pass, the inputs counted."""
    inputs = torch.zeros(batch, *shape)
    dtype = torch.bfloat16 if precision == "bf16" else None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(inputs).float().square().mean()
        loss.backward()
        del loss
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = inputs.nbytes
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS_AND_INPUTS)
def test_the_estimate_is_what_pytorch_allocates(name: str, precision: str) -> None:
    """Gradients and activations are 0.8 to 1.7 times the peak of the allocator."""
    node, shape, batch = MODELS_AND_INPUTS[name]
    model = build(node, shape)
    needed = estimate(model, shape, batch, precision, states=0)
    peak = allocated(model, shape, batch, precision)
    assert 0.8 <= needed.to_come / peak <= 1.7, f"{needed} against {peak}"


def test_counted_by_hand() -> None:
    """Linear(4, 3), ReLU, Linear(3, 2) with 23 weights keeps the input and the output of the ReLU of every sample."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    needed = estimate(model, (4,), 10, states=2)
    kept, largest = 10 * (4 + 3) * 4, 10 * 3 * 4
    assert needed == MemoryEstimate(10, 23 * 4, 23 * 4, 2 * 23 * 4, kept + largest)
    assert (needed.total, needed.to_come) == (4 * 92 + 400, 3 * 92 + 400)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 1000])
def test_in_proportion_to_the_batch(batch: int) -> None:
    """Activations grow with the samples, from the first on; small batches are counted as they are."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    assert estimate(model, (4,), batch).activations == batch * (4 + 3 + 3) * 4


def test_what_does_not_grow_with_the_batch_counts_once() -> None:
    """A weight that is computed in the forward pass is kept once, however large the batch."""

    class Squared(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight.exp())

    model = Squared(8, 16)
    assert estimate(model, (8,), 100).activations == 16 * 8 * 4 + 100 * 8 * 4


def test_frozen_parameters_have_no_gradient() -> None:
    """Only trainable parameters take gradients and states."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    needed = estimate(model, (4,), 10, states=1)
    assert (needed.weights, needed.gradients, needed.optimizer) == (92, 32, 32)


class Clamped(nn.Linear):
    """Changes its weights when it is used."""

    def __init__(self) -> None:
        super().__init__(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.clamp_(-1e-3, 1e-3)
        return super().forward(x)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_touched(training: bool) -> None:
    """Weights, batch norm statistics, dropout keys, gradients, mode and random numbers stay as they were."""
    model = nn.Sequential(
        build({"name": "lenet", "batch_norm": True, "dropout": 0.5}, (1, 28, 28)), nn.Dropout(0.5), Clamped()
    ).train(training)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    weights = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    assert estimate(model, (1, 28, 28), 64).activations
    assert torch.equal(torch.rand(5), expected)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(id(p) == weights[n][0] and torch.equal(p, weights[n][1]) for n, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training is training for module in model.modules())


class Locked(nn.Linear):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.numbers = (number for number in range(3))


class Picky(nn.Linear):
    """Cannot be run on zeros."""

    def __init__(self) -> None:
        super().__init__(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.any():
            raise KeyError("zeros")
        return super().forward(x)


@pytest.mark.parametrize("model", [Locked(), Picky()], ids=["cannot be copied", "cannot be run"])
def test_a_model_that_cannot_be_tried_ends_nothing(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    """Its activations are unknown, which the log says; the rest is counted."""
    needed = estimate(model, (4,), 10, states=1)
    assert needed == MemoryEstimate(10, 60, 60, 60, None)
    assert needed.to_come == 120
    with caplog.at_level(logging.INFO, "dlrun"):
        memory.tell(needed, CPU)
    assert "activations of 10 samples unknown" in caplog.text


def test_a_shared_weight_counts_once() -> None:
    """Two layers of one weight matrix."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    needed = estimate(model, (4,), 10, states=2)
    assert (needed.weights, needed.gradients, needed.optimizer) == (64, 64, 128)


@pytest.mark.parametrize(
    "node",
    [
        *({"name": name} for name in OPTIMIZERS.names() if name != "closed_form"),  # which takes no step
        {"name": "rmsprop", "momentum": 0.9},
        {"name": "momentum", "momentum": 0.0},
    ],
    ids=str,
)
def test_states_are_those_the_optimizer_makes(node: dict[str, Any]) -> None:
    """After a step it holds as many tensors of a parameter's size as were told before."""
    model = nn.Linear(5, 7)
    optimizer = build_optimizer(node, model)
    told = state_tensors(optimizer)
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    state = optimizer.state[model.weight]
    made = sum(isinstance(value, torch.Tensor) and value.shape == model.weight.shape for value in state.values())
    assert told == made


def test_half_precision_keeps_half() -> None:
    """In bf16 the activations of ResNet-20 take half of those in fp32."""
    node, shape, _ = MODELS_AND_INPUTS["resnet-20"]
    model = build(node, shape)
    full, half = (estimate(model, shape, 256, precision).activations or 0 for precision in ("fp32", "bf16"))
    assert 0.45 < half / full < 0.55


NEEDED = MemoryEstimate(128, 1 << 20, 1 << 20, 2 << 20, 5 << 20)


@pytest.mark.parametrize(("free", "warned"), [(8 << 20, False), ((8 << 20) - 1, True)])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_it_is_told(
    free: int, warned: bool, device: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log, and one warning with what to do where less is free than training adds to the weights."""
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    with caplog.at_level(logging.INFO, "dlrun"):
        memory.tell(NEEDED, torch.device(device))
    records = list(caplog.records)
    lines = [record.getMessage() for record in records]
    assert lines[0] == (
        "memory: weights 1.0 MiB, gradients 1.0 MiB, optimizer 2.0 MiB, activations of 128 samples 5.0 MiB: 9.0 MiB "
        f"estimated; 8.0 MiB free on {device}"
    )
    assert len(lines) == 1 + warned
    caplog.clear()
    memory.tell(NEEDED, torch.device(device), halves=True)
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == (warned and device == "cpu")
    if warned:
        split = "4" if device == "cpu" else "auto"
        assert records[1].levelno == logging.WARNING
        assert lines[1].startswith("memory: a step of 128 samples is estimated to take 8.0 MiB, but 8.0 MiB are free")
        assert f"data.batch_size, trainer.accumulate={split} or trainer.precision=bf16" in lines[1]


def test_little_is_imported() -> None:
    """Estimating LeNet loads neither torch._dynamo nor SymPy, which take seconds."""
    code = (
        "import sys, torch\nfrom dlrun.memory import estimate\nfrom dlrun.models import MODELS\n"
        "model = MODELS.build({'name': 'lenet'}, input_shape=(1, 28, 28), num_outputs=10)\n"
        "assert estimate(model, (1, 28, 28), 128).activations\n"
        "print([name for name in ('torch._dynamo', 'sympy', 'torchvision') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_peak_rss_is_this_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the program that started it, which getrusage gives after exec; where there is no /proc, getrusage's."""
    mine = memory.peak(CPU)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=1 << 40))
    if Path("/proc/self/status").exists():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        assert 0 < mine["peak_rss_mib"] <= memory.peak(CPU)["peak_rss_mib"]
        assert memory.peak(CPU)["peak_rss_mib"] == round(int(status["VmHWM"].split()[0]) / 1024, 1)
    monkeypatch.setattr(Path, "read_text", lambda self: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(sys, "platform", "linux")
    assert memory.peak(CPU) == {"peak_rss_mib": float(1 << 30)}


def test_peak_grows_with_what_is_taken() -> None:
    """64 MiB more than ever before show."""
    before = memory.peak(CPU)["peak_rss_mib"]
    now = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 if Path("/proc/self/statm").exists() else 0
    block = torch.ones(int(before * 2**20 - now) // 4 + (64 << 20) // 4)
    assert memory.peak(CPU)["peak_rss_mib"] >= before + 48
    del block


def test_the_peak_of_a_device_begins_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peaks of all devices that were used before are forgotten; without CUDA in use nothing is initialised."""
    reset: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    memory.begin_peak()
    assert reset == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    memory.begin_peak()
    assert reset == [0, 1]


@pytest.mark.cuda
def test_the_peak_of_a_device_is_this_runs() -> None:
    """A second run in the same process does not report the first one's."""
    device = torch.device("cuda", 0)
    block = torch.ones(64 << 18, device=device)
    del block
    memory.begin_peak()
    small = torch.ones(1 << 18, device=device)
    assert 1 <= memory.peak(device)["peak_device_mib"] < 64
    del small


@pytest.mark.cuda
def test_the_estimate_on_a_device() -> None:
    """Gradients and activations are 0.5 to 1.5 times the peak on the device, which has workspaces of its own."""
    device = torch.device("cuda", 0)
    node, shape, _ = MODELS_AND_INPUTS["resnet-20"]
    model = build(node, shape).to(device)
    needed = estimate(model, shape, 256, states=0)
    memory.begin_peak()
    before = torch.cuda.memory_allocated(device)
    model(torch.zeros(256, *shape, device=device)).square().mean().backward()
    peak = torch.cuda.max_memory_allocated(device) - before
    assert 0.5 <= needed.to_come / peak <= 1.5
