"""`data.sampling`: minibatches drawn with replacement, and the smallest of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dlrun.data._module import build_data, check_data
from dlrun.registry import ConfigError

CPU = torch.device("cpu")
QUICK = (
    "data=digits",
    "model=linear",
    "device=cpu",
    "trainer.epochs=2",
    "callbacks=[metrics_file]",
    "data.limit_train=200",
)


def module(seed: int = 0, **settings):
    node = {"name": "blobs", "samples": 2000, "batch_size": 32, "sampling": "with_replacement", **settings}
    return build_data(node, seed=seed, device=CPU)


def order(data, epoch: int, start: int = 0) -> list[int]:
    return [index for batch in data.epoch(epoch, start) for index in batch.indices.tolist()]


@pytest.mark.curriculum("D08")
def test_with_replacement_draws_duplicates():
    """An epoch has as many minibatches of the same sizes as without, but draws each sample independently: a share 1 - 1/e of
    all comes at all, how often is Poisson, and samples come twice in a minibatch."""
    data, disjoint = module(), module(sampling="disjoint")
    n = data.spec.num_train
    assert [len(batch.indices) for batch in data.epoch(0)] == [len(batch.indices) for batch in disjoint.epoch(0)]
    epochs = [order(data, epoch) for epoch in range(20)]
    counts = torch.stack([torch.bincount(torch.tensor(epoch), minlength=n) for epoch in epochs])
    assert counts.shape == (20, n)
    for times, share in ((0, 0.3679), (1, 0.3679), (2, 0.1839), (3, 0.0613)):
        assert abs((counts == times).double().mean() - share) < 0.01
    drawn = counts.sum(0).double()  # 20 expected of each, variance 20
    assert 0.85 < ((drawn - 20) ** 2 / 20).mean() < 1.15
    assert any(len(set(batch.indices.tolist())) < 32 for batch in data.epoch(0))
    assert sorted(order(disjoint, 0)) == list(range(n))


@pytest.mark.curriculum("D08")
def test_draws_are_a_function_of_seed_and_epoch():
    """The same seed and epoch give the same draws whatever the global generators hold, others give others; the split stays."""
    draws = [order(module(), epoch) for epoch in (0, 1)]
    torch.manual_seed(9)
    assert [order(module(), epoch) for epoch in (0, 1)] == draws
    assert len({tuple(draw) for draw in (*draws, order(module(seed=1), 0))}) == 3
    assert module(seed=1).spec == module(sampling="disjoint").spec


@pytest.mark.parametrize("augmentation", [None, {"noise": {}}])
@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_the_rest_of_an_epoch_is_exact(loader, augmentation):
    """From any minibatch on, an epoch gives the bits of the whole one; both loaders give the same."""
    data = module(loader=loader, augmentation=augmentation, transform={"polar": {}})
    reference = list(module(augmentation=augmentation, transform={"polar": {}}).epoch(3))
    for start in (0, 1, 17, 44):
        found = list(data.epoch(3, start))
        assert len(found) == len(reference) - start > 0
        for ours, theirs in zip(found, reference[start:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.curriculum("D08")
@pytest.mark.parametrize("sampling", ["disjoint", "with_replacement"])
def test_a_batch_of_one_trains(cli, tmp_path: Path, sampling):
    """Stochastic gradient descent in the strict sense: one sample an update, as many updates as samples."""
    words = ("data=blobs", "data.samples=100", "data.batch_size=1", "model=mlp", "model.hidden=[8]", "optimizer=sgd",
             "optimizer.lr=0.05", "device=cpu", "trainer.epochs=2", "callbacks=none", f"data.sampling={sampling}")  # fmt: skip
    done = cli(*words, "hydra.run.dir=run")
    assert done.rc == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["steps"] == 2 * 72
    assert found["metrics"]["test"]["accuracy"] > 0.95


@pytest.mark.curriculum("D08", "D07")
def test_a_run_is_resumed_exactly(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped in mid-epoch and resumed, a run that draws with replacement ends bit for bit like a whole one, and unlike one
    that does not; its throughput is recorded."""
    from dlrun.tasks.supervised import Supervised

    step, calls = Supervised.__call__, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return step(self, *arguments)

    words = (*QUICK, "data.sampling=with_replacement", "trainer.checkpoint_every_steps=4")
    with monkeypatch.context() as patched:
        patched.setattr(Supervised, "__call__", interrupted)
        assert cli(*words, "hydra.run.dir=run").rc == 130
    assert cli("resume=run").rc == 0
    assert cli(*words, "hydra.run.dir=whole").rc == 0
    assert cli(*QUICK, "hydra.run.dir=disjoint").rc == 0
    names = ("run", "whole", "disjoint")
    metrics, whole, disjoint = (json.loads((tmp_path / name / "results.json").read_text())["metrics"] for name in names)
    assert metrics == whole != disjoint
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    assert json.loads((tmp_path / "whole/results.json").read_text())["timing"]["samples_per_s"] > 0


def test_an_unknown_way_is_refused():
    """One line with what is allowed and what is nearest."""
    with pytest.raises(
        ConfigError, match=r"data\.sampling: got 'with_replacment'; .*did you mean 'with_replacement'\?"
    ):
        check_data({"name": "blobs", "sampling": "with_replacment"})
