"""Elements chosen by arrays are those that NumPy chooses, however often they are chosen."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npstream
from npstream.indexing.mesh import Mesh
from npstream.testing import assert_same, indices

SHAPE = (9, 4, 3, 5)
VALUES = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)


@pytest.fixture(scope="module")
def column(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh")
    npstream.write(path, {"x": VALUES}, shard_size=4 * 240)
    return npstream.open(path)["x"]


@settings(max_examples=200)
@given(st.data())
def test_indices_of_indices(column, data):
    here, want = column, VALUES
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(indices(want.shape, allow_invalid=False))
        here, want = here[index], want[index]
        assert here.shape == want.shape
        if not isinstance(here, npstream.Column):
            assert_same(np.asarray(here), np.asarray(want))
            return
    assert_same(here.load(), np.ascontiguousarray(want) if want.ndim else want)
    out = np.empty(want.shape, want.dtype)
    assert here.load(out) is out
    assert_same(out, want if want.flags.c_contiguous else want.copy("C"))
    if here.ndim:
        assert_same(
            np.array(list(here), want.dtype).reshape(want.shape),
            want.copy("C"),
        )


@settings(max_examples=100)
@given(st.data())
def test_take(column, data):
    part = data.draw(indices(SHAPE, allow_invalid=False))
    here, want = column[part], VALUES[part]
    if not isinstance(here, npstream.Column) or not want.size:
        return
    axis = data.draw(st.none() | st.integers(-want.ndim, want.ndim - 1)) if want.ndim else None
    length = want.size if axis is None else want.shape[axis]
    numbers = data.draw(
        st.integers(-length, length - 1)
        | st.lists(st.integers(-length, length - 1), min_size=1).map(np.array)
        | st.lists(st.integers(-length, length - 1), min_size=4, max_size=4).map(
            lambda given: np.array(given).reshape(2, 2)
        )
    )
    mode = data.draw(st.sampled_from(["raise", "wrap", "clip"]))
    assert_same(here.take(numbers, axis, mode=mode), want.take(numbers, axis, mode=mode))


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ((slice(None), [0, 3]), [2, 7]),
        ((slice(None), 1, slice(None), [0, 3]), None),
        (([8, 1, 4], [0, 3, 1]), [2, 0]),
        ((slice(None), slice(None), [2, 0]), slice(3)),
    ],
)
def test_rows_of_a_part_read_these_rows(column, index, rows, monkeypatch):
    read = []
    whole = type(column._source).columns

    def columns(self, plan, found, *rest):
        read.extend(found.rows.tolist())
        return whole(self, plan, found, *rest)

    monkeypatch.setattr(type(column._source), "columns", columns)
    part, want = column[index], VALUES[index]
    if rows is None:  # here the first axis is that of the array
        assert_same(part[1].load(), want[1].copy())
        assert_same(part[:, 4], want[:, 4].copy())
        return
    assert_same(part[rows].load(), want[rows].copy())
    count = len(range(len(want))[rows]) if isinstance(rows, slice) else len(rows)
    assert len(set(read)) == len(read) == count


def test_a_part_is_read_in_blocks(column, monkeypatch):
    monkeypatch.setattr("npstream.dataset.column.READ_BYTES", 3 * 240)
    sizes = []
    whole = type(column._source).columns

    def columns(self, plan, found, *rest):
        sizes.append(len(found.rows))
        return whole(self, plan, found, *rest)

    monkeypatch.setattr(type(column._source), "columns", columns)
    for index in [(slice(None), [0, 3]), (slice(None), 1, slice(None), [0, 3])]:
        sizes.clear()
        assert_same(column[index].load(), VALUES[index].copy())
        assert sum(sizes) == 9
        assert max(sizes) <= 3
    sizes.clear()
    assert_same(column[:, [0, 3]].sum(axis=0), VALUES[:, [0, 3]].sum(axis=0))
    assert sum(sizes) == 9
    assert max(sizes) <= 3


def test_only_the_bytes_between_the_first_and_the_last_element_are_copied(column):
    part = column[:, [1, 2]]._plan.fields[0].part
    assert (part.first, part.stop, part.shape) == (60, 180, (2, 3, 5))
    assert column[:, [1, 2]][:, 1, :, 3]._cell.shape == (1, 3, 1)


def test_a_long_axis_that_is_sliced_costs_its_length():
    mesh = Mesh.whole(1, (1000, 1000, 1000)).select(
        (slice(None),), (slice(None), np.array([5, 9]), slice(1, None))
    )
    assert [numbers.size for numbers in mesh.numbers] == [1000, 2, 999]
    assert mesh.shape == (1000, 2, 999)


def test_damage_and_bounds_raise_as_in_numpy(column):
    part = column[:, [0, 3]]
    for index in (9, (0, 2), (slice(None), 0, 3), ([9],), (0, 0, 0, 5), (0, 0, 0, 0, 0)):
        with pytest.raises(IndexError) as ours:
            part[index]
        with pytest.raises(IndexError) as numpys:
            VALUES[:, [0, 3]][index]
        assert type(ours.value) is type(numpys.value)


def test_an_index_costs_what_its_arrays_do(column):
    mesh = Mesh.whole(1, (1 << 20, 4, 1 << 20))
    rows, frames = np.arange(3), np.array([0, 1, 3])
    tracemalloc.start()
    _, chosen = mesh.select_jointly((rows,), (slice(None), frames, slice(None)), (5,))
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()
    assert chosen.result_shape((3,)) == (3, 1 << 20, 1 << 20)


@pytest.mark.parametrize("row", [0, -1])
def test_a_row_of_none_is_out_of_bounds(column, row):
    with pytest.raises(IndexError, match="out of bounds"):
        column[:0][row, np.array([], np.int64)]
