"""Kernels: compiled and as plain Python they do what the format says, and stay within bounds.

Inputs lie in memory that ends at a page which nobody may touch (`guards`), outputs between bytes
that must not change.
"""

from __future__ import annotations

import bisect
import itertools
import struct
import types

import numpy as np
import pytest
from guards import guarded_array
from hypothesis import given
from hypothesis import strategies as st

from npstream._core.memory import address_of, map_file
from npstream._core.spans import copy_short, copy_spans, equal_spans, join_columns
from npstream.formats.encodings.arrays import DTYPE_CODES
from npstream.formats.encodings.encodings import parse_array_head
from npstream.formats.index import shard_lookup_table
from npstream.shards import kernels
from npstream.shards import paging as pages

WATCH = 0xA5
ITEMSIZES = np.zeros(256, np.int64)
for code, dtype in DTYPE_CODES.items():
    ITEMSIZES[code] = dtype.itemsize


@pytest.fixture(params=["compiled", "python"], scope="module")
def run(request):
    """Return what makes a function of a kernel, in either way."""
    if request.param == "python":
        return lambda kernel: kernel.py_func
    return lambda kernel: kernel.compiled()


def watched(n):
    """Return an array of `n` bytes, and a function that says whether those around it are intact."""
    around = np.full(n + 64, WATCH, np.uint8)
    return around[32 : 32 + n], lambda: (np.delete(around, np.s_[32 : 32 + n]) == WATCH).all()


def spans_of(parts):
    """Return addresses and lengths of parts in watched memory, and what holds it."""
    held = [guarded_array(part) for part in parts]
    address = np.array([address_of(part) for part in held], np.int64)
    return address, np.array([len(part) for part in parts], np.int64), held


# Finding samples.


class Shards:
    """Shards in memory, made of the sizes of their samples; None where one is absent."""

    def __init__(self, shards, stride=0):
        counts = [len(sizes) for sizes in shards]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.guide, self.shift = shard_lookup_table(self.starts)
        self.entries = np.zeros((max(len(shards), 1), 7), np.int64)
        self.held, self.bodies = [], []
        for number, sizes in enumerate(shards):
            ends = 10 + np.cumsum([0, *sizes])
            offsets = guarded_array(ends.astype("<u4").tobytes())
            data = guarded_array(bytes(np.arange(ends[-1], dtype=np.uint8)))
            row = (address_of(data), address_of(offsets), 10, len(data), stride)
            self.entries[number, :5] = row
            self.held += [offsets, data]
            self.bodies += [data[a:b].tobytes() for a, b in itertools.pairwise(ends.tolist())]

    def lose(self, shard):
        self.entries[shard] = 0

    def cut(self, shard, resident):
        """Cut a shard into chunks of which some are in memory."""
        flags = guarded_array(bytes(resident))
        self.entries[shard, 5:] = address_of(flags), len(resident)
        self.held.append(flags)

    def locate(self, run, ids):
        ids = np.asarray(ids, np.int64)
        address, nbytes = np.full((2, len(ids) + 2), -7, np.int64)
        code = run(kernels.locate)(
            ids, self.starts, self.guide, self.shift, self.entries, address[1:-1], nbytes[1:-1]
        )
        assert {*address[[0, -1]], *nbytes[[0, -1]]} == {-7}
        return code, address[1:-1], nbytes[1:-1]

    def read(self, address, nbytes):
        memory = {address_of(data): data.tobytes() for data in self.held}
        starts = sorted(memory)
        parts = []
        for at, length in zip(address.tolist(), nbytes.tolist(), strict=True):
            start = starts[bisect.bisect_right(starts, at) - 1]
            parts.append(memory[start][at - start : at - start + length])
        return parts


sizes_of_shards = st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1, max_size=12).filter(
    any
)


@given(sizes_of_shards, st.data())
def test_locate(run, shards, data):
    table = Shards(shards)
    ids = data.draw(st.lists(st.integers(0, len(table.bodies) - 1), max_size=20))
    code, address, nbytes = table.locate(run, ids)
    assert code == 0
    assert table.read(address, nbytes) == [table.bodies[i] for i in ids]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(1, 9))
def test_locate_samples_of_one_size(run, counts, stride):
    table = Shards([[stride] * count for count in counts], stride)
    for offsets in table.held[::2]:
        offsets[:] = 0xFF  # they are not read
    code, address, nbytes = table.locate(run, np.arange(len(table.bodies)))
    assert code == 0
    assert table.read(address, nbytes) == table.bodies


@given(sizes_of_shards, st.data())
def test_locate_tells_which_shards_are_absent(run, shards, data):
    table = Shards(shards)
    lost = data.draw(st.sets(st.integers(0, len(shards) - 1)))
    for shard in lost:
        table.lose(shard)
    ids = np.arange(len(table.bodies))
    shard_of = np.searchsorted(table.starts, ids, "right") - 1
    absent = np.isin(shard_of, list(lost))
    code, address, nbytes = table.locate(run, ids)
    assert code == absent.sum()
    assert (address[absent] == 0).all()
    assert (nbytes[absent] == shard_of[absent]).all()
    present = [body for body, gone in zip(table.bodies, absent, strict=True) if not gone]
    assert table.read(address[~absent], nbytes[~absent]) == present


@given(sizes_of_shards, st.data())
def test_locate_tells_which_chunks_are_absent(run, shards, data):
    table = Shards(shards)
    ids = np.arange(len(table.bodies))
    shard_of = np.searchsorted(table.starts, ids, "right") - 1
    absent = np.zeros(len(ids), bool)
    for shard, sizes in enumerate(shards):
        flags = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=max(len(sizes), 1)))
        table.cut(shard, flags)
        first = table.starts[shard]
        for chunk, flag in enumerate(flags):
            begin, end = (k * len(sizes) // len(flags) for k in (chunk, chunk + 1))
            absent[first + begin : first + end] = not flag
    code, address, nbytes = table.locate(run, ids)
    assert code == absent.sum()
    assert (address[absent] == 0).all()
    assert (nbytes[absent] == shard_of[absent]).all()
    present = [body for body, gone in zip(table.bodies, absent, strict=True) if not gone]
    assert table.read(address[~absent], nbytes[~absent]) == present


@pytest.mark.parametrize(
    ("row", "offset"),
    [
        pytest.param(0, 9, id="before the first sample"),
        pytest.param(0, 0, id="in the head"),
        pytest.param(2, 11, id="end before begin"),
        pytest.param(4, 27, id="beyond the file"),
        pytest.param(4, 2**31, id="far beyond the file"),
        pytest.param(3, 2**32 - 1, id="the largest"),
    ],
)
def test_locate_refuses_offsets(run, row, offset):
    table = Shards([[1, 2], [4, 4, 4, 4]])
    table.held[2][:].view("<u4")[row] = offset
    reached = [2 + k for k in (row - 1, row) if 0 <= k < 4]  # the samples that it bounds
    for sample in reached:
        code, *_ = table.locate(run, [0, 1, sample, 1])
        span = table.held[2].view("<u4")[sample - 2 : sample]
        assert code in (0, -3)
        if code == 0:  # too long or short, but within the file: `split` will see that
            assert 10 <= span[0] <= span[1] <= 26
    assert any(table.locate(run, [0, 1, sample, 1])[0] == -3 for sample in reached)
    untouched = [i for i in range(6) if i not in reached]
    assert table.locate(run, untouched)[0] == 0


# Taking samples apart.


@st.composite
def samples(draw):
    """Draw the sizes of columns (None: they vary), and values of samples."""
    sizes = draw(st.lists(st.one_of(st.none(), st.integers(1, 20)), min_size=1, max_size=6))
    bodies = [st.binary(min_size=size or 0, max_size=size or 9) for size in sizes]
    return sizes, draw(st.lists(st.tuples(*bodies), max_size=8))


def encoded(sizes, values):
    head = [len(value) for size, value in zip(sizes, values, strict=True) if size is None]
    return np.array(head, "<u4").tobytes() + b"".join(values)


def layout(sizes):
    """Return, for each column, the variable ones before it and the bytes of fixed ones."""
    places, before, offset = [], 0, 0
    for size in sizes:
        places.append((before, offset))
        before, offset = before + (size is None), offset + (size or 0)
    return places, before, offset


@given(samples(), st.data())
def test_split(run, drawn, data):
    sizes, rows = drawn
    places, nvariable, nfixed = layout(sizes)
    address, nbytes, _held = spans_of([encoded(sizes, row) for row in rows])
    cuts = []
    for column, size in enumerate(sizes):
        if size is not None:
            first = data.draw(st.integers(0, size - 1))
            cuts.append((column, first, data.draw(st.integers(first + 1, size))))
    outputs = [watched(len(rows) * (last - first)) for _, first, last in cuts]
    fixed = [
        (places[column][0], places[column][1] + first, last - first, address_of(output))
        for (column, first, last), (output, _) in zip(cuts, outputs, strict=True)
    ]
    variable = [column for column, size in enumerate(sizes) if size is None]
    spans = np.full((len(variable) + 1, 2, len(rows)), -7, np.int64)
    code = run(kernels.split)(
        address, nbytes, nvariable, nfixed,
        np.array(fixed, np.int64).reshape(-1, 4),
        np.array([places[column] for column in variable], np.int64).reshape(-1, 2),
        spans,
    )  # fmt: skip
    assert code == 0
    assert (spans[-1] == -7).all()
    for (column, first, last), (output, intact) in zip(cuts, outputs, strict=True):
        assert intact()
        assert output.tobytes() == b"".join(row[column][first:last] for row in rows)
    for k, (values, sample) in enumerate(zip(rows, _held, strict=True)):
        for number, column in enumerate(variable):
            at, length = spans[number, :, k] - (address[k], 0)
            assert sample[at : at + length].tobytes() == values[column]


@given(samples().filter(lambda drawn: drawn[1]), st.data())
def test_split_refuses_samples_of_another_length(run, drawn, data):
    sizes, rows = drawn
    places, nvariable, nfixed = layout(sizes)
    parts = [encoded(sizes, row) for row in rows]
    k = data.draw(st.integers(0, len(rows) - 1))
    cut = data.draw(st.integers(0, len(parts[k]) + 3))
    if cut == len(parts[k]) or (nvariable == 0 and cut > nfixed):
        return  # samples of one size are found by it, so they have it
    parts[k] = (parts[k] + bytes(3))[:cut]
    address, nbytes, _held = spans_of(parts)
    output, intact = watched(len(rows) * nfixed)
    fixed = [
        (*place, size, address_of(output))
        for place, size in zip(places, sizes, strict=True)
        if size is not None
    ]
    wanted = [place for place, size in zip(places, sizes, strict=True) if size is None]
    spans = np.zeros((nvariable, 2, len(rows)), np.int64)
    code = run(kernels.split)(
        address, nbytes, nvariable, nfixed, np.array(fixed, np.int64).reshape(-1, 4),
        np.array(wanted, np.int64).reshape(-1, 2), spans,
    )  # fmt: skip
    assert code == -1 - k
    assert intact()
    assert (spans[:, :, k:] == 0).all()  # nothing is told of what was not found sound


@pytest.mark.parametrize("sizes", [(5, 1), (0, 0), (2**32 - 1, 5), (3, 2**31), (2**32 - 2, 6)])
def test_split_refuses_sizes_that_do_not_add_up(run, sizes):
    for head, expected in ((sizes, -1), ((2, 1), 0)):
        address, nbytes, _held = spans_of([struct.pack("<2I", *head) + b"abcde"])
        spans = np.zeros((2, 2, 1), np.int64)
        none, both = np.zeros((0, 4), np.int64), np.array([(0, 0), (1, 2)])
        assert run(kernels.split)(address, nbytes, 2, 2, none, both, spans) == expected


@given(st.lists(st.lists(st.binary(max_size=5), max_size=4), min_size=1, max_size=5).filter(any))
def test_read_is_locate_and_split(run, shards):
    """In one step or in two."""
    bodies = [[encoded([None, 2], (value, b"ab")) for value in values] for values in shards]
    table = Shards([[len(body) for body in shard] for shard in bodies])
    for data, shard in zip(table.held[1::2], bodies, strict=True):
        data[10:] = np.frombuffer(b"".join(shard), np.uint8)
    values = [value for shard in shards for value in shard]
    n = len(values)

    def read_in(*parts):
        output, intact = watched(2 * n)
        samples = np.zeros((2, n), np.int64)
        spans = np.zeros((1, 2, n), np.int64)
        for steps in parts:
            code = run(kernels.read)(
                steps, np.arange(n), table.starts, table.guide, table.shift, table.entries,
                samples, 1, 2, np.array([(1, 0, 2, address_of(output))]),
                np.array([(0, 0)]), spans,
            )  # fmt: skip
            if code:
                break
        assert intact()
        return code, output.tobytes(), spans

    def read():
        at_once = read_in(kernels.LOCATE | kernels.SPLIT)
        in_steps = read_in(kernels.LOCATE, kernels.SPLIT)
        assert at_once[:2] == in_steps[:2]
        assert (at_once[2] == in_steps[2]).all()
        return at_once

    code, fixed, spans = read()
    assert code == 0
    assert fixed == b"ab" * n
    assert table.read(*spans[0]) == values
    first = next(number for number, shard in enumerate(shards) if shard)
    table.held[2 * first + 1][10] ^= 1  # the first sample's size
    assert read()[0] == -1
    table.lose(first)
    assert read()[0] == len(shards[first])


# Copying and comparing.


@given(st.lists(st.binary(max_size=20), max_size=12), st.integers(0, 5))
def test_copy_spans(run, parts, gap):
    address, nbytes, _held = spans_of(parts)
    offsets = np.cumsum(nbytes + gap) - nbytes - gap
    output, intact = watched(int((nbytes + gap).sum()))
    output[:] = WATCH
    assert run(copy_spans)(address, nbytes, offsets, address_of(output)) is None
    assert intact()
    assert output.tobytes() == b"".join(part + bytes([WATCH] * gap) for part in parts)


@given(
    st.integers(0, 12),
    st.lists(st.one_of(st.none(), st.sampled_from([1, 2, 4, 8, 3, 20])), min_size=1, max_size=4),
    st.data(),
)
def test_join_columns(run, count, sizes, data):
    """Columns of one size, and None for columns of any."""
    columns, spans, values, held = [], [], [], []
    for size in sizes:
        lengths = (
            st.binary(max_size=20) if size is None else st.binary(min_size=size, max_size=size)
        )
        parts = data.draw(st.lists(lengths, min_size=count, max_size=count))
        values.append(parts)
        if size is None:
            address, nbytes, parts = spans_of(parts)
            columns.append((len(spans), 0, 0))
            spans.append((address, nbytes))
        else:
            parts = guarded_array(b"".join(parts))
            columns.append((-1, address_of(parts), size))
        held.append(parts)
    rows = b"".join(map(b"".join, zip(*values, strict=True)))
    output, intact = watched(len(rows))
    both = np.array(spans, np.int64).reshape(len(spans), 2, count)
    run(join_columns)(count, np.array(columns, np.int64), both, address_of(output))
    assert intact()
    assert output.tobytes() == rows


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 8, 9, 100])
def test_copy_short(run, size):
    source = guarded_array(np.random.default_rng(size).bytes(size))
    output, intact = watched(size)
    run(copy_short)(address_of(output), address_of(source), size)
    assert intact()
    assert (output == source).all()


@given(st.lists(st.binary(max_size=3), max_size=12), st.binary(max_size=3))
def test_equal_spans(run, parts, value):
    address, nbytes, _held = spans_of(parts)
    wanted = guarded_array(value)
    around = np.ones(len(parts) + 2, bool)
    run(equal_spans)(address, nbytes, address_of(wanted), len(value), around[1:-1])
    assert around.tolist() == [True, *(part == value for part in parts), True]


# The heads of arrays.


@st.composite
def array_bodies(draw):
    """Draw the body of an array, damaged or not."""
    code = draw(st.sampled_from(sorted(DTYPE_CODES)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    width = draw(st.integers(0, 3))
    dims = np.array(shape, f"<u{1 << width}")
    head = bytes([code, len(shape) << 2 | width]) + dims.tobytes()
    body = bytearray(head + bytes(int(np.prod(shape)) * DTYPE_CODES[code].itemsize))
    for _ in range(draw(st.integers(0, 2))):
        body[draw(st.integers(0, min(len(body), 12) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))]) if draw(st.booleans()) else bytes(body)


HOSTILE_HEADS = [
    b"",
    b"\x10",
    bytes([16, 0]),  # no axes
    bytes([16, 63 << 2 | 3]),  # 63 axes of 8 bytes, of which there is none
    bytes([16, 1 << 2, 0]),  # a length of 0
    bytes([17, 1 << 2, 1, 0]),  # half a value
    bytes([1, 1 << 2, 1, 0]),  # no dtype
    bytes([8, 1 << 2 | 3]) + struct.pack("<Q", 2**63) + b"a",
    bytes([8, 1 << 2 | 3]) + struct.pack("<Q", 2**64 - 1) + b"a",
    bytes([8, 2 << 2 | 3]) + struct.pack("<2Q", 2**32, 2**32) + b"a",
    bytes([8, 3 << 2 | 3]) + struct.pack("<3Q", 2**63 - 1, 2**63 - 1, 1) + b"a",
    bytes([66, 2 << 2 | 3]) + struct.pack("<2Q", 2**61, 8) + bytes(8),
    bytes([8, 63 << 2]) + bytes([2] * 63),
    bytes([8, 63 << 2]) + bytes([1] * 63) + b"a",  # sound, if odd
]


def check_heads(run, bodies, dtype):
    """Hold the kernels against `parse_array_head`, body by body."""
    typed = int(dtype is None)
    own = [code for code, known in DTYPE_CODES.items() if known == dtype]
    for body in bodies:
        address, nbytes, _held = spans_of([body])
        codes, heads, ndims = np.array([own or [0], [0], [0]], np.int64)
        code = run(kernels.read_array_headers)(
            address, nbytes, typed, ITEMSIZES, codes, heads, ndims
        )
        try:
            found, shape, start = parse_array_head(body, dtype)
        except ValueError:
            assert code == -1
            continue
        assert code == 0
        assert (heads[0], ndims[0]) == (start, len(shape))
        assert DTYPE_CODES[int(codes[0])] == found
        shapes = np.zeros((1, len(shape)), np.int64)
        run(kernels.read_array_shapes)(address, typed, shapes)
        assert tuple(shapes[0]) == shape


@given(st.lists(st.one_of(array_bodies(), st.binary(max_size=12)), max_size=6))
def test_array_heads(run, bodies):
    check_heads(run, bodies, None)
    for dtype in (np.dtype(np.uint8), np.dtype(np.float32)):
        check_heads(run, [body[1:] for body in bodies], dtype)


def test_hostile_array_heads(run):
    check_heads(run, HOSTILE_HEADS, None)
    check_heads(run, [body[1:] for body in HOSTILE_HEADS], np.dtype(np.uint8))


def test_array_heads_tell_which_is_damaged(run):
    good = bytes([8, 1 << 2, 2, 7, 7])
    address, nbytes, _held = spans_of([good, good, good[:-1], good])
    codes, heads, ndims = np.zeros((3, 4), np.int64)
    assert run(kernels.read_array_headers)(address, nbytes, 1, ITEMSIZES, codes, heads, ndims) == -3


@given(st.binary(min_size=1, max_size=8))
def test_little_endian(run, number):
    data = guarded_array(number)
    found = run(kernels.load_little_endian)(address_of(data), len(number))
    assert found % 2**64 == int.from_bytes(number, "little")


# Asking for pages.


@given(st.lists(st.tuples(st.integers(0, 99_999), st.integers(0, 30_000)), max_size=20))
def test_prefetch_asks_for_every_page_once(spans):
    """Compare what is asked for, by plain Python, with the spans."""
    page, gap = 4096, 1 << 14
    asked = []
    python = kernels.will_need_spans.py_func

    def will_need(first, nbytes):
        asked.append((first, first + nbytes))

    prefetch = types.FunctionType(python.__code__, {**python.__globals__, "will_need": will_need})
    table = np.array(sorted(spans), np.int64).reshape(-1, 2)
    table[:, 0] += 1 << 20
    prefetch(table[:, 0], table[:, 1], page, gap)
    for at, nbytes in table.tolist():
        assert any(first <= at and at + nbytes <= last for first, last in asked)
    assert all(first % page == 0 for first, _ in asked)
    for (_, last), (first, _) in itertools.pairwise(asked):
        assert first > last + gap
    for first, last in asked:
        assert first // page in table[:, 0] // page
        assert last in table.sum(axis=1)


def test_prefetch_changes_nothing(run, tmp_path):
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "file").write_bytes(content)
    mapped = map_file(str(tmp_path / "file"))
    private = np.frombuffer(bytearray(content), np.uint8)
    for array in (mapped, private):  # samples may also lie in memory that is no map
        nbytes = np.array([0, 1, 5000, 50_000, 1, 0])
        address = address_of(array) + np.array([0, 3, 9, 20_000, 99_999, 100_000])
        run(kernels.will_need_spans)(address, nbytes, 4096, 1 << 14)
        pages.prefetch_pages(address[::-1].copy(), nbytes[::-1].copy())
        assert array.tobytes() == content
    run(kernels.will_need_spans)(np.zeros(0, np.int64), np.zeros(0, np.int64), 4096, 1 << 14)
