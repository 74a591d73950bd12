"""Indices with arrays on a column's values select the same elements as in NumPy."""

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
ROW_BYTES = VALUES[0].nbytes


@pytest.fixture(scope="module")
def column(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh")
    npstream.write(path, {"x": VALUES}, shard_size=4 * ROW_BYTES)
    return npstream.open(path)["x"]


@settings(max_examples=200)
@given(st.data())
def test_chained_indices_select_the_elements_that_numpy_selects(column, data):
    view, expected = column, VALUES
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(indices(expected.shape, allow_invalid=False))
        view, expected = view[index], expected[index]
        assert view.shape == expected.shape
        if not isinstance(view, npstream.Column):
            assert_same(np.asarray(view), np.asarray(expected))
            return
    assert_same(view.load(), np.ascontiguousarray(expected) if expected.ndim else expected)
    out = np.empty(expected.shape, expected.dtype)
    assert view.load(out) is out
    assert_same(out, expected if expected.flags.c_contiguous else expected.copy("C"))
    if view.ndim:
        assert_same(
            np.array(list(view), expected.dtype).reshape(expected.shape),
            expected.copy("C"),
        )


@settings(max_examples=100)
@given(st.data())
def test_take_of_a_view_reads_the_elements_that_numpy_takes(column, data):
    part = data.draw(indices(SHAPE, allow_invalid=False))
    view, expected = column[part], VALUES[part]
    if not isinstance(view, npstream.Column) or not expected.size:
        return
    ndim = expected.ndim
    axis = data.draw(st.none() | st.integers(-ndim, ndim - 1)) if ndim else None
    length = expected.size if axis is None else expected.shape[axis]
    numbers = data.draw(
        st.integers(-length, length - 1)
        | st.lists(st.integers(-length, length - 1), min_size=1).map(np.array)
        | st.lists(st.integers(-length, length - 1), min_size=4, max_size=4).map(
            lambda numbers: np.array(numbers).reshape(2, 2)
        )
    )
    mode = data.draw(st.sampled_from(["raise", "wrap", "clip"]))
    assert_same(view.take(numbers, axis, mode=mode), expected.take(numbers, axis, mode=mode))


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ((slice(None), [0, 3]), [2, 7]),
        ((slice(None), 1, slice(None), [0, 3]), None),
        (([8, 1, 4], [0, 3, 1]), [2, 0]),
        ((slice(None), slice(None), [2, 0]), slice(3)),
    ],
)
def test_only_the_selected_rows_are_read(column, index, rows, monkeypatch):
    read_rows = []
    original = type(column._source).columns

    def columns(self, plan, samples, *arguments):
        read_rows.extend(samples.rows.tolist())
        return original(self, plan, samples, *arguments)

    monkeypatch.setattr(type(column._source), "columns", columns)
    view, expected = column[index], VALUES[index]
    if rows is None:  # axis 0 of the view is that of the array, and axis 1 has the rows
        assert_same(view[1].load(), expected[1].copy())
        assert sorted(read_rows) == [*range(9)]
        read_rows.clear()
        assert_same(view[:, 4], expected[:, 4].copy())
        assert not read_rows  # `columns` does not read the value of a single row
        return
    assert_same(view[rows].load(), expected[rows].copy())
    count = len(range(len(expected))[rows]) if isinstance(rows, slice) else len(rows)
    assert len(set(read_rows)) == len(read_rows) == count


def test_a_view_is_read_in_blocks(column, monkeypatch):
    monkeypatch.setattr("npstream.dataset.column.READ_BYTES", 3 * ROW_BYTES)
    sizes = []
    original = type(column._source).columns

    def columns(self, plan, samples, *arguments):
        sizes.append(len(samples.rows))
        return original(self, plan, samples, *arguments)

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
    assert (part.first, part.stop, part.shape) == (ROW_BYTES // 4, ROW_BYTES // 4 * 3, (2, 3, 5))
    assert column[:, [1, 2]][:, 1, :, 3]._cell.shape == (1, 3, 1)


def test_the_memory_of_a_sliced_axis_is_proportional_to_its_length():
    mesh = Mesh.whole(1, (1000, 1000, 1000)).select(
        (slice(None),), (slice(None), np.array([5, 9]), slice(1, None))
    )
    assert [positions.size for positions in mesh.axis_positions] == [1000, 2, 999]
    assert mesh.shape == (1000, 2, 999)


def test_invalid_indices_raise_the_exceptions_of_numpy(column):
    view = column[:, [0, 3]]
    for index in (9, (0, 2), (slice(None), 0, 3), ([9],), (0, 0, 0, 5), (0, 0, 0, 0, 0)):
        with pytest.raises(IndexError) as caught:
            view[index]
        with pytest.raises(IndexError) as numpy_caught:
            VALUES[:, [0, 3]][index]
        assert type(caught.value) is type(numpy_caught.value)


def test_a_joint_index_takes_no_memory_for_the_elements_that_it_selects():
    mesh = Mesh.whole(1, (1 << 20, 4, 1 << 20))
    rows, frames = np.arange(3), np.array([0, 1, 3])
    tracemalloc.start()
    _, part = mesh.select_jointly((rows,), (slice(None), frames, slice(None)), (5,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 26  # the positions of the two long axes take 16 MiB
    assert part.result_shape((3,)) == (3, 1 << 20, 1 << 20)


@pytest.mark.parametrize("row", [0, -1])
def test_any_row_of_an_empty_view_is_out_of_bounds(column, row):
    with pytest.raises(IndexError, match="out of bounds"):
        column[:0][row, np.array([], np.int64)]
