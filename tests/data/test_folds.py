"""Folds for cross-validation: each sample is validated once, like scikit-learn's, and the test set stays sealed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import KFold, StratifiedKFold

from dlrun.data._module import build_data, check_data
from dlrun.data._settings import DataSettings
from dlrun.data._split import split_rows
from dlrun.registry import ConfigError

CPU = torch.device("cpu")
examples = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
seeds = st.integers(0, 2**63 - 1)
QUICK = ("data=digits", "model=mlp", "model.hidden=[8]", "device=cpu", "trainer.epochs=2", "callbacks=[metrics_file]")


def rows_of(targets: torch.Tensor, folds: int, kind="class", published=True, fixed=None, **given) -> list[dict]:
    """The rows of every fold."""
    return [
        split_rows(targets, kind, DataSettings(folds=folds, fold=fold, **given), published=published, fixed=fixed)
        for fold in range(folds)
    ]


def modules(node: dict, folds: int) -> list:
    """The data of every fold."""
    return [build_data({**node, "folds": folds, "fold": fold}, seed=0, device=CPU) for fold in range(folds)]


def counts(labels: torch.Tensor, rows) -> list[int]:
    return torch.bincount(labels[torch.as_tensor(rows)], minlength=int(labels.max()) + 1).tolist()


@st.composite
def labels(draw: st.DrawFn) -> torch.Tensor:
    """int64 (N,) in random order: up to 6 classes of 1 to 40 samples, the first of them of at least 20."""
    sizes = [draw(st.integers(20, 40)), *draw(st.lists(st.integers(1, 40), max_size=5))]
    found = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(draw(st.integers(0, 1000))))]
    order = {label: number for number, label in enumerate(dict.fromkeys(found.tolist()))}
    return torch.tensor([order[label] for label in found.tolist()])  # numbered as they first come, as scikit-learn does


@examples
@pytest.mark.filterwarnings("ignore:The least populated class")
@given(labels(), st.integers(2, 20), seeds)
def test_folds_hold_the_classes_as_those_of_scikit_learn_do(targets, folds, split_seed) -> None:
    """Fold by fold as many samples of each class as StratifiedKFold gives; each sample is validated exactly once."""
    found = rows_of(targets, folds, split_seed=split_seed)
    theirs = StratifiedKFold(folds).split(np.zeros((len(targets), 1)), targets.numpy())
    for ours, (train, val) in zip(found, theirs, strict=True):
        assert counts(targets, ours["val"]) == counts(targets, val)
        assert counts(targets, ours["train"]) == counts(targets, train)
        assert sorted(torch.cat([ours["train"], ours["val"]]).tolist()) == list(range(len(targets)))
    assert sorted(torch.cat([rows["val"] for rows in found]).tolist()) == list(range(len(targets)))
    sizes = [len(rows["val"]) for rows in found]
    assert max(sizes) - min(sizes) <= 1


@examples
@given(st.integers(4, 200), st.data(), seeds)
def test_folds_of_real_targets_are_as_large_as_those_of_scikit_learn(count, data, split_seed) -> None:
    """Without classes: the sizes of KFold, down to leaving out one sample at a time, each validated once."""
    folds = data.draw(st.integers(2, count))
    found = rows_of(torch.zeros(count, 2), folds, "real", split_seed=split_seed)
    assert [len(rows["val"]) for rows in found] == [len(val) for _, val in KFold(folds).split(range(count))]
    assert sorted(torch.cat([rows["val"] for rows in found]).tolist()) == list(range(count))


@pytest.mark.parametrize(("kind", "low"), [("binary", 0.0), ("sign", -1.0)])
def test_binary_kinds_are_stratified(kind, low) -> None:
    """52 of 1,000 targets are positive: 10 or 11 in each of 5 folds."""
    targets = torch.full((1000, 1), low)
    targets[:52] = 1.0
    positive = [int((targets[rows["val"]] > 0).sum()) for rows in rows_of(targets, 5, kind)]
    assert sorted(positive) == [10, 10, 10, 11, 11]


def test_folds_are_random_and_a_function_of_the_split_seed() -> None:
    """The same seed gives the same folds, another one others; a fold is spread over the whole pool."""
    targets = torch.arange(3000) // 1000
    one, same, other = (rows_of(targets, 3, split_seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(one, same, other, strict=True):
        assert torch.equal(a["val"], b["val"])
        assert 250 < len(set(a["val"].tolist()) & set(c["val"].tolist())) < 420  # 333 of 1,000 by chance
        assert abs(a["val"].double().mean() - 1499.5) < 60  # its standard error is 8
        assert all(torch.equal(rows, rows.sort().values) for rows in a.values())


@pytest.mark.curriculum("D01")
def test_every_fold_has_the_same_sealed_test_set() -> None:
    """The test rows are those without folds and in no fold; also where they are prescribed."""
    targets = torch.arange(500) % 7
    plain = split_rows(targets, "class", DataSettings(), published=False)
    for rows in rows_of(targets, 4, published=False):
        assert torch.equal(rows["test"], plain["test"])
        assert not set(rows["test"].tolist()) & set(torch.cat([rows["train"], rows["val"]]).tolist())
    fixed = torch.arange(0, 500, 2), torch.arange(1, 500, 2)
    for rows in rows_of(targets, 4, fixed=fixed):
        assert torch.equal(rows["test"], fixed[1])
        assert torch.equal(torch.cat([rows["train"], rows["val"]]).sort().values, fixed[0])


def test_limits_come_after_the_folds() -> None:
    """A training limit leaves validation alone and takes from the other folds, a smaller one part of what a larger one takes;
    `val_fraction` changes nothing."""
    targets = torch.arange(400) % 4
    whole, few, fewer = (rows_of(targets, 5, **given) for given in ({}, {"limit_train": 40}, {"limit_train": 12}))
    for all_, some, less in zip(whole, few, fewer, strict=True):
        assert torch.equal(all_["val"], some["val"])
        assert set(less["train"].tolist()) < set(some["train"].tolist()) < set(all_["train"].tolist())
        assert counts(targets, less["train"]) == [3, 3, 3, 3]
    other = rows_of(targets, 5, val_fraction=0.4)
    assert all(torch.equal(a["val"], b["val"]) for a, b in zip(whole, other, strict=True))


def test_statistics_come_from_the_other_folds() -> None:
    """Mean and deviation of inputs and targets are NumPy's over the training rows of the fold, and validation is normalised
    by them."""
    sizes = []
    for data in modules({"name": "poly1d", "samples": 200, "noise": 1.0}, 3):
        samples, _ = data.source.train()
        x, y = samples.inputs.double().numpy(), samples.targets.double().numpy()
        sizes.append((data.spec.num_train, data.spec.num_val))
        train, val = (
            data.source_rows(name, list(range(n))) for name, n in zip(("train", "val"), sizes[-1], strict=True)
        )
        np.testing.assert_allclose(data.spec.mean, x[train].mean(0), rtol=1e-6)
        np.testing.assert_allclose(data.spec.target.std, y[train].std(0), rtol=1e-6)
        inputs = torch.cat([batch.inputs for batch in data.split("val")])
        np.testing.assert_allclose(inputs, (x[val] - x[train].mean(0)) / x[train].std(0), atol=1e-5)
    assert sizes == [(106, 54), (107, 53), (107, 53)]


def test_streamed_and_resident_folds_are_the_same(tmp_path: Path) -> None:
    """Images in files: every file is validated once, in the same fold and with the same pixels however it is loaded."""
    for number in range(14):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 6), (number * 10, 0, 255 - number)).save(path)
    node = {"name": "image_folder", "path": str(tmp_path), "image_size": 6, "workers": 0}
    resident, streamed = (modules({**node, "loader": loader}, 3) for loader in ("resident", "streaming"))
    validated = []
    for one, other in zip(resident, streamed, strict=True):
        assert one.spec == other.spec
        for a, b in zip(one.split("val"), other.split("val"), strict=True):
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)
        validated += one.source_rows("val", list(range(one.spec.num_val)))
    assert (len(validated), len(set(validated))) == (11, 11)  # 3 of 14 are the test set


def test_folds_of_a_table(tmp_path: Path) -> None:
    """A csv file: its rows but for the test rows are each validated once, a missing number replaced by the mean of the other
    folds."""
    cells = [f"{'' if row == 7 else row},{row % 2}" for row in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["x,y", *cells]) + "\n")
    found = modules({"name": "csv", "path": str(tmp_path / "t.csv"), "target": "y", "root": str(tmp_path)}, 4)
    rows = [row for data in found for row in data.source_rows("val", list(range(data.spec.num_val)))]
    assert len(rows) == len(set(rows)) == 24
    for data in found:
        train = [row for row in data.source_rows("train", list(range(data.spec.num_train))) if row != 7]
        assert data.spec.mean == pytest.approx([np.mean(train)], rel=1e-6)


def test_a_run_of_a_fold_is_saved_resumed_and_tested(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration keeps folds and fold; stopped and resumed the run ends bit for bit like a whole one, and its test
    metrics are those of the same test set again."""
    from dlrun.tasks.supervised import Supervised

    step, calls = Supervised.__call__, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 60:
            raise KeyboardInterrupt
        return step(self, *arguments)

    words = (*QUICK, "data.folds=5", "data.fold=3", "trainer.checkpoint_every_steps=10")
    with monkeypatch.context() as patched:
        patched.setattr(Supervised, "__call__", interrupted)
        assert cli(*words, "hydra.run.dir=run").rc == 130
    assert cli("resume=run").rc == 0
    assert cli(*words, "hydra.run.dir=whole").rc == 0
    found, whole = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole"))
    assert found["metrics"] == whole["metrics"]
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    hashes = [json.loads((tmp_path / name / "run.json").read_text())["split_hashes"] for name in ("run", "whole")]
    assert hashes[0] == hashes[1]
    done = cli("action=test", "run=run")
    assert (done.rc, f"{found['metrics']['test']['loss']:.6g}" in done.stdout) == (0, True)


def test_an_autoencoder_is_validated_on_a_fold(cli, tmp_path: Path) -> None:
    """Reconstruction has its folds too, and the two validate on different samples."""
    words = ("data=digits", "model=autoencoder", "model.hidden=[4]", "device=cpu", "trainer.epochs=1", "callbacks=none")
    losses = []
    for fold in (0, 1):
        assert cli(*words, "data.folds=2", f"data.fold={fold}", f"hydra.run.dir={fold}").rc == 0
        losses.append(json.loads((tmp_path / str(fold) / "results.json").read_text())["metrics"]["val"]["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folds": 1}, r"data\.folds: got 1; expected int >= 2 or null"),
        ({"folds": 0}, r"data\.folds: got 0"),
        ({"folds": 2.5}, r"data\.folds: got 2\.5"),
        ({"folds": "5"}, r"data\.folds: got '5'"),
        ({"folds": True}, r"data\.folds: got True"),
        ({"folds": 5, "fold": 5}, r"data\.fold: got 5; expected 0 to 4, as data\.folds is 5"),
        ({"folds": 5, "fold": -1}, r"data\.fold: got -1; expected int >= 0"),
        ({"fold": 2}, r"data\.fold: got 2, but data\.folds is null; set data\.folds"),
    ],
)
def test_bad_folds_are_refused_before_data_are_read(given, message) -> None:
    """One line that says what is allowed."""
    with pytest.raises(ConfigError, match=message):
        check_data({"name": "csv", "path": "nowhere.csv", "target": "y", **given})


def test_more_folds_than_samples_are_refused() -> None:
    """An empty fold is one line with how many there may be."""
    with pytest.raises(
        ConfigError, match=r"data\.folds: got 9; at most 8, the number of training and validation samples"
    ):
        rows_of(torch.arange(10) % 2, 9, published=False)
