"""The random streams: literals from a re-implementation in plain integers, statistics, and what must stay untouched."""

from __future__ import annotations

import math
import zlib

import pytest
import torch

from dlrun import streams

WORD = 2**32


def plain_mix(x: int) -> int:
    """lowbias32 as published, on non-negative integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    return x ^ (x >> 16)


def plain_key(seed: int, name: str, counter: int = 0, micro: int = 0) -> tuple[int, int]:
    """The two key words as non-negative integers."""
    parts = [seed % WORD, seed // WORD % WORD, zlib.crc32(name.encode()), counter % WORD, counter // WORD, micro]
    words = []
    for chain in (0x243F6A88, 0x85A308D3):
        for part in parts:
            chain = plain_mix((chain + part * 0x9E3779B9 + 0x6A09E667) % WORD)
        words.append(chain)
    return words[0], words[1]


def plain_bits(key: tuple[int, int], index: int) -> int:
    """The random word of one element as a non-negative integer."""
    x = (index * 0x9E3779B9 + key[0]) % WORD
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = (x + key[1]) * 0x846CA68B % WORD
    return x ^ (x >> 16)


def key_of(seed: int, name: str, counter: int = 0) -> torch.Tensor:
    return streams.key_tensor(streams.key(seed, name, counter))


@pytest.mark.parametrize(
    "arguments", [(0, "dropout/1"), (7, "order", 3), (2**40 + 5, "augmentation", 2**33 + 1, 2), (0, "")]
)
def test_key_equals_plain_integers(arguments: tuple) -> None:
    """The key words equal those of arithmetic on unbounded integers, large seeds and counters included."""
    assert tuple(word % WORD for word in streams.key(*arguments)) == plain_key(*arguments)
    assert all(-(2**31) <= word < 2**31 for word in streams.key(*arguments))


def test_bits_equal_plain_integers() -> None:
    """int32 tensor arithmetic, with its wrap-around and arithmetic shifts, gives the words of unbounded integers."""
    for seed, name in [(0, "dropout/1"), (123456789, "noise")]:
        words = streams.bits(key_of(seed, name), (5, 40)).flatten().tolist()
        assert [w % WORD for w in words] == [plain_bits(plain_key(seed, name), i) for i in range(200)]


def test_pinned_values() -> None:
    """The streams of a saved run never change: values pinned for seed 0."""
    assert streams.key(0, "dropout/1", 10) == PINNED_KEY
    assert streams.bits(key_of(0, "dropout/1", 10), (4,)).tolist() == PINNED_BITS
    assert streams.seed_of(0, "init") == PINNED_SEED


PINNED_KEY = (368170634, 221551305)
PINNED_BITS = [-41758289, -351581136, -1038584682, 303518312]
PINNED_SEED = 441760285323380511


# printed by the first version of `streams.key`, before it kept anything from call to call
FIRST_KEYS = [
    ((0, ""), (1176672936, -1373474917)),
    ((0, "task", 0), (1463682468, -1684643610)),
    ((0, "task", 1, 3), (-1138282181, 700239892)),
    ((7, "order", 3), (513799964, 148749344)),
    ((7, "dropout/hidden.dropout2", 11, 2), (2054163099, 1483937020)),
    ((2**32 - 1, "dropout/f6.dropout1", 255), (-2058442226, -601115046)),
    ((2**32, "dropout/f6.dropout1", 256), (-563171281, -103830511)),
    ((2**40 + 5, "augmentation/shift", 2**33 + 1, 2), (-547902297, 798892998)),
    ((2**64 + 3, "x", 2**32 - 1, 1), (-392348338, 840924625)),
    ((123456789012345, "dropout/dropout", 2**32, 0), (303301267, -1995157247)),
    ((1, "größe", 99999, 7), (1675998013, -1841639685)),
    ((-1, "x", 5), (-1953512560, -1370454954)),
]


@pytest.mark.parametrize(("arguments", "expected"), FIRST_KEYS)
def test_keys_are_those_of_the_first_version(arguments: tuple, expected: tuple[int, int]) -> None:
    """Runs saved by the first version go on with the same masks, orders and augmentations: literals, asked for twice."""
    seed, name, counter, micro = (*arguments, 0, 0)[:4]
    assert streams.key(*arguments) == expected
    assert streams.key(*arguments) == expected
    assert streams.keys(seed, name, range(counter, counter + 1), micro).tolist() == [list(expected)]


def test_many_keys_at_once_are_the_single_ones() -> None:
    """A row of `keys` is `key` of its counter: across 2^32, downwards, for no counter at all, as int32 on the CPU."""
    for counters in (range(300), range(2**32 - 3, 2**32 + 3), range(2**62, 2**62 + 2), range(10, -5, -3)):
        for seed, micro in ((0, 0), (2**50 + 1, 3)):
            expected = [list(streams.key(seed, "a", counter, micro)) for counter in counters]
            assert streams.keys(seed, "a", counters, micro).tolist() == expected
    for empty in (range(5, 5), range(7, 5)):
        found = streams.keys(0, "a", empty)
        assert (found.shape, found.dtype, found.device.type) == ((0, 2), torch.int32, "cpu")


def test_what_is_kept_between_calls_is_bounded() -> None:
    """Keys of thousands of streams fill no memory, and are the same after their place was given away."""
    first = streams.key(0, "kept/0", 5)
    for i in range(3000):
        streams.key(i, f"kept/{i}")
    kept = streams._chains.cache_info()
    assert kept.currsize <= kept.maxsize == 1024
    assert streams.key(0, "kept/0", 5) == first


def test_uniform_moments_and_range() -> None:
    """A million uniforms lie in [0, 1) with mean, variance and decile counts within 5 standard errors."""
    n = 1_000_000
    u = streams.uniform(key_of(3, "u"), (1000, 1000)).double()
    assert u.shape == (1000, 1000)
    assert 0.0 <= u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1.0
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    counts = torch.histc(u.float(), 10, 0, 1)
    assert ((counts - n / 10).abs() < 5 * math.sqrt(n * 0.09)).all()


def test_extreme_words_stay_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and largest words become uniforms in [0, 1), 1 excluded, and finite normals."""
    monkeypatch.setattr(
        streams, "bits", lambda key, shape: torch.tensor([0, -1, -(2**31), 2**31 - 1]).int().view(shape)
    )
    key = torch.zeros(2, dtype=torch.int32)
    assert streams.uniform(key, (4,)).tolist() == [0.0, 1 - 2**-24, 0.5, 0.5 - 2**-24]
    assert streams.normal(key, (2,)).isfinite().all()


def test_normal_moments() -> None:
    """A million normals are finite and have moments 0, 1, 0, 3 within 5 standard errors."""
    n = 1_000_000
    z = streams.normal(key_of(4, "z"), (n,)).double()
    assert z.isfinite().all()
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((z**power).mean() - expected) < 5 * math.sqrt(variance / n), power
    assert streams.normal(key_of(4, "z"), (3, 5, 7)).shape == (3, 5, 7)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "dropout/1", 5), (1, "dropout/1", 5)),
        ((0, "dropout/1", 5), (0, "dropout/2", 5)),
        ((0, "dropout/1", 5), (0, "dropout/1", 6)),
        ((0, "a", 1), (1, "a", 0)),
        ((5, "a", 0), (5 + 2**32, "a", 0)),
    ],
)
def test_streams_are_independent(one: tuple, other: tuple) -> None:
    """Streams that differ in seed, name or counter are uncorrelated at lags 0 to 3 (5 standard errors)."""
    n = 200_000
    a = streams.uniform(key_of(*one), (n,)).double() - 0.5
    b = streams.uniform(key_of(*other), (n,)).double() - 0.5
    for lag in range(4):
        correlation = (a[lag:] * b[: n - lag]).mean() * 12
        assert abs(correlation) < 5 / math.sqrt(n), lag


def test_neighbours_within_a_stream_are_independent() -> None:
    """Elements of one stream are uncorrelated at lags 1 to 64 (5 standard errors)."""
    n = 200_000
    a = streams.uniform(key_of(9, "lags"), (n,)).double() - 0.5
    for lag in range(1, 65):
        assert abs((a[lag:] * a[:-lag]).mean() * 12) < 5 / math.sqrt(n), lag


def test_shape_only_arranges() -> None:
    """The same key gives the same words in every shape, so that a batch axis may be folded at will."""
    key = key_of(1, "shape")
    assert torch.equal(streams.bits(key, (24,)).view(2, 3, 4), streams.bits(key, (2, 3, 4)))
    assert streams.uniform(key, ()).shape == ()
    assert streams.bits(key, (0, 3)).shape == (0, 3)


def test_under_vmap() -> None:
    """A stack of keys gives each member the words it gets alone."""
    keys = torch.stack([key_of(seed, "dropout/1", 4) for seed in range(3)])
    stacked = torch.vmap(lambda key: streams.uniform(key, (4, 5)))(keys)
    assert torch.equal(stacked, torch.stack([streams.uniform(key, (4, 5)) for key in keys]))


@pytest.mark.cuda
def test_bits_equal_on_cuda() -> None:
    """The words on a CUDA device are those of the CPU."""
    words = streams.key(0, "device")
    on_cuda = streams.bits(streams.key_tensor(words, "cuda"), (1000, 100)).cpu()
    assert torch.equal(on_cuda, streams.bits(streams.key_tensor(words), (1000, 100)))


def test_micro_steps_differ() -> None:
    """Several forward passes of one step have keys of their own."""
    assert len({streams.key(0, "dropout/1", 5, micro) for micro in range(8)}) == 8


def test_generators_are_fresh_and_named() -> None:
    """A generator is a function of seed, name and counter alone, and drawing from it moves no other."""
    state = torch.random.get_rng_state()
    first = torch.randperm(100, generator=streams.generator(0, "order", 1))
    assert torch.equal(first, torch.randperm(100, generator=streams.generator(0, "order", 1)))
    assert not torch.equal(first, torch.randperm(100, generator=streams.generator(0, "order", 2)))
    assert not torch.equal(first, torch.randperm(100, generator=streams.generator(1, "order", 1)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_seed_of_fits_generators() -> None:
    """Seeds are non-negative 63-bit integers, all different for 10,000 counters."""
    seeds = [streams.seed_of(0, "x", counter) for counter in range(10_000)]
    assert len(set(seeds)) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeded_restores_the_global_generator() -> None:
    """`seeded` gives the same draws whatever came before, and puts the state back even after an exception."""
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    with streams.seeded(0, "init"):
        first = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(10)
    with streams.seeded(0, "init"):
        assert torch.equal(torch.rand(3), first)
    state = torch.random.get_rng_state()

    with pytest.raises(RuntimeError), streams.seeded(0, "init"):
        torch.rand(-1)
    assert torch.equal(torch.random.get_rng_state(), state)
