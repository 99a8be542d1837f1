"""Minibatches: order, resuming, loaders that agree, the sealed test set, saved state."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch

from dlrun.data import DATASETS, _memory, _resident, _streaming
from dlrun.data._base import Samples, Source
from dlrun.data._memory import Room
from dlrun.data._module import DataModule, build_data, check_data
from dlrun.data._resident import ResidentSplit, is_resident
from dlrun.data._settings import DataSettings
from dlrun.data._store import count_workers
from dlrun.data._streaming import StreamingSplit
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

CPU = torch.device("cpu")
AUGMENTED = {"shift": {"pixels": 1}, "noise": {"std": 0.1}}
PAIRS = ((0, 0), (1, 0), (0, 1))  # seed of a run, split_seed


def pictures(n: int = 200) -> torch.Tensor:
    return torch.randint(0, 256, (n, 2, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


class Pictures(Source):
    """Small random images of three classes with a published test set; counts how often each part is read."""

    published_split = True

    def __init__(self) -> None:
        self.opened = {"train": 0, "test": 0}

    def train(self):
        self.opened["train"] += 1
        return Samples(pictures(), torch.arange(200) % 3), TargetSpec("class", 3)

    def test(self):
        self.opened["test"] += 1
        return Samples(pictures(30), torch.arange(30) % 3)


class Files(Pictures):
    """The same images, one file each."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.paths = [folder / f"{i:03}.bin" for i in range(200)]
        for path, image in zip(self.paths, pictures(), strict=True):
            path.write_bytes(image.numpy().tobytes())

    def train(self):
        samples, target = super().train()
        return Samples(self.paths, samples.targets, decode), target


def decode(path: Path) -> torch.Tensor:
    content = path.read_bytes()
    if len(content) != 40:
        raise ConfigError(f"data.path: {path.name} is damaged")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(2, 4, 5)


def module(source: Source | None = None, seed: int = 0, device: torch.device = CPU, **settings) -> DataModule:
    return DataModule(source or Pictures(), DataSettings(**{"batch_size": 32, **settings}), seed=seed, device=device)


def order(data: DataModule, epoch: int) -> list[int]:
    return torch.cat([batch.indices for batch in data.epoch(epoch)]).tolist()


def assert_equal(ours, theirs) -> None:
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


@pytest.mark.curriculum("D06")
@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_an_epoch_visits_every_sample_once(loader):
    """Each epoch is a permutation of the training split, another one each epoch and seed, the same for the same seed."""
    data = module(loader=loader)
    assert (data.spec.num_train, data.spec.num_val, data.steps_per_epoch) == (180, 20, 6)
    orders = [order(data, epoch) for epoch in range(3)]
    for one in orders:
        assert sorted(one) == list(range(180))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert orders == [order(module(loader=loader), epoch) for epoch in range(3)]
    assert orders[0] != order(module(seed=1, loader=loader), 0)
    assert [len(batch.indices) for batch in data.epoch(0)] == [32] * 5 + [20]


def test_the_order_needs_no_global_state():
    """Drawing from the global generator in between changes nothing, and an epoch draws nothing from it."""
    data = module(augmentation=AUGMENTED)
    before = list(data.epoch(1))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert_equal(data.epoch(1), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.curriculum("D01")
def test_the_split_does_not_depend_on_the_run_seed():
    """Runs with other seeds share a split, of generated points the points too; another split_seed gives another one."""
    hashes = module(seed=0).spec.split_hashes
    assert set(hashes) == {"train", "val"}
    assert module(seed=1).spec.split_hashes == hashes
    assert module(split_seed=1).spec.split_hashes != hashes
    runs = [build_data({"name": "xor", "samples": 60, "split_seed": s}, seed=seed, device=CPU) for seed, s in PAIRS]
    assert_equal(runs[1].split("test"), runs[0].split("test"))
    assert not torch.equal(next(runs[2].split("test")).inputs, next(runs[0].split("test")).inputs)


@pytest.mark.parametrize("augmentation", [{}, AUGMENTED])
@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_resuming_in_mid_epoch_is_exact(augmentation, loader):
    """An epoch that starts at batch 4 gives the same bits as the rest of the whole epoch."""
    data = module(augmentation=augmentation, loader=loader, workers=0)
    assert_equal(data.epoch(2, start=4), list(data.epoch(2))[4:])
    assert list(data.epoch(2, start=6)) == []


@pytest.mark.curriculum("D03")
@pytest.mark.parametrize("normalize", ["standardize", "unit"])
def test_batches_are_the_normalised_images_and_their_targets(normalize):
    """A batch holds (value / 255 - mean) / std of its rows, in training as in evaluation."""
    data = module(normalize=normalize)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.spec.mean, data.spec.std))
    everything = {tuple(image.flatten().tolist()): i % 3 for i, image in enumerate(pictures())}
    for batch in [*data.epoch(0), *data.split("train"), *data.split("val")]:
        assert batch.inputs.dtype == torch.float32
        raw = ((batch.inputs * std + mean) * 255).round().to(torch.uint8)
        assert [everything[tuple(image.flatten().tolist())] for image in raw] == batch.targets.tolist()
    whole = torch.cat([batch.inputs for batch in data.split("train")])
    if normalize == "standardize":
        torch.testing.assert_close(whole.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(whole.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)
    else:
        assert whole.min() == 0.0
        assert whole.max() == 1.0


@pytest.mark.curriculum("D09")
def test_only_training_batches_are_augmented():
    """Evaluation of train and val gives the same bits each time, with augmentation as without; labels do not change."""
    plain, augmented = module(), module(augmentation=AUGMENTED)
    for name in ("train", "val", "test"):
        first = list(augmented.split(name))
        assert_equal(augmented.split(name), first)
        assert_equal(plain.split(name), first)
    for epoch in (0, 1):
        for ours, theirs in zip(augmented.epoch(epoch), plain.epoch(epoch), strict=True):
            assert torch.equal(ours.targets, theirs.targets)
            assert torch.equal(ours.indices, theirs.indices)
            assert not torch.equal(ours.inputs, theirs.inputs)


@pytest.mark.curriculum("D09")
def test_each_epoch_augments_anew():
    """The same sample looks different in the next epoch and under another seed."""
    data = module(augmentation={"noise": {}}, batch_size=180)
    first, second = (next(iter(data.epoch(e))) for e in (0, 1))
    other = next(iter(module(seed=1, augmentation={"noise": {}}, batch_size=180).epoch(0)))
    plain = torch.cat([batch.inputs for batch in data.split("train")])
    noises = [batch.inputs - plain[batch.indices] for batch in (first, second, other)]
    by_sample = [noise[batch.indices.argsort()] for noise, batch in zip(noises, (first, second, other), strict=True)]
    for ours in (noises, by_sample):  # of the same place in the batch, and of the same sample
        assert not torch.allclose(ours[0], ours[1], atol=1e-3)
        assert not torch.allclose(ours[0], ours[2], atol=1e-3)


@pytest.mark.curriculum("D10")
def test_noise_on_images_is_added_before_normalisation():
    """Noise of 0.1 on values in [0, 1] is noise of 0.1 / std on what the network sees."""
    data = module(augmentation={"noise": {"std": 0.1}}, batch_size=180)
    batch = next(iter(data.epoch(0)))
    plain = torch.cat([b.inputs for b in data.split("train")])[batch.indices]
    std = (batch.inputs - plain).std((0, 2, 3))
    torch.testing.assert_close(std, 0.1 / torch.tensor(data.spec.std), rtol=0.05, atol=0)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("files", [False, True])
def test_streaming_equals_resident(tmp_path, workers, files):
    """Both loaders give the same bits for tensors and for files, with any number of workers, over several epochs."""

    def source() -> Source:
        return Files(tmp_path) if files else Pictures()

    resident = module(Pictures(), augmentation=AUGMENTED, loader="resident")
    streaming = module(source(), augmentation=AUGMENTED, loader="streaming", workers=workers)
    assert streaming.spec == resident.spec
    for epoch in range(2):
        assert_equal(streaming.epoch(epoch), resident.epoch(epoch))
    assert_equal(streaming.split("val"), resident.split("val"))
    assert_equal(streaming.split("test"), resident.split("test"))
    streaming.close()


def test_streamed_vectors_equal_resident_ones():
    """Vectors with missing values and real targets stream with the same bits."""

    class Vectors(Source):
        def train(self):
            x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
            x[::5, 1] = float("nan")
            return Samples(x, x[:, :1] * 2 + 5), TargetSpec("real", 1)

    resident, streaming = (module(Vectors(), loader=name, workers=0) for name in ("resident", "streaming"))
    for name in ("train", "val", "test"):
        assert_equal(streaming.split(name), resident.split(name))
    assert_equal(streaming.epoch(0), resident.epoch(0))


def test_files_can_be_resident(tmp_path):
    """Files decoded once into one tensor give the same batches as the images in memory."""
    assert_equal(module(Files(tmp_path), loader="resident").epoch(0), module().epoch(0))


def test_a_second_reader_does_not_disturb_the_first(tmp_path):
    """Looking at a batch while an epoch streams, or leaving an epoch early, changes no batch."""
    expected = [list(module().epoch(epoch)) for epoch in range(3)]
    data = module(Files(tmp_path), loader="streaming", workers=1)
    seen = []
    for batch in data.epoch(0):
        seen.append(batch)
        assert_equal([next(data.epoch(1))], expected[1][:1])
    assert_equal(seen, expected[0])
    for _ in data.epoch(1):
        break
    assert_equal(data.epoch(2), expected[2])
    data.close()


def test_streaming_leaves_the_global_generator_alone(tmp_path):
    """An epoch through worker processes draws nothing from the global generator."""
    data = module(Files(tmp_path), loader="streaming", workers=1)
    state = torch.get_rng_state()
    list(data.epoch(0))
    assert torch.equal(torch.get_rng_state(), state)
    data.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_one_line(tmp_path, workers):
    """An error in a worker reaches the user as the one line it is."""
    source = Files(tmp_path)
    data = module(source, loader="streaming", workers=workers)
    for path in source.paths:
        path.write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        list(data.epoch(0))
    assert str(caught.value).endswith("is damaged")
    assert "\n" not in str(caught.value)
    data.close()


def test_splits_share_the_images():
    """The images of training and validation are rows of one tensor, not copies; those of vectors are normalised copies."""
    data = module()
    train, val = data._store.get("train"), data._store.get("val")
    assert train.inputs.data_ptr() == val.inputs.data_ptr()
    assert len(train.inputs) == 200
    assert torch.cat([train.rows, val.rows]).sort().values.tolist() == list(range(200))


def room(size: int) -> Room:
    """A room on the CPU in which `size` bytes are left."""
    found = Room(CPU)
    found._left = size
    return found


def test_auto_decides_by_size(tmp_path):
    """On the CPU tensors are resident; files are while their pixels fit; an explicit choice is followed."""
    tensors, _ = Pictures().train()
    files, _ = Files(tmp_path).train()
    assert is_resident(tensors, "auto", room(0))
    assert is_resident(files, "auto", room(200 * 40))
    assert not is_resident(files, "auto", room(200 * 40 - 1))
    assert is_resident(files, "resident", room(0))
    assert not is_resident(tensors, "streaming", room(1 << 30))


def test_files_too_large_for_the_memory_stream_with_the_same_batches(tmp_path, monkeypatch, caplog):
    """What does not fit in a quarter of the free memory left by the model streams, says so in one line, and changes no bit."""
    monkeypatch.setattr(_memory, "free_memory", lambda device: 4 * 180 * 40 + 99)
    caplog.set_level(logging.INFO, "dlrun")
    fits = module(Files(tmp_path), workers=0)
    assert isinstance(fits._store.get("train"), ResidentSplit)
    assert isinstance(fits._store.get("val"), StreamingSplit)  # the training split has taken the room
    assert [r.message for r in caplog.records if r.message.endswith("streaming")] == [
        "data: 7.45e-07 GiB do not fit beside the model in 2.24e-08 GiB of memory: streaming"
    ]
    monkeypatch.setattr(_memory, "free_memory", lambda device: 4 * 180 * 40 - 4)
    streams = module(Files(tmp_path), workers=0)
    assert isinstance(streams._store.get("train"), StreamingSplit)
    assert_equal(streams.epoch(0), fits.epoch(0))
    assert_equal(streams.split("val"), fits.split("val"))


def test_what_the_model_needs_is_left_free(monkeypatch):
    """On the CPU data may take a quarter of what the model leaves, on CUDA 90 % of the whole less the model's part, and a
    quarter while that is unknown."""
    monkeypatch.setattr(_memory, "free_memory", lambda device: 1000)
    for device, reserved, left in (("cpu", None, 250), ("cpu", 600, 100), ("cuda", None, 250), ("cuda", 600, 300)):
        found = Room(torch.device(device))
        found.reserved = reserved
        assert found.left() == left
        assert found.admit(left - 10)
        assert not found.admit(11)
        assert found.admit(10)
    crowded = Room(torch.device("cuda"))
    crowded.reserved = 5000
    assert crowded.left() == 0


def test_the_memory_of_this_machine_is_read():
    """What is free lies between nothing and what the machine has; a control group's limit counts, page cache left out."""
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc/meminfo")
    total = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) << 10
    assert 0 < _memory.free_memory(CPU) <= total


def test_limits_of_a_control_group(tmp_path):
    """Free is the limit less what is used and cannot be given up; `max` and absent files are no limit."""
    for name, text in (("max", "1000\n"), ("now", "700\n"), ("stat", "anon 500\ninactive_file 150\nfile 200\n")):
        (tmp_path / name).write_text(text)
    files = tmp_path / "max", tmp_path / "now", tmp_path / "stat"
    assert list(_memory._group(*files, "inactive_file ")) == [450]
    (tmp_path / "max").write_text("max\n")
    assert list(_memory._group(*files, "inactive_file ")) == []
    assert list(_memory._group(tmp_path / "absent", *files[1:], "inactive_file ")) == []


def test_workers_are_as_many_as_cores(monkeypatch):
    """`auto` is one worker per core of this process, at most 16; a number is taken as it is."""
    for cores, workers in ((1, 1), (3, 3), (64, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, n=cores: set(range(n)), raising=False)
        assert count_workers(DataSettings()) == workers
        assert count_workers(DataSettings(workers=5)) == 5


def test_waiting_for_data_is_measured(tmp_path, monkeypatch):
    """Only epochs that stream count: their seconds add up over epochs and outlast closing; resident data never wait."""
    resident = module()
    list(resident.epoch(0))
    assert resident.wait_s == 0.0
    clock = itertools.count()
    data = module(Files(tmp_path), loader="streaming", workers=0)
    monkeypatch.setattr(_streaming.time, "perf_counter", lambda: float(next(clock)))
    list(data.split("train")), list(data.split("val"))
    assert data.wait_s == 0.0
    list(data.epoch(0))
    assert data.wait_s == 7.0  # 6 batches and the end, a tick each
    data.close()
    list(data.epoch(1, start=4))
    assert data.wait_s == 10.0


def test_evaluation_batch_size_is_a_setting():
    """The setting beats what is put in place of `auto`, and an argument beats both."""

    def sizes(data: DataModule, **given: int) -> list[int]:
        return [len(batch.targets) for batch in data.split("train", **given)]

    data = module()
    assert sizes(data) == [180]
    data.evaluation_batch = 100
    assert sizes(data) == [100, 80]
    assert sizes(data, batch_size=90) == [90, 90]
    chosen = module(evaluation_batch_size=64)
    chosen.evaluation_batch = 100
    assert sizes(chosen) == [64, 64, 52]
    assert sizes(chosen, batch_size=90) == [90, 90]


def test_batches_gathered_together_are_those_gathered_alone(monkeypatch):
    """How many batches are gathered at once changes no bit, for images and vectors, augmented or not, from any batch on."""

    class Vectors(Source):
        def train(self):
            x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
            return Samples(x, x[:, :1] * 2), TargetSpec("real", 1)

    for source, settings in (
        (Pictures(), {}),
        (Pictures(), {"augmentation": AUGMENTED}),
        (Vectors(), {"batch_size": 7}),
    ):
        data = module(source, **settings)
        expected = [list(data.epoch(0, 1)), list(data.split("train", 9))]
        for chunk in (0, 2 * 7 * 3 * 4, 1 << 30):
            monkeypatch.setattr(_resident, "CPU_CHUNK", chunk)
            assert_equal(data.epoch(0, 1), expected[0])
            assert_equal(data.split("train", 9), expected[1])


@pytest.mark.parametrize("loader", ["resident", "streaming"])
@pytest.mark.parametrize("normalize", ["standardize", "unit"])
def test_a_batch_is_its_own(loader, normalize):
    """Overwriting inputs, targets and indices of a batch, also by something that needs a gradient, changes no other batch."""
    expected = [[part.clone() for part in batch] for batch in module(normalize=normalize).epoch(0)]
    data = module(loader=loader, normalize=normalize)
    scale = torch.ones(1, requires_grad=True)
    for batch, (inputs, targets, indices) in zip(data.epoch(0), expected, strict=True):
        assert not batch.inputs.requires_grad
        assert torch.equal(batch.inputs, inputs)
        assert torch.equal(batch.targets, targets)
        assert torch.equal(batch.indices, indices)
        batch.inputs.mul_(scale).sum().backward()
        batch.targets.zero_()
        batch.indices.zero_()
    assert_equal(data.epoch(0), expected)
    with torch.inference_mode():
        assert_equal(data.split("val"), module(normalize=normalize).split("val"))


@pytest.mark.curriculum("D02")
def test_the_test_set_is_sealed():
    """Training and validation never open the published test set; asking for it opens it once and completes the spec."""
    source = Pictures()
    data = module(source, limit_test=12)
    list(data.epoch(0)), list(data.split("train")), list(data.split("val"))
    assert source.opened == {"train": 1, "test": 0}
    assert data.spec.num_test is None
    list(data.split("test"))
    batches = list(data.split("test"))
    assert source.opened == {"train": 1, "test": 1}
    assert sum(len(batch.targets) for batch in batches) == data.spec.num_test == 12
    assert "test" in data.spec.split_hashes


def test_evaluation_covers_the_split_in_its_order():
    """Evaluation batches are large by default, smaller for large images, and hold each row once in order."""
    data = module(batch_size=8)
    assert [batch.indices.tolist() for batch in data.split("val")] == [list(range(20))]
    assert [len(batch.targets) for batch in data.split("train", batch_size=100)] == [100, 80]
    indices = torch.cat([batch.indices for batch in data.split("train", batch_size=7)])
    assert torch.equal(indices, torch.arange(180))


def test_work_in_place_does_not_reach_the_stored_data():
    """A model that overwrites its input batch changes no later batch."""
    data = module()
    before = [[part.clone() for part in batch] for batch in data.split("val")]
    for batch in data.split("val"):
        batch.inputs.zero_()
    assert_equal(data.split("val"), before)


def test_state_restores_normalisation_without_reading_data():
    """A module made from saved state (also through JSON) transforms inputs as before and reads no training data."""
    data = module(augmentation=AUGMENTED)
    state = json.loads(json.dumps(data.state_dict()))
    source = Pictures()
    restored = DataModule(source, data.settings, seed=0, device=CPU, state=state)
    assert restored.spec == data.spec
    assert restored.steps_per_epoch == data.steps_per_epoch
    assert torch.equal(restored.transform(pictures(5)), data.transform(pictures(5)))
    assert source.opened == {"train": 0, "test": 0}
    assert_equal(restored.epoch(1), data.epoch(1))


def test_saved_statistics_win_over_the_data_at_hand(caplog):
    """On another training subset the saved statistics stay in force, and the difference is reported."""
    data = module()
    other = module(limit_train=60)
    assert other.spec.mean != data.spec.mean
    other.load_state_dict(data.state_dict())
    expected = {tuple(x.flatten().tolist()) for batch in data.split("train") for x in batch.inputs}
    assert {tuple(x.flatten().tolist()) for batch in other.split("train") for x in batch.inputs} < expected
    assert other.spec.num_train == 60
    assert "the train split is not that of the saved run" in caplog.text


def test_loading_the_own_state_reads_nothing_again():
    """Resuming with the same data keeps what has been read."""
    source = Pictures()
    data = module(source)
    data.load_state_dict(data.state_dict())
    list(data.epoch(0))
    assert source.opened["train"] == 1


def test_build_data_from_a_node(monkeypatch, tmp_path):
    """A config node gives the module; the source gets the root folder and the split seed."""

    class Rooted(Pictures):
        def __init__(self, root: Path, seed: int, *, flavour: str = "plain") -> None:
            super().__init__()
            self.given = root, seed, flavour

    monkeypatch.setitem(DATASETS._entries, "rooted", Rooted)
    node = {"name": "rooted", "flavour": "odd", "split_seed": 5, "batch_size": 16, "root": str(tmp_path)}
    data = build_data(node, seed=1, device=CPU)
    assert data.source.given == (tmp_path, 5, "odd")
    assert (data.batch_size, data.steps_per_epoch) == (16, math.ceil(180 / 16))
    monkeypatch.setenv("DLRUN_DATA_DIR", str(tmp_path / "elsewhere"))
    assert build_data({"name": "rooted"}, seed=1, device=CPU).source.given[0] == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_fraction": 1.0}, r"data\.val_fraction: got 1\.0; expected float > 0"),
        ({"batch_size": 0}, r"data\.batch_size: got 0"),
        ({"loader": "residnet"}, r"data\.loader: got 'residnet'.*did you mean 'resident'\?"),
        ({"augmentation": {"flop": {}}}, r"data\.augmentation: unknown 'flop'.*did you mean 'flip'\?"),
        ({"augmentation": {"flip": {"p": "x"}}}, r"data\.augmentation\.flip\.p: got 'x'; expected float"),
        ({"augmentation": {"flip": 3}}, r"data\.augmentation\.flip: got 3"),
        ({"batchsize": 3}, r"data\.batchsize: unknown setting.*did you mean 'batch_size'\?"),
    ],
)
def test_wrong_settings_are_found_without_reading_data(monkeypatch, change, message):
    """`check_data` names what is wrong before anything is read."""
    source = Pictures()
    monkeypatch.setitem(DATASETS._entries, "toy_pictures", lambda: source)
    check_data({"name": "toy_pictures"})
    with pytest.raises(ConfigError, match=message):
        check_data({"name": "toy_pictures", **change})
    assert source.opened["train"] == 0


def test_the_augmentation_option_is_valid():
    """`regularization=augmentation` sets data.augmentation and nothing else, to values that stand the check."""
    from omegaconf import OmegaConf

    from dlrun.settings import config_dir

    text = (config_dir() / "regularization" / "augmentation.yaml").read_text()
    assert text.startswith("# @package _global_\n")  # Hydra reads it only before every other comment
    node = OmegaConf.to_container(OmegaConf.create(text))
    assert list(node) == ["data"]
    assert list(node["data"]) == ["augmentation"]
    data = module(augmentation=node["data"]["augmentation"])
    assert not torch.equal(next(data.epoch(0)).inputs, next(module().epoch(0)).inputs)


def test_a_null_augmentation_is_off():
    """An entry that is null, as an override leaves it, is the same as none."""
    assert_equal(module(augmentation={"flip": None}).epoch(0), module().epoch(0))


@pytest.mark.cuda
@pytest.mark.curriculum("D18")
def test_cuda_batches_equal_those_on_the_cpu():
    """The same seed gives the same order and, but for rounding, the same augmented batches on both devices."""
    for loader in ("resident", "streaming"):
        for augmentation in ({}, AUGMENTED):
            settings = {"loader": loader, "augmentation": augmentation, "workers": 1}
            on_cuda = module(device=torch.device("cuda"), **settings)
            for ours, theirs in zip(on_cuda.epoch(0), module(**settings).epoch(0), strict=True):
                assert ours.inputs.is_cuda
                assert torch.equal(ours.indices.cpu(), theirs.indices)
                assert torch.equal(ours.targets.cpu(), theirs.targets)
                torch.testing.assert_close(ours.inputs.cpu(), theirs.inputs, atol=1e-5, rtol=0)
            on_cuda.close()


@pytest.mark.curriculum("R10")
def test_augmentation_helps_on_few_samples():
    """On 100 real digits a small convolutional network validates better with elastic distortion (mean of 3 seeds)."""
    from sklearn.datasets import load_digits

    class Digits(Source):
        def train(self):
            x, y = load_digits(return_X_y=True)
            images = torch.from_numpy(x * 15.9375).round().to(torch.uint8).view(-1, 1, 8, 8)
            return Samples(images, torch.from_numpy(y)), TargetSpec("class", 10)

    def accuracy(augmentation: dict, seed: int) -> float:
        torch.manual_seed(seed)
        settings = {"limit_train": 100, "val_fraction": 0.5, "split_seed": seed}
        data = module(Digits(), seed=seed, augmentation=augmentation, **settings)
        layers = [torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 10)]
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for epoch in range(60):
            for batch in data.epoch(epoch):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
                optimizer.step()
        hits = [(model(b.inputs).argmax(1) == b.targets).float() for b in data.split("val")]
        return float(torch.cat(hits).mean())

    augmentation = {"elastic": {"alpha": 4.0, "sigma": 2.0}}
    gains = [accuracy(augmentation, seed) - accuracy({}, seed) for seed in range(3)]
    assert sum(gains) / 3 > 0.005, gains


def test_a_resumed_epoch_finds_batches_where_a_whole_one_has_them() -> None:
    """Kernels may round by how memory is aligned: the place of a batch within what is gathered together does not depend on
    where an epoch was resumed."""
    inputs = torch.arange(3000.0).view(1000, 3)
    split = ResidentSplit(inputs, torch.arange(1000))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = [(batch.inputs.clone(), batch.inputs.data_ptr() % 64) for batch in split.batches(order, 7)]
    for start in (1, 2, 5, 142):
        resumed = [(batch.inputs.clone(), batch.inputs.data_ptr() % 64) for batch in split.batches(order, 7, start)]
        assert len(resumed) == len(whole) - start
        for (a, at), (b, other) in zip(whole[start:], resumed, strict=True):
            assert torch.equal(a, b)
            assert at == other
    assert list(split.batches(order, 7, 143)) == []
