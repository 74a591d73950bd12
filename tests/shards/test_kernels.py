"""Tests of the kernels, compiled and as plain Python: their results, and that they stay in bounds.

Inputs end at a page that raises a fault when it is touched (`guards`). Outputs lie between bytes
that must not change.
"""

from __future__ import annotations

import bisect
import itertools
import mmap
import struct
import types

import numpy as np
import pytest
from guards import guarded_array
from hypothesis import given
from hypothesis import strategies as st

from npstream._core.memory import address_of, map_file
from npstream._core.spans import (
    copy_short,
    copy_spans,
    count_characters,
    equal_spans,
    join_columns,
    match_any_span,
    match_ends,
    search_spans,
)
from npstream.formats.encodings.arrays import DTYPE_CODES
from npstream.formats.encodings.encodings import parse_array_head
from npstream.formats.index import shard_lookup_table
from npstream.shards import kernels, paging

CANARY = 0xA5
ITEMSIZES = np.zeros(256, np.int64)
for code, dtype in DTYPE_CODES.items():
    ITEMSIZES[code] = dtype.itemsize


@pytest.fixture(params=["compiled", "python"], scope="module")
def run(request):
    """Return a function that makes a callable of a kernel: compiled, or plain Python."""
    if request.param == "python":
        return lambda kernel: kernel.py_func
    return lambda kernel: kernel.compiled()


def canary_array(n):
    """Return an array of `n` canary bytes, and a function that checks those around the array."""
    memory = np.full(n + 64, CANARY, np.uint8)
    return memory[32 : 32 + n], lambda: (np.delete(memory, np.s_[32 : 32 + n]) == CANARY).all()


def spans_of(parts):
    """Return addresses and lengths of parts in guarded memory, and the owners of that memory."""
    owners = [guarded_array(part) for part in parts]
    address = np.array([address_of(part) for part in owners], np.int64)
    return address, np.array([len(part) for part in parts], np.int64), owners


def page_spans(parts, filler):
    """Return spans as `spans_of` does, but at the start of a page; `filler` fills the rest of it.

    `spans_of` returns spans at the end of a page.
    """
    address, _, owners = spans_of(
        [part + (filler * mmap.PAGESIZE)[: mmap.PAGESIZE - len(part)] for part in parts]
    )
    return address, np.array([len(part) for part in parts], np.int64), owners


# Locating samples.


class Shards:
    """Shards in memory, given the sizes of their samples."""

    def __init__(self, shards, stride=0):
        counts = [len(sizes) for sizes in shards]
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.guide, self.shift = shard_lookup_table(self.starts)
        self.entries = np.zeros((max(len(shards), 1), kernels.ENTRY_COLUMNS), np.int64)
        self.owners, self.copies, self.bodies = [], [], []
        for number, sizes in enumerate(shards):
            ends = 10 + np.cumsum([0, *sizes])  # the samples begin at byte 10
            offsets = guarded_array(ends.astype("<u4").tobytes())
            data = guarded_array(bytes(np.arange(ends[-1], dtype=np.uint8)))
            row = (address_of(data), address_of(offsets), 10, len(data), stride)
            self.entries[number, :5] = row
            self.owners += [offsets, data]
            self.bodies += [data[a:b].tobytes() for a, b in itertools.pairwise(ends.tolist())]

    @property
    def addresses(self):
        arrays = self.starts, self.guide, self.entries
        return np.array([*map(address_of, arrays), self.shift])

    def unload(self, shard):
        self.entries[shard] = 0

    def split_into_chunks(self, shard, resident):
        """Split a shard into chunks; ``resident[k]`` is 1 if chunk k is in memory.

        Chunks with even numbers are in copies of the shard.
        """
        flags = guarded_array(bytes(resident))
        slots = np.empty((len(resident), 2), np.int64)
        slots[:, 1] = address_of(flags) + np.arange(len(resident))
        slots[:, 0] = self.entries[shard, 0]
        for chunk in range(0, len(resident), 2):
            shard_copy = guarded_array(self.owners[2 * shard + 1].tobytes())
            slots[chunk, 0] = address_of(shard_copy)
            self.copies.append(shard_copy)
        slots[np.equal(resident, 0) & (np.arange(len(resident)) % 3 == 0)] = 0  # never opened
        self.entries[shard, 5:] = address_of(slots), len(resident)
        self.copies += [flags, slots]  # to keep them alive

    def locate(self, run, ids):
        ids = np.asarray(ids, np.int64)
        address, nbytes = np.full((2, len(ids) + 2), -7, np.int64)
        status = run(kernels.locate)(ids, self.addresses, address[1:-1], nbytes[1:-1])
        assert {*address[[0, -1]], *nbytes[[0, -1]]} == {-7}
        return status, address[1:-1], nbytes[1:-1]

    def read(self, address, nbytes):
        memory = {address_of(data): data.tobytes() for data in self.owners + self.copies}
        starts = sorted(memory)
        parts = []
        for begin, length in zip(address.tolist(), nbytes.tolist(), strict=True):
            start = starts[bisect.bisect_right(starts, begin) - 1]
            parts.append(memory[start][begin - start : begin - start + length])
        return parts


sizes_of_shards = st.lists(st.lists(st.integers(0, 9), max_size=9), min_size=1, max_size=12).filter(
    any
)


@given(sizes_of_shards, st.data())
def test_locate_finds_samples(run, shards, data):
    table = Shards(shards)
    ids = data.draw(st.lists(st.integers(0, len(table.bodies) - 1), max_size=20))
    status, address, nbytes = table.locate(run, ids)
    assert status == 0
    assert table.read(address, nbytes) == [table.bodies[i] for i in ids]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.integers(1, 9))
def test_locate_finds_samples_of_one_size_without_offsets(run, counts, stride):
    table = Shards([[stride] * count for count in counts], stride)
    for offsets in table.owners[::2]:
        offsets[:] = 0xFF  # must not be read
    status, address, nbytes = table.locate(run, np.arange(len(table.bodies)))
    assert status == 0
    assert table.read(address, nbytes) == table.bodies


@given(sizes_of_shards, st.data())
def test_locate_returns_the_shards_that_are_not_in_memory(run, shards, data):
    table = Shards(shards)
    unloaded = data.draw(st.sets(st.integers(0, len(shards) - 1)))
    for shard in unloaded:
        table.unload(shard)
    ids = np.arange(len(table.bodies))
    shard_of = np.searchsorted(table.starts, ids, "right") - 1
    absent = np.isin(shard_of, list(unloaded))
    status, address, nbytes = table.locate(run, ids)
    assert status == absent.sum()
    assert (address[absent] == 0).all()
    assert (nbytes[absent] == shard_of[absent]).all()
    present = [body for body, is_absent in zip(table.bodies, absent, strict=True) if not is_absent]
    assert table.read(address[~absent], nbytes[~absent]) == present


@given(sizes_of_shards, st.data())
def test_locate_returns_the_shards_of_chunks_that_are_not_in_memory(run, shards, data):
    table = Shards(shards)
    ids = np.arange(len(table.bodies))
    shard_of = np.searchsorted(table.starts, ids, "right") - 1
    absent = np.zeros(len(ids), bool)
    for shard, sizes in enumerate(shards):
        flags = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=max(len(sizes), 1)))
        table.split_into_chunks(shard, flags)
        first = table.starts[shard]
        for chunk, flag in enumerate(flags):
            begin, end = (k * len(sizes) // len(flags) for k in (chunk, chunk + 1))
            absent[first + begin : first + end] = not flag
    status, address, nbytes = table.locate(run, ids)
    assert status == absent.sum()
    assert (address[absent] == 0).all()
    assert (nbytes[absent] == shard_of[absent]).all()
    present = [body for body, is_absent in zip(table.bodies, absent, strict=True) if not is_absent]
    assert table.read(address[~absent], nbytes[~absent]) == present


@pytest.mark.parametrize(
    ("row", "offset"),
    [
        pytest.param(0, 9, id="before the first sample"),
        pytest.param(0, 0, id="in the header"),
        pytest.param(2, 11, id="end before begin"),
        pytest.param(4, 27, id="beyond the file"),
        pytest.param(4, 2**31, id="far beyond the file"),
        pytest.param(3, 2**32 - 1, id="the largest offset"),
    ],
)
def test_locate_rejects_offsets_outside_the_shard(run, row, offset):
    table = Shards([[1, 2], [4, 4, 4, 4]])
    table.owners[2][:].view("<u4")[row] = offset
    affected = [2 + k for k in (row - 1, row) if 0 <= k < 4]  # samples with this offset as a bound
    for sample in affected:
        status, *_ = table.locate(run, [0, 1, sample, 1])
        begin, end = table.owners[2].view("<u4")[sample - 2 : sample]
        assert status in (0, -3)  # -1 - 2: the sample at position 2 is damaged
        if status == 0:  # a wrong size within the file, which `split` detects
            assert 10 <= begin <= end <= 26
    assert any(table.locate(run, [0, 1, sample, 1])[0] == -3 for sample in affected)
    unaffected = [i for i in range(6) if i not in affected]
    assert table.locate(run, unaffected)[0] == 0


# Splitting samples.


@st.composite
def samples(draw):
    """Draw the sizes of columns (None: the size varies), and values of samples."""
    sizes = draw(st.lists(st.one_of(st.none(), st.integers(1, 20)), min_size=1, max_size=6))
    bodies = [st.binary(min_size=size or 0, max_size=size or 9) for size in sizes]
    return sizes, draw(st.lists(st.tuples(*bodies), max_size=8))


def encode_sample(sizes, values):
    header = [len(value) for size, value in zip(sizes, values, strict=True) if size is None]
    return np.array(header, "<u4").tobytes() + b"".join(values)


def layout(sizes):
    """Return (variable columns before, fixed bytes before) of each column, and the totals."""
    columns, nvariable, offset = [], 0, 0
    for size in sizes:
        columns.append((nvariable, offset))
        nvariable, offset = nvariable + (size is None), offset + (size or 0)
    return columns, nvariable, offset


@given(samples(), st.data())
def test_split_copies_fixed_columns_and_finds_variable_ones(run, sizes_and_rows, data):
    sizes, rows = sizes_and_rows
    columns, nvariable, fixed_nbytes = layout(sizes)
    address, nbytes, owners = spans_of([encode_sample(sizes, row) for row in rows])
    parts = []
    for column, size in enumerate(sizes):
        if size is not None:
            first = data.draw(st.integers(0, size - 1))
            parts.append((column, first, data.draw(st.integers(first + 1, size))))
    outputs = [canary_array(len(rows) * (stop - first)) for _, first, stop in parts]
    fixed = [
        (columns[column][0], columns[column][1] + first, stop - first)
        for column, first, stop in parts
    ]
    variable = [column for column, size in enumerate(sizes) if size is None]
    spans = np.full((len(variable) + 1, 2, len(rows)), -7, np.int64)
    status = run(kernels.split)(
        address, nbytes, nvariable, fixed_nbytes,
        np.array(fixed, np.int64).reshape(-1, 3),
        np.array([address_of(output) for output, _ in outputs], np.int64),
        np.array([columns[column] for column in variable], np.int64).reshape(-1, 2),
        spans.reshape(-1),
    )  # fmt: skip
    assert status == 0
    assert (spans[-1] == -7).all()
    for (column, first, stop), (output, is_intact) in zip(parts, outputs, strict=True):
        assert is_intact()
        assert output.tobytes() == b"".join(row[column][first:stop] for row in rows)
    for k, (values, sample) in enumerate(zip(rows, owners, strict=True)):
        for number, column in enumerate(variable):
            begin, length = spans[number, :, k] - (address[k], 0)
            assert sample[begin : begin + length].tobytes() == values[column]


@given(samples().filter(lambda sizes_and_rows: sizes_and_rows[1]), st.data())
def test_split_rejects_samples_of_another_length(run, sizes_and_rows, data):
    sizes, rows = sizes_and_rows
    columns, nvariable, fixed_nbytes = layout(sizes)
    samples = [encode_sample(sizes, row) for row in rows]
    k = data.draw(st.integers(0, len(rows) - 1))
    length = data.draw(st.integers(0, len(samples[k]) + 3))
    if length == len(samples[k]) or (nvariable == 0 and length > fixed_nbytes):
        return  # without variable columns, `split` accepts longer samples; `locate` returns none
    samples[k] = (samples[k] + bytes(3))[:length]
    address, nbytes, _owners = spans_of(samples)
    output, is_intact = canary_array(len(rows) * fixed_nbytes)
    fixed = [
        (*column, size) for column, size in zip(columns, sizes, strict=True) if size is not None
    ]
    variable = [column for column, size in zip(columns, sizes, strict=True) if size is None]
    spans = np.zeros((nvariable, 2, len(rows)), np.int64)
    status = run(kernels.split)(
        address, nbytes, nvariable, fixed_nbytes, np.array(fixed, np.int64).reshape(-1, 3),
        np.full(len(fixed), address_of(output), np.int64),
        np.array(variable, np.int64).reshape(-1, 2), spans.reshape(-1),
    )  # fmt: skip
    assert status == -1 - k
    assert is_intact()
    assert (spans[:, :, k:] == 0).all()  # no span of a damaged sample


# `size` + 2 bytes of each sample are copied: LONG_SAMPLE - 1, LONG_SAMPLE, and more.
@pytest.mark.parametrize("size", [kernels.LONG_SAMPLE - 3, kernels.LONG_SAMPLE - 2, 2048])
@pytest.mark.parametrize("count", [0, 1, 2, 9, 20])
def test_split_copies_columns_of_long_samples(run, count, size):
    rows = np.random.default_rng(count).integers(0, 256, (count, size + 7), dtype=np.uint8)
    address, nbytes, _owners = spans_of([row.tobytes() for row in rows])
    long, is_long_intact = canary_array(count * size)
    short, is_short_intact = canary_array(count * 2)
    fixed = np.array([(0, 3, size), (0, size + 4, 2)])
    outputs = np.array([address_of(long), address_of(short)])
    no_variable, no_spans = np.empty((0, 2), np.int64), np.empty(0, np.int64)
    arguments = 0, size + 7, fixed, outputs, no_variable, no_spans
    assert run(kernels.split)(address, nbytes, *arguments) == 0
    assert (long.reshape(count, size) == rows[:, 3 : 3 + size]).all()
    assert (short.reshape(count, 2) == rows[:, size + 4 : size + 6]).all()
    assert is_long_intact()
    assert is_short_intact()
    if count:
        nbytes[-1] -= 1
        assert run(kernels.split)(address, nbytes, *arguments) == -count


@pytest.mark.parametrize("sizes", [(5, 1), (0, 0), (2**32 - 1, 5), (3, 2**31), (2**32 - 2, 6)])
def test_split_rejects_sizes_that_do_not_add_up(run, sizes):
    for header, expected in ((sizes, -1), ((2, 1), 0)):
        address, nbytes, _owners = spans_of([struct.pack("<2I", *header) + b"abcde"])
        spans = np.zeros(4, np.int64)
        no_fixed, no_outputs = np.zeros((0, 3), np.int64), np.zeros(0, np.int64)
        columns = no_fixed, no_outputs, np.array([(0, 0), (1, 2)])
        assert run(kernels.split)(address, nbytes, 2, 2, *columns, spans) == expected


@given(st.lists(st.lists(st.binary(max_size=5), max_size=4), min_size=1, max_size=5).filter(any))
def test_read_in_one_call_equals_locate_and_split_in_two(run, shards):
    bodies = [[encode_sample([None, 2], (value, b"ab")) for value in values] for values in shards]
    table = Shards([[len(body) for body in shard] for shard in bodies])
    for data, shard in zip(table.owners[1::2], bodies, strict=True):
        data[10:] = np.frombuffer(b"".join(shard), np.uint8)
    values = [value for shard in shards for value in shard]
    n = len(values)

    def read_in(*calls):
        output, is_intact = canary_array(2 * n)
        columns = np.array([(1, 2, 1), (1, 0, 2), (0, 0, 0)])
        words = np.zeros(4 * n + 1, np.int64)
        words[-1] = address_of(output)
        for steps in calls:
            status = run(kernels.read)(steps, np.arange(n), table.addresses, columns, words)
            if status:
                break
        assert is_intact()
        assert words[-1] == address_of(output)
        return status, output.tobytes(), kernels.value_spans(words, n, 1)

    def read():
        one_call = read_in(kernels.BOTH)
        two_calls = read_in(kernels.LOCATE, kernels.SPLIT)
        assert one_call[:2] == two_calls[:2]
        assert (one_call[2] == two_calls[2]).all()
        return one_call

    status, fixed, spans = read()
    assert status == 0
    assert fixed == b"ab" * n
    assert table.read(*spans) == values
    first = next(number for number, shard in enumerate(shards) if shard)
    table.owners[2 * first + 1][10] ^= 1  # the size of the first sample's column
    assert read()[0] == -1
    table.unload(first)
    assert read()[0] == len(shards[first])


# Copying and comparing.


@given(st.lists(st.binary(max_size=20), max_size=12), st.integers(0, 5))
def test_copy_spans_copies_to_the_offsets_only(run, parts, gap):
    address, nbytes, _owners = spans_of(parts)
    offsets = np.cumsum(nbytes + gap) - nbytes - gap
    output, is_intact = canary_array(int((nbytes + gap).sum()))
    assert run(copy_spans)(address, nbytes, offsets, address_of(output)) is None
    assert is_intact()
    assert output.tobytes() == b"".join(part + bytes([CANARY] * gap) for part in parts)


@given(
    st.integers(0, 12),
    st.lists(st.sampled_from([None, "sizes", 1, 2, 4, 8, 3, 20]), min_size=1, max_size=4),
    st.data(),
)
def test_join_columns_joins_the_values_of_each_row(run, count, sizes, data):
    """None is a column whose values vary in size. For "sizes", their sizes are written as well."""
    columns, values, heads, owners = [], [], [], []
    for size in sizes:
        varies = size in (None, "sizes")
        lengths = st.binary(max_size=20) if varies else st.binary(min_size=size, max_size=size)
        parts = data.draw(st.lists(lengths, min_size=count, max_size=count))
        values.append(parts)
        if varies:
            if size == "sizes":
                heads.append([struct.pack("<I", len(part)) for part in parts])
            address, nbytes, bodies = spans_of(parts)
            spans = [guarded_array(each.tobytes()) for each in (address, nbytes)]
            columns.append((size == "sizes", *map(address_of, spans)))
            owners.append((spans, bodies))
        else:
            parts = guarded_array(b"".join(parts))
            columns.append((-1, address_of(parts), size))
            owners.append(parts)
    rows = b"".join(map(b"".join, zip(*heads, *values, strict=True)))
    output, is_intact = canary_array(len(rows))
    run(join_columns)(count, np.array(columns, np.int64), address_of(output))
    assert is_intact()
    assert output.tobytes() == rows


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 8, 9, 100])
def test_copy_short_copies_all_bytes(run, size):
    source = guarded_array(np.random.default_rng(size).bytes(size))
    output, is_intact = canary_array(size)
    run(copy_short)(address_of(output), address_of(source), size)
    assert is_intact()
    assert (output == source).all()


@given(st.lists(st.binary(max_size=3), max_size=12), st.binary(max_size=3))
def test_equal_spans_compares_each_span(run, parts, value):
    address, nbytes, _owners = spans_of(parts)
    pattern = guarded_array(value)
    results = np.ones(len(parts) + 2, bool)
    run(equal_spans)(address, nbytes, address_of(pattern), len(value), results[1:-1])
    assert results.tolist() == [True, *(part == value for part in parts), True]


texts = st.lists(st.text("ab", max_size=4).map(str.encode) | st.binary(max_size=80), max_size=6)


@given(texts, st.text("ab", max_size=3).map(str.encode) | st.binary(max_size=3))
def test_search_and_match_ends_equal_methods_of_bytes(run, parts, value):
    address, nbytes, _owners = spans_of(parts)
    pattern = guarded_array(value)
    pattern_span = address_of(pattern), len(value)
    results = np.ones(len(parts) + 2, bool)
    run(search_spans)(address, nbytes, *pattern_span, results[1:-1])
    assert results.tolist() == [True, *(value in part for part in parts), True]
    run(match_ends)(address, nbytes, *pattern_span, False, results[1:-1])
    assert results.tolist() == [True, *(part.startswith(value) for part in parts), True]
    run(match_ends)(address, nbytes, *pattern_span, True, results[1:-1])
    assert results.tolist() == [True, *(part.endswith(value) for part in parts), True]


@pytest.mark.parametrize("prefix", [b"", b"a" * 5, b"ab" * 20, b"b" * 31, b"\xff" * 100])
@pytest.mark.parametrize("value", [b"a", b"ab", b"aab", b"ab" * 40, b"a" + b"b" * 32 + b"a"])
def test_search_finds_values_at_each_position(run, prefix, value):
    """A value that ends after its span is not found, even if it follows in the same page."""
    pattern = guarded_array(value)
    parts = [prefix + value + b"c" * n for n in (0, 1, 30, 31, 32, 33, 70)]
    parts += [prefix + value[:-1] + b"c" * n for n in (0, 1, 30, 31, 32, 33, 70)]
    for address, nbytes, _owners in (spans_of(parts), page_spans(parts, filler=value)):
        results = np.ones(len(parts), bool)
        run(search_spans)(address, nbytes, address_of(pattern), len(value), results)
        assert results.tolist() == [value in part for part in parts]


@pytest.mark.parametrize("begin", [0, 1, 4050, 4064, 4065, 4090])
def test_search_reads_no_other_page(run, begin):
    """A group of 32 bytes extends beyond the span only within its page.

    Here the span begins at byte `begin` of a page, and ends with the page.
    """
    page = guarded_array(bytes(4090 - begin) + b"abcabx")
    address, nbytes = np.array([address_of(page)]), np.array([len(page)])
    for value in (b"abx", b"bcabx", b"abe"):
        pattern = guarded_array(value)
        results = np.ones(1, bool)
        run(search_spans)(address, nbytes, address_of(pattern), len(value), results)
        assert results[0] == (value in page.tobytes())


@given(st.lists(st.text(max_size=40), max_size=8))
def test_count_characters_is_the_length_of_text(run, parts):
    bodies = [part.encode() for part in parts]
    # In UTF-8, a byte 0x80 after a span would continue its last character.
    for address, nbytes, _owners in (spans_of(bodies), page_spans(bodies, filler=b"\x80")):
        lengths = np.full(len(parts) + 2, -1)
        run(count_characters)(address, nbytes, lengths[1:-1])
        assert lengths.tolist() == [-1, *map(len, parts), -1]


@given(st.lists(st.binary(max_size=2), max_size=9), st.sets(st.binary(max_size=2), max_size=9))
def test_match_any_span_is_membership(run, parts, values):
    address, nbytes, _owners = spans_of(parts)
    ordered = sorted(values, key=lambda value: (len(value), value))
    value_address, value_nbytes, _value_owners = spans_of(ordered)
    results = np.ones(len(parts) + 2, bool)
    run(match_any_span)(address, nbytes, value_address, value_nbytes, results[1:-1])
    assert results.tolist() == [True, *(part in values for part in parts), True]


# Headers of arrays.


@st.composite
def array_bodies(draw):
    """Draw the body of an array, damaged or not."""
    code = draw(st.sampled_from(sorted(DTYPE_CODES)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    width = draw(st.integers(0, 3))
    dims = np.array(shape, f"<u{1 << width}")
    header = bytes([code, len(shape) << 2 | width]) + dims.tobytes()
    body = bytearray(header + bytes(int(np.prod(shape)) * DTYPE_CODES[code].itemsize))
    for _ in range(draw(st.integers(0, 2))):
        body[draw(st.integers(0, min(len(body), 12) - 1))] = draw(st.integers(0, 255))
    return bytes(body[: draw(st.integers(0, len(body)))]) if draw(st.booleans()) else bytes(body)


# The code of the dtype, the byte ``ndim << 2 | w``, and a length of 2**w bytes for each axis.
MALICIOUS_HEADERS = [
    b"",
    b"\x10",
    bytes([16, 0]),  # no axes
    bytes([16, 63 << 2 | 3]),  # 63 axes of 8 bytes, without these bytes
    bytes([16, 1 << 2, 0]),  # a length of 0
    bytes([17, 1 << 2, 1, 0]),  # half a value
    bytes([1, 1 << 2, 1, 0]),  # an unknown dtype code
    bytes([8, 1 << 2 | 3]) + struct.pack("<Q", 2**63) + b"a",
    bytes([8, 1 << 2 | 3]) + struct.pack("<Q", 2**64 - 1) + b"a",
    bytes([8, 2 << 2 | 3]) + struct.pack("<2Q", 2**32, 2**32) + b"a",
    bytes([8, 3 << 2 | 3]) + struct.pack("<3Q", 2**63 - 1, 2**63 - 1, 1) + b"a",
    bytes([66, 2 << 2 | 3]) + struct.pack("<2Q", 2**61, 8) + bytes(8),
    bytes([8, 63 << 2]) + bytes([2] * 63),
]


def check_headers(run, bodies, dtype):
    """Compare the kernels with `parse_array_head`; return the status of each body."""
    statuses = []
    has_code = int(dtype is None)
    known_code = [code for code, code_dtype in DTYPE_CODES.items() if code_dtype == dtype]
    for body in bodies:
        address, nbytes, _owners = spans_of([body])
        codes, header_sizes, ndims = np.array([known_code or [0], [0], [0]], np.int64)
        status = run(kernels.read_array_headers)(
            address, nbytes, has_code, ITEMSIZES, codes, header_sizes, ndims
        )
        statuses.append(status)
        try:
            expected, shape, start = parse_array_head(body, dtype)
        except ValueError:
            assert status == -1
            continue
        assert status == 0
        assert (header_sizes[0], ndims[0]) == (start, len(shape))
        assert DTYPE_CODES[int(codes[0])] == expected
        shapes = np.zeros((1, len(shape)), np.int64)
        run(kernels.read_array_shapes)(address, has_code, shapes)
        assert tuple(shapes[0]) == shape
    return statuses


@given(st.lists(st.one_of(array_bodies(), st.binary(max_size=12)), max_size=6))
def test_array_headers_are_read(run, bodies):
    check_headers(run, bodies, None)
    for dtype in (np.dtype(np.uint8), np.dtype(np.float32)):
        check_headers(run, [body[1:] for body in bodies], dtype)


def test_malicious_array_headers_are_rejected(run):
    assert check_headers(run, MALICIOUS_HEADERS, None) == [-1] * len(MALICIOUS_HEADERS)
    # Some are valid without their dtype code, as arrays of uint8.
    check_headers(run, [body[1:] for body in MALICIOUS_HEADERS], np.dtype(np.uint8))


def test_an_array_header_with_63_axes_is_valid(run):
    body = bytes([8, 63 << 2]) + bytes([1] * 63) + b"a"
    assert check_headers(run, [body], None) == [0]
    assert check_headers(run, [body[1:]], np.dtype(np.uint8)) == [0]


def test_the_first_damaged_array_header_is_reported(run):
    good = bytes([8, 1 << 2, 2, 7, 7])
    address, nbytes, _owners = spans_of([good, good, good[:-1], good])
    codes, header_sizes, ndims = np.zeros((3, 4), np.int64)
    status = run(kernels.read_array_headers)(
        address, nbytes, 1, ITEMSIZES, codes, header_sizes, ndims
    )
    assert status == -3


@given(st.binary(min_size=1, max_size=8))
def test_little_endian_numbers_are_loaded(run, body):
    data = guarded_array(body)
    number = run(kernels.load_little_endian)(address_of(data), len(body))
    assert number % 2**64 == int.from_bytes(body, "little")


# Prefetching pages.


@given(st.lists(st.tuples(st.integers(0, 99_999), st.integers(0, 30_000)), max_size=20))
def test_prefetch_requests_every_page_once(spans):
    """Run the kernel as plain Python, and record the ranges of its madvise calls."""
    page, gap = 4096, 1 << 14
    requested = []
    python = kernels.will_need_spans.py_func

    def will_need(first, nbytes):
        requested.append((first, first + nbytes))

    prefetch = types.FunctionType(python.__code__, {**python.__globals__, "will_need": will_need})
    table = np.array(sorted(spans), np.int64).reshape(-1, 2)
    table[:, 0] += 1 << 20
    prefetch(table[:, 0], table[:, 1], page, gap)
    for begin, nbytes in table.tolist():
        assert any(first <= begin and begin + nbytes <= last for first, last in requested)
    assert all(first % page == 0 for first, _ in requested)
    for (_, last), (first, _) in itertools.pairwise(requested):
        assert first > last + gap
    for first, last in requested:
        assert first // page in table[:, 0] // page
        assert last in table.sum(axis=1)


def test_prefetch_changes_no_bytes(run, tmp_path):
    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "file").write_bytes(content)
    mapped = map_file(str(tmp_path / "file"))
    private = np.frombuffer(bytearray(content), np.uint8)
    for array in (mapped, private):  # samples may lie in memory that maps no file
        nbytes = np.array([0, 1, 5000, 50_000, 1, 0])
        address = address_of(array) + np.array([0, 3, 9, 20_000, 99_999, 100_000])
        run(kernels.will_need_spans)(address, nbytes, 4096, 1 << 14)
        paging.prefetch_pages(address[::-1].copy(), nbytes[::-1].copy())
        assert array.tobytes() == content
    run(kernels.will_need_spans)(np.zeros(0, np.int64), np.zeros(0, np.int64), 4096, 1 << 14)
