"""Permutations follow their description, are invertible, and look random.

Most statistical tests count events that are equally likely in random permutations, and do a
chi-square test. `z_score` returns the distance of chi-square from its mean, in standard deviations.
For a good permutation it is about normally distributed. All keys of the statistical tests are
fixed, so each of these tests passes always or never.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import pickle
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from npstream._core import jit as _jit
from npstream.orders.draws import draw, draw_short
from npstream.orders.permutation import (
    MAX_LENGTH,
    MAX_TABLE_LENGTH,
    PERMUTATION_VERSION,
    Permutation,
    make_key,
    shuffle,
)

GOLDEN_KEYS = [
    2235979303852607087,
    1396665323112450086,
    584089161463051566,
    1385230505534888869,
    5234297200896654975,
]

GOLDEN = {
    # length: (first four elements, first 16 hex digits of a sha256). The hash is that of the first
    # 1000 elements, as little-endian int64.
    8: ([2, 5, 4, 7], "13fe196adb8108df"),
    16: ([11, 5, 4, 7], "85ed603817031591"),
    1000: ([179, 310, 702, 90], "c95b78221a70687b"),
    32768: ([14726, 6804, 31915, 26961], "1a5536f19cdcdcaa"),
    32769: ([24085, 1699, 16278, 20981], "623050128bb8d119"),
    1048577: ([562686, 731088, 937033, 152464], "3734190e1e450439"),
    1000000000: ([584096209, 41094807, 888905513, 963251569], "b17979ce8943b44d"),
    1000000000000: ([578251711560, 205591963530, 851054662996, 481686630693], "15dcddc7ff43327f"),
    4611686018427387904: (
        [3683144927060580628, 769830879471240696, 2201095627254705578, 3659444591102192962],
        "f30a22a8cc0d77ab",
    ),
}

SIZES = [
    0,
    1,
    2,
    3,
    5,
    17,
    100,
    1000,
    MAX_TABLE_LENGTH - 1,
    MAX_TABLE_LENGTH,
    MAX_TABLE_LENGTH + 1,
    65_537,
    131_071,
    (1 << 17) + 1,
]


def elements(n, key=1):
    return Permutation(n, key).at(np.arange(n))


# A reference, which implements docs/specification/orders.md independently of npstream.


def reference_draw(counter, bound):
    x = counter % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x * bound // 2**64


def reference_element(n, key, position):
    """Return one element of a permutation that is a Feistel network."""
    a = math.isqrt(n - 1) + 1
    b = math.ceil(n / a)
    digits = list(divmod(position, b))
    for r in range(6):
        target, source, radix = (0, 1, a) if r % 2 == 0 else (1, 0, b)
        digits[target] += reference_draw(key ^ (r << 32) ^ digits[source], radix)
        digits[target] %= radix
    element = digits[0] * b + digits[1]
    return element if element < n else reference_element(n, key, element)


def reference_table(n, key):
    """Return the elements of a permutation that is a Fisher-Yates shuffle."""
    table = []
    for i in range(n):
        j = reference_draw(key ^ i, i + 1)
        table.append(i)
        table[i], table[j] = table[j], table[i]
    return table


@pytest.mark.usefixtures("kernel_mode")
@pytest.mark.parametrize("n", [0, 1, 2, 5, 1000])
def test_small_permutations_follow_their_description(n):
    key = make_key(n)
    assert elements(n, key).tolist() == reference_table(n, key)


@pytest.mark.usefixtures("kernel_mode")
@pytest.mark.parametrize(
    "n", [MAX_TABLE_LENGTH + 1, MAX_TABLE_LENGTH + 200, (1 << 20) + 1, 10**9, 10**12, MAX_LENGTH]
)
def test_large_permutations_follow_their_description(n):
    key = make_key(n)
    positions = np.array([*range(100), *range(n - 100, n)])
    want = [reference_element(n, key, position) for position in positions.tolist()]
    permutation = Permutation(n, key)
    assert permutation.at(positions).tolist() == want
    assert np.array_equal(permutation.find(np.array(want)), positions)


def test_compiled_and_plain_draws_are_equal():
    @_jit.kernel
    def draws(counters, bounds, out):
        for k in range(counters.size):
            out[k] = draw(int(counters[k]), int(bounds[k]))

    rng = np.random.default_rng(0)
    counters = rng.integers(-(2**63), 2**63 - 1, 1000, endpoint=True)
    bounds = rng.integers(1, 2 ** rng.integers(1, 63, 1000), endpoint=True)
    compiled, python = np.empty((2, 1000), np.int64)
    draws.compiled()(counters, bounds, compiled)
    draws.py_func(counters, bounds, python)
    assert np.array_equal(compiled, python)
    assert python.tolist() == [
        reference_draw(*pair) for pair in zip(counters.tolist(), bounds.tolist(), strict=True)
    ]


@pytest.mark.parametrize("n", SIZES)
def test_every_element_occurs_once_and_is_found(n):
    permutation = Permutation(n, make_key(n))
    ids = permutation.at(np.arange(n))
    assert ids.dtype == np.int64
    assert np.array_equal(np.sort(ids), np.arange(n))
    assert np.array_equal(permutation.find(ids), np.arange(n))
    assert len(permutation) == n


@given(st.integers(1, MAX_LENGTH), st.integers(0, 2**63 - 1), st.data())
def test_find_inverts_at_for_any_length_and_key(n, key, data):
    permutation = Permutation(n, key)
    positions = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8, unique=True))
    ids = permutation.at(np.array(positions))
    assert len(set(ids.tolist())) == len(positions)
    assert ids.min() >= 0
    assert ids.max() < n
    assert permutation.find(ids).tolist() == positions


@pytest.mark.parametrize("n", [100, 10**6])
def test_shapes_are_kept_in_any_memory_layout_and_arguments_are_not_changed(n):
    permutation = Permutation(n, 1)
    positions = np.arange(12, dtype=np.int32).reshape(3, 4).T
    ids = permutation.at(positions)
    assert ids.tolist() == permutation.at(np.arange(12)).reshape(3, 4).T.tolist()
    assert (
        permutation.find(ids).tolist()
        == positions.tolist()
        == np.arange(12).reshape(3, 4).T.tolist()
    )
    assert permutation.at(np.empty((0, 3), np.int64)).shape == (0, 3)


@pytest.mark.parametrize("n", [0, 100, 10**6])
def test_positions_out_of_bounds_raise(n):
    for position in (-1, n, 2**63 - 1):
        for method in (Permutation(n, 1).at, Permutation(n, 1).find):
            with pytest.raises(IndexError, match=f"{position} is out of bounds"):
                method(np.array([position]))


def test_pickles_of_permutations_contain_no_table():
    permutation = Permutation(MAX_TABLE_LENGTH, make_key(3))
    ids = permutation.at(np.arange(9))
    pickled = pickle.dumps(permutation)
    assert len(pickled) < 200
    assert np.array_equal(pickle.loads(pickled).at(np.arange(9)), ids)


@pytest.mark.parametrize(
    ("n", "key", "error", "match"),
    [
        (-1, 0, ValueError, "0 to 2"),
        (MAX_LENGTH + 1, 0, ValueError, "0 to 2"),
        (10, -1, ValueError, "make_key"),
        (10, 2**63, ValueError, "make_key"),
        (1.0, 0, TypeError, "n=1.0: expected an integer"),
        (10, "a", TypeError, "key='a': expected an integer"),
    ],
)
def test_invalid_permutations_raise(n, key, error, match):
    with pytest.raises(error, match=match):
        Permutation(n, key)


INTEGERS = [
    0,
    1,
    2,
    3,
    -1,
    -2,
    10,
    16,
    255,
    2**31,
    2**63 - 1,
    2**63,
    -(2**63),
    2**64 - 1,
    2**64,
    10**5000,
]


def test_keys_of_different_arguments_differ():
    """Arguments with equal sums or equal concatenated digits must have different keys, too."""
    keys = [make_key(*arguments) for arguments in itertools.product(range(-2, 12), repeat=4)]
    keys += [make_key(seed, epoch) for seed in INTEGERS[4:] for epoch in INTEGERS[4:]]
    # Pairs of -1, -2 and 10 are in both lists.
    assert len(set(keys)) == len(keys) - 3 * 3
    assert all(type(key) is int and 0 <= key < 2**63 for key in keys)


def test_keys_take_any_integer_type():
    assert make_key(np.int64(3), np.uint8(1)) == make_key(3, 1, 0, 0)


@pytest.mark.parametrize("name", ["seed", "epoch", "lane", "level"])
@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float64(2), "1", None])
def test_keys_of_other_types_raise(name, value):
    with pytest.raises(TypeError, match=f"{name}=.*: expected an integer"):
        make_key(**{"seed": 0, name: value})


# The order is part of what a release promises: with PERMUTATION_VERSION 1, these values never
# change.


def test_the_version_is_unchanged():
    assert PERMUTATION_VERSION == 1


def test_keys_equal_recorded_values():
    arguments = [(0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0), (-1, 2, 3, 4), (2**70, 0, 0, 9)]
    assert [make_key(*each) for each in arguments] == GOLDEN_KEYS


@pytest.mark.parametrize("n", GOLDEN)
def test_permutations_equal_recorded_values(n):
    ids = Permutation(n, make_key(0, 1, 2, 3)).at(np.arange(min(n, 1000)))
    digest = hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
    assert (ids[:4].tolist(), digest[:16]) == GOLDEN[n]


def z_score(counts):
    """Compare counts with uniform ones: return chi-square's distance from its mean.

    The unit is a standard deviation. The sums along each axis are fixed, so an axis of length n has
    n - 1 degrees of freedom.
    """
    expected = counts.sum() / counts.size
    freedom = math.prod(length - 1 for length in counts.shape)
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_tiny_permutations_are_uniform(n):
    """Each of the n! permutations is equally frequent; a Feistel network fails this clearly."""
    shuffle.compiled()  # thousands of tables take too long in plain Python
    counts = {each: 0 for each in itertools.permutations(range(n))}
    for seed in range(20 * len(counts) + 1000):
        counts[tuple(elements(n, make_key(seed)).tolist())] += 1
    assert abs(z_score(np.array(list(counts.values())))) < 3


@pytest.mark.parametrize(
    "n", [MAX_TABLE_LENGTH, MAX_TABLE_LENGTH + 1, 1_000_003, (1 << 20) + 1, 10**9, 10**12]
)
@pytest.mark.parametrize("lag", [1, 2, 3, 64, 1024])
def test_differences_of_neighbors_are_uniform(n, lag):
    """Weak round functions fail here first."""
    permutation, bins = Permutation(n, make_key(5)), 512
    start = np.arange(min(n - lag, 200_000))
    distances = (permutation.at(start + lag) - permutation.at(start)) % n
    assert abs(z_score(np.bincount(distances * bins // n, minlength=bins))) < 3.5


@pytest.mark.parametrize("n", [MAX_TABLE_LENGTH, MAX_TABLE_LENGTH + 1, 1_000_003])
def test_elements_are_spread_evenly_over_positions(n):
    ids = elements(n, make_key(6))
    for x, y in [(np.arange(n), ids), (ids[:-1], ids[1:])]:
        counts = np.histogram2d(x, y, bins=32)[0]
        assert abs(z_score(counts)) < 3


def test_each_window_has_a_random_number_of_elements_of_each_range():
    """For instance, the number of samples of each shard in a batch is random."""
    for n in (MAX_TABLE_LENGTH, 1 << 20):
        ids = elements(n, make_key(7))
        counts = np.histogram2d(np.arange(n), ids, bins=(n // 1024, 64))[0]
        assert abs(z_score(counts)) < 3


def test_neighbors_in_permutations_of_12_elements_are_uniform():
    counts = np.zeros((12, 12))
    for seed in range(6000):
        ids = elements(12, make_key(seed))
        np.add.at(counts, (ids[:-1], ids[1:]), 1)
    assert np.trace(counts) == 0
    assert abs(z_score(counts[~np.eye(12, dtype=bool)])) < 3


@pytest.mark.parametrize("n", [1000, MAX_TABLE_LENGTH + 1])
def test_number_of_fixed_points_is_random(n):
    fixed = [(elements(n, make_key(seed)) == np.arange(n)).sum() for seed in range(300)]
    assert 0.8 < np.mean(fixed) < 1.2
    assert 0.7 < np.var(fixed) < 1.35


def longest_rise(ids):
    """Return the length of the longest increasing subsequence."""
    tails: list[int] = []
    for each in ids:
        index = bisect.bisect_left(tails, each)
        tails[index : index + 1] = [each]
    return len(tails)


@pytest.mark.parametrize("n", [10_000, MAX_TABLE_LENGTH + 1])
def test_the_longest_increasing_subsequence_has_the_expected_length(n):
    """A permutation that is not random enough has a longer one.

    Source of the expected length: Baik, Deift and Johansson, 1999, arXiv:math/9810105.
    """
    lengths = [longest_rise(elements(n, make_key(seed)).tolist()) for seed in range(8)]
    assert abs(np.mean(lengths) - (2 * n**0.5 - 1.77 * n ** (1 / 6))) < n ** (1 / 6)


@pytest.mark.parametrize("n", [1000, 100_003])
def test_permutations_of_different_epochs_and_seeds_are_independent(n):
    arguments = [(0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    orders = [elements(n, make_key(*each)) for each in arguments]
    for x, y in itertools.combinations(orders, 2):
        assert (x == y).sum() < 8
        assert abs(np.corrcoef(x, y)[0, 1]) * n**0.5 < 3.5


def test_a_few_positions_do_not_import_numba():
    code = """
import sys
import numpy as np
from npstream.orders.permutation import Permutation, make_key
for n in (2**15, 10**9):
    Permutation(n, make_key(0)).at(np.arange(256))
print("numba" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.stderr, result.stdout) == ("", "False\n")


@given(st.integers(0, 2**63 - 1), st.integers(1, 2**32 - 1) | st.just(2**32 - 1))
def test_short_draws_equal_draws(counter, bound):
    expected = reference_draw(counter, bound)
    assert draw_short.compiled()(counter, bound) == expected
    assert draw_short.py_func(counter, bound) == expected
