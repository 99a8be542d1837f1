"""Properties that hold for every split, order, augmentation, stream, schedule and checkpoint, on examples drawn by hypothesis.

Always the same examples (`derandomize`), without a deadline: nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlrun import checkpoint, streams
from dlrun.data._augmentation import AUGMENTATIONS, build_augmentations
from dlrun.data._base import Samples, Source
from dlrun.data._module import DataModule
from dlrun.data._settings import DataSettings
from dlrun.data._split import split_rows
from dlrun.early_stopping import EarlyStopping
from dlrun.registry import ConfigError
from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._build import build_scheduler
from dlrun.spec import TargetSpec

examples = settings(
    max_examples=50, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
seeds = st.integers(0, 2**63 - 1)
fractions = st.floats(0.1, 0.6)
CPU = torch.device("cpu")


# ---- split ------------------------------------------------------------------------------------------------------------


@st.composite
def labels(draw: st.DrawFn) -> torch.Tensor:
    """int64 (N,): 30 to 150 samples of at most 6 classes, some of them rare or without any sample."""
    weights = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any))
    count = draw(st.integers(30, 150))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return torch.multinomial(torch.tensor(weights, dtype=torch.float64), count, True, generator=generator)


def split(targets: torch.Tensor, **kept: Any) -> dict[str, torch.Tensor]:
    return split_rows(targets, "class", DataSettings(**kept), published=False)


@examples
@given(labels(), fractions, fractions, seeds)
def test_splits_are_disjoint_complete_and_of_the_wanted_size(targets, val_fraction, test_fraction, split_seed) -> None:
    """Every sample is in exactly one split; sizes are the fractions asked for, rounded; the same settings split alike."""
    kept = {"val_fraction": val_fraction, "test_fraction": test_fraction, "split_seed": split_seed}
    rows, again = split(targets, **kept), split(targets, **kept)
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(len(targets)))
    assert abs(len(rows["test"]) - test_fraction * len(targets)) <= 0.5 + 1e-9
    assert abs(len(rows["val"]) - val_fraction * (len(targets) - len(rows["test"]))) <= 0.5 + 1e-9
    for name in rows:
        assert torch.equal(rows[name], again[name])
        assert torch.equal(rows[name], rows[name].sort().values)


def assert_stratified(part: torch.Tensor, pool: torch.Tensor) -> None:
    """The classes of `part` are in the proportions of `pool`: to half a sample for two classes, to one for balanced ones,
    and never further off than the cut through all classes at one place allows."""
    sizes = torch.bincount(pool)
    wanted = sizes.double() * len(part) / len(pool)
    classes = int((sizes > 0).sum())
    bound = 0.5 + sizes.double() / len(pool) * max(0, classes - 2) / 2
    assert ((torch.bincount(part, minlength=len(sizes)) - wanted).abs() <= bound + 1e-9).all()


@examples
@given(labels(), fractions, fractions, seeds)
def test_splits_are_stratified(targets, val_fraction, test_fraction, split_seed) -> None:
    """Every class is held out in proportion, whatever the class sizes, and so is the rest."""
    rows = split(targets, val_fraction=val_fraction, test_fraction=test_fraction, split_seed=split_seed)
    pool = torch.cat([rows["train"], rows["val"]])
    assert_stratified(targets[rows["test"]], targets)
    assert_stratified(targets[rows["val"]], targets[pool])


@examples
@given(st.integers(1, 10), st.integers(8, 20), fractions, seeds)
def test_balanced_classes_are_held_out_to_within_one_sample(classes, each, val_fraction, split_seed) -> None:
    """With as many samples of every class, the counts of any two classes in validation differ by one at most."""
    targets = torch.arange(classes * each) % classes
    rows = split_rows(targets, "class", DataSettings(val_fraction=val_fraction, split_seed=split_seed), published=True)
    counts = torch.bincount(targets[rows["val"]], minlength=classes)
    assert counts.max() - counts.min() <= 1


@examples
@given(labels(), seeds, *[st.none() | st.integers(1, 40)] * 3, st.integers(1, 20))
def test_a_limit_takes_from_its_own_split_only(targets, split_seed, train, val, test, less) -> None:
    """Each limited split is a stratified subset of the whole one, the same whatever the other limits are; a smaller limit
    gives a subset of a larger one."""
    limits = {"limit_train": train, "limit_val": val, "limit_test": test}
    whole, limited = split(targets, split_seed=split_seed), split(targets, split_seed=split_seed, **limits)
    for name in whole:
        limit = limits[f"limit_{name}"]
        alone = split(targets, split_seed=split_seed, **{f"limit_{name}": limit})[name]
        assert torch.equal(limited[name], alone)
        assert len(alone) == min(len(whole[name]), limit or len(targets))
        assert set(alone.tolist()) <= set(whole[name].tolist())
        assert_stratified(targets[alone], targets[whole[name]])
        fewer = split(targets, split_seed=split_seed, **{f"limit_{name}": max(1, len(alone) - less)})[name]
        assert set(fewer.tolist()) <= set(alone.tolist())


# ---- order ------------------------------------------------------------------------------------------------------------


class Images(Source):
    """`count` random images of 3x4 in two classes."""

    def __init__(self, count: int) -> None:
        self.count = count

    def train(self):
        generator = torch.Generator().manual_seed(self.count)
        images = torch.randint(0, 256, (self.count, 1, 3, 4), dtype=torch.uint8, generator=generator)
        return Samples(images, torch.arange(self.count) % 2), TargetSpec("class", 2)


def module(count: int, seed: int, **kept: Any) -> DataModule:
    return DataModule(Images(count), DataSettings(**{"workers": 0, **kept}), seed=seed, device=CPU)


def assert_same(ours: list, theirs: list) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(itertools.chain.from_iterable(ours), itertools.chain.from_iterable(theirs), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


sizes = st.integers(10, 60)
batch_sizes = st.integers(1, 70)
augmentation = {"shift": {"pixels": 1}, "noise": {"std": 0.1}}


@examples
@given(sizes, batch_sizes, seeds, st.integers(0, 2**40), st.sampled_from(["resident", "streaming"]))
def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide(count, batch_size, seed, epoch, loader) -> None:
    """Every sample once, in full batches but for the last; the same order for every batch size, loader and history."""
    data = module(count, seed, batch_size=batch_size, loader=loader)
    batches = [batch.indices for batch in data.epoch(epoch)]
    order = torch.cat(batches).tolist()
    number = data.spec.num_train
    assert sorted(order) == list(range(number))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (math.ceil(number / batch_size) - 1)
    assert data.steps_per_epoch == len(batches)
    other = module(count, seed, batch_size=7, augmentation=augmentation)
    for earlier in (3, epoch + 1):
        next(other.epoch(earlier))
    torch.rand(3)
    assert torch.cat([batch.indices for batch in other.epoch(epoch)]).tolist() == order


@examples
@given(sizes, batch_sizes, seeds, st.integers(0, 1000), st.data())
def test_an_epoch_from_its_middle_is_the_tail_of_the_whole(count, batch_size, seed, epoch, data) -> None:
    """Resuming before any batch gives, augmentation included, the batches that were left, from both loaders; none after the
    last."""
    kept = {"batch_size": batch_size, "augmentation": augmentation}
    whole = list(module(count, seed, loader="resident", **kept).epoch(epoch))
    start = data.draw(st.integers(0, len(whole)))
    for loader in ("resident", "streaming"):
        assert_same(list(module(count, seed, loader=loader, **kept).epoch(epoch, start)), whole[start:])


@examples
@given(sizes, seeds, seeds)
def test_the_run_seed_moves_no_sample_to_another_split(count, one, other) -> None:
    """Runs of any seeds share a split and its evaluation batches, but not an order."""
    first, second = module(count, one), module(count, other)
    assert first.spec.split_hashes == second.spec.split_hashes
    assert_same(list(first.split("val")), list(second.split("val")))
    orders = [torch.cat([batch.indices for batch in data.epoch(0)]).tolist() for data in (first, second)]
    assert (orders[0] == orders[1]) == (one == other)


# ---- augmentation -----------------------------------------------------------------------------------------------------

strengths = {  # settings of every augmentation; the first value of each changes nothing
    "brightness": {"strength": (0.0, 0.4, 1.0)},
    "colour": {"saturation": (0.0, 0.5), "shift": (0.0, 0.3)},
    "contrast": {"strength": (0.0, 0.4, 1.0)},
    "crop": {"min_area": (1.0, 0.5, 0.1), "max_ratio": (1.0, 1.5)},
    "elastic": {"alpha": (0.0, 8.0), "sigma": (2.0, 4.0)},
    "erasing": {"p": (0.0, 0.5, 1.0), "fill": (0.0, 1.0)},
    "flip": {"p": (0.0, 0.5, 1.0), "direction": ("horizontal", "vertical")},
    "noise": {"std": (0.0, 0.1)},
    "rotation": {"degrees": (0.0, 20.0, 180.0)},
    "scale": {"min_factor": (1.0, 0.5), "max_factor": (1.0, 2.0)},
    "shift": {"pixels": (0, 1, 3)},
}
UNBOUNDED = {"noise"}  # it says so: clipping would change its standard deviation
BLENDING = {"colour", "crop", "elastic", "rotation", "scale"}  # weights that sum to 1 only up to rounding


def drawn(data: st.DataObject, name: str, channels: int, height: int, width: int) -> tuple[Any, torch.Tensor]:
    """The augmentation `name` with settings from the table, and images for it."""
    chosen = {setting: data.draw(st.sampled_from(values), setting) for setting, values in strengths[name].items()}
    shape = (3 if name == "colour" else channels, height, width)
    count = data.draw(st.integers(1, 9), "images")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000), "content"))
    return build_augmentations({name: chosen}, shape)[0][1], torch.rand(count, *shape, generator=generator)


images = (st.sampled_from([1, 3]), st.integers(2, 14), st.integers(2, 14))
keys = st.builds(
    lambda seed, step: streams.key_tensor(streams.key(seed, "augmentation", step)), seeds, st.integers(0, 99)
)


def test_the_table_has_every_augmentation() -> None:
    """What is tested below is all there is."""
    assert sorted(strengths) == sorted(AUGMENTATIONS.names())


@pytest.mark.parametrize("name", sorted(strengths))
@settings(examples, max_examples=20)
@given(*images, keys, st.data())
def test_augmentations_keep_what_they_must(name, channels, height, width, key, data) -> None:
    """Shape, type, range and the input itself are kept; the same key gives the same bits, in whatever state the global
    generator is; what becomes of a sample does not depend on what the others of its batch show."""
    augment, x = drawn(data, name, channels, height, width)
    before = x.clone()
    y = augment(x, key)
    torch.rand(1)
    assert torch.equal(augment(x, key), y)
    assert torch.equal(x, before)
    assert (y.shape, y.dtype) == (x.shape, torch.float32)
    assert y.isfinite().all()
    if name not in UNBOUNDED:
        assert y.min() >= -1e-5
        assert y.max() <= 1 + 1e-5
    row = data.draw(st.integers(0, len(x) - 1), "row")
    others = torch.rand(x.shape, generator=torch.Generator().manual_seed(7))
    others[row] = x[row]
    assert torch.equal(augment(others, key)[row], y[row])


@pytest.mark.parametrize("name", sorted(strengths))
@settings(examples, max_examples=10)
@given(*images, keys, st.integers(0, 1000))
def test_augmentations_of_no_strength_change_nothing(name, channels, height, width, key, content) -> None:
    """The first settings of the table leave every image as it is, up to rounding where pixels are blended."""
    shape = (3 if name == "colour" else channels, height, width)
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(content))
    neutral = {setting: values[0] for setting, values in strengths[name].items()}
    y = build_augmentations({name: neutral}, shape)[0][1](x, key)
    if name in BLENDING:
        torch.testing.assert_close(y, x, atol=2e-5, rtol=0)
    else:
        assert torch.equal(y, x)


@pytest.mark.parametrize("name", sorted(strengths))
@settings(examples, max_examples=10)
@given(seeds, st.integers(0, 1000))
def test_other_keys_give_other_images(name, seed, step) -> None:
    """With the default settings, 64 distinct images come out differently under the keys of neighbouring steps and seeds."""
    augment = build_augmentations({name: {}}, (3, 8, 8))[0][1]
    x = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    at = [(seed, step), (seed, step + 1), (seed + 1, step)]
    found = [augment(x, streams.key_tensor(streams.key(s, name, counter))) for s, counter in at]
    for one, other in itertools.combinations(found, 2):
        assert not torch.equal(one, other)


@examples
@given(sizes, batch_sizes, seeds, st.lists(st.sampled_from(sorted({*strengths} - {"colour"})), min_size=1, unique=True))
def test_only_training_is_augmented(count, batch_size, seed, names) -> None:
    """With any augmentations, order, targets and all evaluation batches are those of a run without."""
    kept = {"batch_size": batch_size, "loader": "resident"}
    plain, augmented = (module(count, seed, **kept, augmentation=node) for node in (None, {name: {} for name in names}))
    for one, other in zip(plain.epoch(2), augmented.epoch(2), strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.targets, other.targets)
        assert one.inputs.shape == other.inputs.shape
    for name in ("train", "val", "test"):
        assert_same(list(plain.split(name)), list(augmented.split(name)))


# ---- streams ----------------------------------------------------------------------------------------------------------


@examples
@given(st.integers(0, 2**64), st.text(), st.integers(0, 2**62), st.integers(0, 63))
def test_streams_are_in_their_range(seed, name, counter, micro) -> None:
    """Key words are int32, uniforms lie in [0, 1), normals are finite, seeds fit a generator, for any arguments."""
    words = streams.key(seed, name, counter, micro)
    assert all(-(2**31) <= word < 2**31 for word in words)
    key = streams.key_tensor(words)
    assert torch.equal(streams.keys(seed, name, range(counter, counter + 2), micro)[0], key)
    u = streams.uniform(key, (1000,))
    assert (u.dtype, u.shape) == (torch.float32, (1000,))
    assert u.min() >= 0
    assert u.max() < 1
    assert 0.4 < u.mean() < 0.6  # ten standard errors
    assert streams.normal(key, (101,)).isfinite().all()
    assert 0 <= streams.seed_of(seed, name, counter) < 2**63


def test_keys_of_different_streams_differ() -> None:
    """51,840 combinations of seed, name, counter and micro-batch have as many different keys, even in their order of words."""
    seeds = [0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**63, 12345]
    names = ["", "a", "b", "aa", "order", "task", "dropout/1", "dropout/2", "dropout/11"]
    counters = [*range(80), 2**16, 2**31, 2**32, 2**32 + 1, 2**33, 2**40, 2**62, 2**62 + 1, 999983, 10**9]
    found = {streams.key(*each) for each in itertools.product(seeds, names, counters, range(8))}
    assert len(found) == 8 * 9 * 90 * 8


asked = st.tuples(st.integers(0, 3), st.sampled_from(["a", "b", "order"]), st.integers(0, 3))


@examples
@given(st.lists(asked, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_generators_do_not_depend_on_history(streams_asked, shuffler) -> None:
    """Streams give the same numbers in whatever order, and however often, they and the global generator are asked."""
    first = {each: torch.rand(5, generator=streams.generator(*each)) for each in streams_asked}
    order = streams_asked * 2
    shuffler.shuffle(order)
    for each in order:
        torch.rand(shuffler.randrange(3))
        generator = streams.generator(*each)
        assert torch.equal(torch.rand(5, generator=generator), first[each])
        torch.rand(shuffler.randrange(3), generator=generator)
        state = torch.random.get_rng_state()
        with streams.seeded(*each):
            assert torch.equal(torch.rand(5), first[each])
        assert torch.equal(torch.random.get_rng_state(), state)


# ---- checkpoints ------------------------------------------------------------------------------------------------------

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """A view of the tensor that is not as it would lie in memory by itself."""
    if layout == "transposed":
        return tensor.transpose(0, -1) if tensor.dim() > 1 else tensor
    if layout == "strided":
        return tensor[::2] if tensor.dim() else tensor
    if layout == "expanded":
        return tensor.unsqueeze(0).expand(3, *tensor.shape)
    return tensor[1:] if layout == "offset" and tensor.dim() else tensor


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Of any type, any bits (NaN with payloads, negative zeros), zero to three axes, empty ones, and not contiguous ones."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 4), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    content = torch.tensor(list(draw(st.binary(min_size=count, max_size=count))), dtype=torch.uint8)
    content = content % 2 if dtype == torch.bool else content
    tensor = content.view(dtype).view(shape)
    return laid_out(tensor, draw(st.sampled_from(["plain", "transposed", "strided", "expanded", "offset"])))


plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | st.sampled_from([-0.0, math.inf, -math.inf, math.nan, 5e-324])
    | st.text()
)
names = st.text(max_size=8) | st.integers(-3, 2**40)
states = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Whether two nests hold the same types and the same bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()) and bits_of(a) == bits_of(b)
    return struct.pack("<d", a) == struct.pack("<d", b) if isinstance(a, float) else a == b


def bits_of(tensor: torch.Tensor) -> bytes:
    whole = tensor.contiguous().flatten()
    return bytes(whole.view(torch.uint8).tolist()) if len(whole) else b""


@examples
@given(states)
def test_a_checkpoint_gives_back_what_it_was_given(tmp_path_factory, state) -> None:
    """Any nest of plain containers, values and tensors comes back bit for bit, with its types and layouts."""
    path = tmp_path_factory.getbasetemp() / "round_trip" / "last.pt"
    checkpoint.save(path, {"state": state})
    loaded = checkpoint.load(path)
    assert list(loaded) == ["format", "state"]
    assert same(loaded["state"], state)


@examples
@given(st.sampled_from(DTYPES), st.integers(1, 6), st.integers(1, 4))
def test_tensors_that_share_memory_still_do(tmp_path_factory, dtype, count, width) -> None:
    """Views of one tensor, and one tensor under two names, are that again after a round trip: nothing is stored twice."""
    path = tmp_path_factory.getbasetemp() / "shared" / "last.pt"
    base = torch.arange(count * width).to(dtype).view(count, width)
    checkpoint.save(path, {"base": base, "nest": [base, (base[-1], base.T)]})
    loaded = checkpoint.load(path)
    assert same(loaded["nest"], [base, (base[-1], base.T)])
    loaded["base"].zero_()
    found = [loaded["nest"][0], *loaded["nest"][1]]
    assert [set(bits_of(tensor)) for tensor in found] == [{0}] * 3


@examples
@given(st.data())
def test_a_damaged_checkpoint_is_refused_or_the_same(tmp_path_factory, data) -> None:
    """Any byte of a checkpoint changed, or its end cut off: it is refused in one line, or holds what was saved."""
    path = tmp_path_factory.getbasetemp() / "damaged" / "last.pt"
    state = {"weights": torch.arange(2000.0), "counters": {"epoch": 3, "best": 0.5}, "names": ["a", "b"]}
    checkpoint.save(path, state)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1), "at")
    if data.draw(st.booleans(), "cut"):
        del content[at:]
    else:
        content[at] ^= data.draw(st.integers(1, 255), "bits")
    path.write_bytes(content)
    try:
        loaded, message = checkpoint.load(path), ""
    except ConfigError as error:
        loaded, message = None, str(error)
    assert "\n" not in message
    assert message or same(loaded, {"format": checkpoint.FORMAT, **state})


# ---- schedules and early stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SCHEDULERS.names()))
@settings(examples, max_examples=20)
@given(st.integers(1, 300), st.integers(1, 60), st.floats(0, 3), st.lists(st.integers(0, 400), min_size=1, max_size=20))
def test_a_factor_is_a_function_of_the_step(name, total, per_epoch, warmup_epochs, steps) -> None:
    """Asked in any order, again, or by a fresh schedule, the factor of a step is the same, finite and not negative."""
    node = {"name": name, "warmup_epochs": warmup_epochs}
    schedule = build_scheduler(node, total, per_epoch)
    first = [schedule.factor(step) for step in steps]
    assert [schedule.factor(step) for step in steps] == first
    fresh = build_scheduler(node, total, per_epoch)
    assert [fresh.factor(step) for step in reversed(steps)] == first[::-1]
    assert all(math.isfinite(factor) and factor >= 0 for factor in first)


odd = st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e308])
monitored = st.lists(st.integers(-3, 3).map(float) | odd, min_size=2, max_size=25)


@examples
@given(monitored, st.floats(0, 1), st.integers(1, 5), st.integers(1, 40))
def test_a_plateau_schedule_goes_on_where_it_stood(tmp_path_factory, losses, share, patience, step) -> None:
    """Saved to a checkpoint between any two validations and loaded by a fresh one, it gives the same learning rates."""
    node = {"name": "halve_on_plateau", "monitor": "val/loss", "patience": patience, "threshold": 0.5}
    whole, first, second = (build_scheduler(node, 100, 10) for _ in range(3))
    cut = round(share * len(losses))
    for loss in losses[:cut]:
        whole.observe({"val/loss": loss})
        first.observe({"val/loss": loss})
    second.load_state_dict(through_the_disk(first.state_dict(), tmp_path_factory.getbasetemp()))
    assert vars(second) == vars(whole)
    for loss in losses[cut:]:
        whole.observe({"val/loss": loss})
        second.observe({"val/loss": loss})
        assert second.factor(step) == whole.factor(step)


@examples
@given(monitored, st.floats(0, 1), st.none() | st.integers(1, 5), st.floats(0, 2), st.sampled_from(["min", "max"]))
def test_early_stopping_goes_on_where_it_stood(tmp_path_factory, seen, share, patience, min_delta, direction) -> None:
    """Saved to a checkpoint between any two validations and loaded by a fresh one, it stops and keeps the same."""
    whole, first, second = (EarlyStopping(direction, patience, min_delta) for _ in range(3))
    cut = round(share * len(seen))
    for value in seen[:cut]:
        whole.observe(value)
        first.observe(value)
    second.load_state_dict(through_the_disk(first.state_dict(), tmp_path_factory.getbasetemp()))
    assert vars(second) == vars(whole)
    for value in seen[cut:]:
        assert second.observe(value) == whole.observe(value)
        assert second.should_stop == whole.should_stop


def through_the_disk(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    checkpoint.save(folder / "states" / "last.pt", {"state": state})
    return checkpoint.load(folder / "states" / "last.pt")["state"]
