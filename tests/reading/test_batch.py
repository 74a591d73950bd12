"""Tests of Ragged against object arrays of rows, and of Batch under torch's conversions."""

from __future__ import annotations

import copy
import pickle
import sys

import numpy as np
import pytest
from dataset_files import objects
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from npstream._core import jit
from npstream._core.spans import copy_spans
from npstream.errors import ColumnError, FormatError, MissingDependencyError
from npstream.reading.batch import Batch, Ragged
from npstream.testing import assert_same

ROWS = [np.array([1, 2]), np.array([], np.int64), np.array([3, 4, 5]), np.array([6])]
TEXT = ["one", "", "zwei", "trois ❤"]
IMAGES = [np.arange(6, dtype="u1").reshape(2, 3), np.full((1, 3), 9, "u1"), np.ones((4, 3), "u1")]
SIZES = [np.ones((2, 3)), np.full((3, 1), 2.0), np.empty((0, 4)), np.full((1, 1), 3.0)]


def assert_rows(ragged, rows):
    assert ragged.shape == (len(rows),)
    assert_same(ragged, objects(rows))


@st.composite
def raggeds(draw):
    """Draw a Ragged of any kind, and its rows."""
    kind = draw(st.sampled_from(["1-d", "n-d", "str", "bytes", "image"]))
    if kind == "str":
        rows = draw(st.lists(st.text(max_size=5), max_size=6))
        return Ragged.from_list(rows, kind), rows
    if kind in ("bytes", "image"):
        rows = draw(st.lists(st.binary(max_size=5), max_size=6))
        return Ragged.from_list(rows, kind), rows
    dtype = draw(st.sampled_from(["?", "u1", "i8", "f4", "c16"]))
    rank = 1 if kind == "1-d" else draw(st.sampled_from([0, 2, 3]))
    shapes = st.lists(st.integers(0, 3), min_size=rank, max_size=rank).map(tuple)
    row = shapes.flatmap(lambda shape: npst.arrays(dtype, shape, elements=st.integers(0, 1)))
    rows = draw(st.lists(row, min_size=1, max_size=6))
    return Ragged.from_list(rows), rows


def indices(n):
    positions = st.lists(st.integers(-n, n - 1), max_size=8) if n else st.builds(list)
    return (
        st.slices(n)
        | positions
        | positions.map(lambda index: np.array(index, np.int32))
        | npst.arrays(bool, n)
    )


@given(raggeds(), st.data())
def test_indexing_selects_the_rows_that_numpy_selects(drawn, data):
    ragged, rows = drawn
    rows = objects(rows)
    for _ in range(3):
        index = data.draw(indices(len(rows)), "index")
        ragged, rows = ragged[index], rows[index]
        assert_rows(ragged, rows)
    for i in range(-len(rows), len(rows)):
        assert np.array_equal(ragged[i], rows[i])


@pytest.mark.parametrize(
    "index",
    [4, -5, np.int64(9), [0, 7], [-9], [True, False], np.ones(5, bool), 1.0, [0.5], "x", (0, 1)],
)
def test_bad_indices_raise_the_errors_of_numpy(index):
    with pytest.raises((IndexError, ValueError)) as expected:
        np.arange(4)[index]
    with pytest.raises(expected.type) as raised:
        Ragged.from_list(ROWS)[index]
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize("index", [True, None, [[0, 1]], np.zeros((1, 2), int)])
def test_indices_with_other_than_one_axis_raise(index):
    with pytest.raises(IndexError, match="a Ragged one"):
        Ragged.from_list(ROWS)[index]


def test_integers_and_slices_are_views_and_other_indices_copy():
    ragged = Ragged.from_list(ROWS)
    assert np.shares_memory(ragged[2], ragged.values)
    assert ragged[1:3].values is ragged.values
    assert not np.shares_memory(ragged[[2]].values, ragged.values)
    ragged[2][0] = 99
    assert ragged[1:][1][0] == 99


def test_attributes_describe_the_rows():
    ragged = Ragged.from_list(ROWS)
    assert ragged.dtype == np.int64
    assert ragged.lengths.tolist() == [2, 0, 3, 1]
    assert ragged[2:].lengths.tolist() == [3, 1]
    assert ragged.nbytes == 48
    assert ragged[2:].nbytes == 32
    assert ragged != Ragged.from_list(ROWS)  # only the same object is equal
    assert len({ragged, ragged}) == 1


def test_gathering_many_rows_compiles_the_loop(monkeypatch):
    monkeypatch.setattr(copy_spans, "_compiled", None)
    # After this number of rows in Python, the loop is compiled even if no code is on disk.
    monkeypatch.setattr(jit, "_rows_in_python", jit.COMPILE_THRESHOLD)
    index = np.arange(4000) % 4
    assert_rows(Ragged.from_list(ROWS)[index], [ROWS[i] for i in index])
    assert copy_spans._compiled is not None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([1, 2], [0, 3]), ValueError),
        (([1, 2], [-1, 2]), ValueError),
        (([1, 2], [0, 2, 1]), ValueError),
        (([1, 2], []), TypeError),
        (([1, 2], np.empty(0, int)), ValueError),
        (([[1, 2]], [0, 1]), ValueError),
        (([1, 2], [[0, 1]]), ValueError),
        (([1, 2], [0.0, 2.0]), TypeError),
        (([1, 2], [0, 2], "str"), TypeError),
        (([1, 2], [0, 2], "json"), ValueError),
        ((np.array(["a"], object), [0, 1]), TypeError),
        ((np.array(["a"], np.dtypes.StringDType()), [0, 1]), TypeError),
        (([1, 2], [0, 2], None, [[3]]), ValueError),
        (([1, 2], [0, 2], None, [[-1, -2]]), ValueError),
        (([1, 2], [0, 2], None, [2]), ValueError),
        (([1, 2], [0, 2], None, [[2], [0]]), ValueError),
        (([1, 2], [0, 0], None, [[2**32, 2**32]]), ValueError),
        ((np.zeros(2, "u1"), [0, 2], "bytes", [[2]]), ValueError),
    ],
)
def test_arguments_that_do_not_fit_each_other_raise(arguments, error):
    with pytest.raises(error):
        Ragged(*arguments)


def test_strided_values_are_made_contiguous():
    assert_rows(Ragged(np.arange(8)[::2], [0, 1, 4])[[1, 0]], [np.array([2, 4, 6]), np.array([0])])


def test_from_list_finds_kind_and_dtype():
    assert Ragged.from_list([]).dtype == np.float64
    assert Ragged.from_list([], "str").kind == "str"
    assert Ragged.from_list([[], [1]]).dtype == np.int64
    assert Ragged.from_list([np.empty(0, "f4")]).dtype == np.float32
    assert Ragged.from_list([[1], [0.5]]).dtype == np.float64
    assert_rows(Ragged.from_list([b"a", "ü"], "str"), ["a", "ü"])
    with pytest.raises(ValueError, match="rows of \\[1, 2\\] axes"):
        Ragged.from_list([[1], [[2]]])
    for rows in (["a", 1], [np.arange(3)], [3]):
        with pytest.raises(TypeError):
            Ragged.from_list(rows, "str")


@given(raggeds(), st.data())
def test_copies_and_pickles_of_a_slice_do_not_contain_other_rows(drawn, data):
    ragged, rows = drawn
    part = data.draw(st.slices(len(rows)).filter(lambda s: s.step in (None, 1)))
    for copied in (
        copy.copy(ragged[part]),
        copy.deepcopy(ragged[part]),
        pickle.loads(pickle.dumps(ragged[part])),
    ):
        assert_rows(copied, rows[part])
        assert copied.kind == ragged.kind
        assert len(copied.values) == ragged[part].lengths.sum()


# Padding


@pytest.mark.parametrize("side", ["right", "left"])
@given(drawn=raggeds(), data=st.data())
def test_pad_fills_every_axis(side, drawn, data):
    ragged, rows = drawn
    rows = (
        [np.frombuffer(r.encode() if isinstance(r, str) else r, "u1") for r in rows]
        if ragged.kind
        else rows
    )
    rank = rows[0].ndim if rows else 1
    longest = tuple(np.max([row.shape for row in rows], axis=0).tolist()) if rows else (0,)
    length = data.draw(st.none() | st.tuples(*[st.integers(0, 4)] * rank), "length")
    shape = longest if length is None else length
    expected = np.ones((len(rows), *shape), ragged.dtype)
    for i, row in enumerate(rows):
        cut = row[tuple(map(slice, shape))]
        begins = [b - s if side == "left" else 0 for b, s in zip(shape, cut.shape, strict=True)]
        expected[(i, *(slice(b, b + s) for b, s in zip(begins, cut.shape, strict=True)))] = cut
    padded = ragged.pad(1, length, side=side, truncate=True)
    assert padded.dtype == ragged.dtype
    assert np.array_equal(padded, expected)
    if all(longest[axis] <= shape[axis] for axis in range(rank)):
        assert np.array_equal(ragged.pad(1, length, side=side), expected)
    else:
        with pytest.raises(ValueError, match="is longer than"):
            ragged.pad(1, length, side=side)


def test_pad_names_the_row_that_is_too_long():
    with pytest.raises(ValueError, match="row 2 is longer than 2: its shape is \\(3,\\)"):
        Ragged.from_list(ROWS).pad(0, 2)


def test_pad_raises_for_bad_arguments():
    with pytest.raises(ValueError, match="rows have 2 axes"):
        Ragged.from_list(SIZES).pad(0, 5)
    with pytest.raises(ValueError, match="must be 'right' or 'left'"):
        Ragged.from_list(ROWS).pad(side="top")
    with pytest.raises(OverflowError):
        Ragged.from_list([np.zeros(2, "u1")]).pad(-1)
    with pytest.raises(MemoryError, match="padding 4 rows"):
        Ragged.from_list(ROWS).pad(0, 1 << 50)


# Conversions


def test_asarray_converts_text_and_bytes_and_otherwise_only_to_objects():
    text = np.asarray(Ragged.from_list(TEXT))
    assert text.dtype == np.dtypes.StringDType()
    assert text.tolist() == TEXT
    assert np.asarray(Ragged.from_list(TEXT), "U7").tolist() == TEXT
    assert np.asarray(Ragged.from_list([b"a\0", b""])).tolist() == [b"a\0", b""]
    for ragged in (Ragged.from_list(ROWS), Ragged.from_list([b"x"], "image")):
        for dtype in (None, "f8"):
            with pytest.raises(TypeError, match="pad\\(\\), to_list\\(\\) or dtype=object"):
                np.asarray(ragged, dtype)
        assert_rows(ragged, np.asarray(ragged, object))
    equally_long = np.asarray(Ragged.from_list([[1, 2], [3, 4]]), object)
    assert equally_long.shape == (2,)
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.asarray(Ragged.from_list(TEXT), copy=False)


# In the second case, rows 1 and 2 are UTF-8 only together: an "ü".
NOT_UTF8 = [[b"ok", b"\xff"], [b"ok", b"\xc3", b"\xbc"]]


@pytest.mark.parametrize("bodies", NOT_UTF8)
def test_conversions_of_text_that_is_not_utf8_raise(bodies):
    ragged = Ragged.from_list(bodies, "str")
    for conversion in (lambda: ragged[1], ragged.to_list, lambda: np.asarray(ragged)):
        with pytest.raises(FormatError, match="row 1 is not UTF-8"):
            conversion()
    assert ragged[:1].to_list() == ["ok"]
    repr(ragged)  # does not raise


@pytest.mark.usefixtures("pyarrow", "awkward")
@pytest.mark.parametrize("bodies", NOT_UTF8)
def test_arrow_and_awkward_raise_for_text_that_is_not_utf8(bodies):
    ragged = Ragged.from_list(bodies, "str")
    for conversion in (ragged.to_arrow, ragged.to_awkward, lambda: ragged[:2].to_arrow()):
        with pytest.raises(FormatError, match="row 1 is not UTF-8"):
            conversion()
    assert ragged[:1].to_arrow().to_pylist() == ["ok"]


@pytest.mark.usefixtures("pyarrow", "awkward")
@given(raggeds(), st.data())
def test_arrow_and_awkward_arrays_have_the_same_rows(drawn, data):
    ragged, rows = drawn
    start = data.draw(st.integers(0, len(rows)), "first row")
    ragged, rows = ragged[start:], rows[start:]
    expected = [row.tolist() if isinstance(row, np.ndarray) else row for row in rows]
    assert ragged.to_awkward().to_list() == expected
    if ragged.dtype.kind != "c":  # Arrow has no complex numbers
        arrow = ragged.to_arrow()
        arrow.validate(full=True)
        assert arrow.to_pylist() == expected


@pytest.mark.usefixtures("pyarrow")
def test_arrow_types_follow_the_rows():
    def type_of(rows, kind=None):
        return str(Ragged.from_list(rows, kind).to_arrow().type)

    assert type_of(ROWS) == "large_list<item: int64>"
    assert type_of(TEXT) == "large_string"
    assert type_of([b"a"]) == "large_binary"
    assert type_of([b"a"], "image") == "large_binary"
    assert type_of(IMAGES) == "large_list<item: fixed_size_list<item: uint8>[3]>"
    assert type_of(SIZES) == "large_list<item: large_list<item: double>>"


@pytest.mark.usefixtures("awkward")
def test_awkward_types_follow_the_rows():
    def type_of(rows):
        return str(Ragged.from_list(rows).to_awkward().type)

    assert type_of(TEXT) == "4 * string"
    assert type_of([b"a"]) == "1 * bytes"
    assert type_of(IMAGES) == "3 * var * 3 * uint8"
    assert type_of(SIZES) == "4 * var * var * float64"


@pytest.mark.usefixtures("pyarrow", "awkward", "torch")
def test_arrow_awkward_and_torch_share_memory():
    ragged = Ragged.from_list(ROWS)[2:]
    address = ragged[0].ctypes.data
    assert ragged.to_arrow().values.buffers()[1].address == address
    assert ragged.to_awkward().layout.content.data.ctypes.data == address
    assert ragged.to_torch().values().data_ptr() == address
    text = Ragged.from_list(TEXT)
    assert text.to_arrow().buffers()[2].address == text.values.ctypes.data


@pytest.mark.parametrize("rows", [ROWS, IMAGES, [b"ab", b"", b"c"], ROWS[:0], IMAGES[:0]])
def test_torch_nests_rows_that_differ_in_the_first_axis(rows, torch):
    ragged = Ragged.from_list(rows)
    nested = ragged.to_torch()
    assert nested.is_nested
    assert nested.layout == torch.jagged
    for tensor, row in zip(nested.unbind(), rows, strict=True):
        assert np.array_equal(tensor.numpy(), np.frombuffer(row, "u1") if ragged.kind else row)


@pytest.mark.usefixtures("torch")
def test_torch_pads_as_pad_does():
    ragged = Ragged.from_list(ROWS)
    assert np.array_equal(ragged.to_torch(padding=-1).numpy(), ragged.pad(-1))
    assert np.array_equal(ragged.to_torch(0, 5).numpy(), ragged.pad(0, 5))
    assert Ragged.from_list(SIZES).to_torch(padding=0).shape == (4, 3, 4)
    with pytest.raises(ValueError, match="padding="):
        ragged.to_torch(length=5)
    with pytest.raises(ValueError, match="pad them"):
        Ragged.from_list(SIZES).to_torch()


@pytest.mark.usefixtures("torch")
def test_to_torch_copies_read_only_arrays():
    values = np.arange(3)
    values.flags.writeable = False
    tensor = Batch({"x": values}).to_torch()["x"]
    assert tensor.tolist() == [0, 1, 2]
    assert tensor.data_ptr() != values.ctypes.data


@pytest.mark.parametrize(
    ("package", "convert"),
    [("pyarrow", "to_arrow"), ("awkward", "to_awkward"), ("torch", "to_torch")],
)
def test_a_missing_package_is_reported(monkeypatch, package, convert):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "npstream.torch", raising=False)
    with pytest.raises(MissingDependencyError, match=f"'{package}'"):
        getattr(Ragged.from_list(ROWS), convert)()


@pytest.mark.parametrize(
    ("ragged", "expected"),
    [
        (
            Ragged.from_list(ROWS),
            "<Ragged: 4 rows of int64, lengths 0 to 3: [1 2], [], [3 4 5], [6]>",
        ),
        (Ragged.from_list(ROWS)[:0], "<Ragged: 0 rows of int64>"),
        (
            Ragged.from_list(IMAGES),
            "<Ragged: 3 rows of uint8, 2-d: [[0 1 2] [3 4 5]], [[9 9 9]], ...>",
        ),
        (Ragged.from_list([b"abc"], "image"), "<Ragged: 1 image, 3 to 3 bytes: b'abc'>"),
    ],
)
def test_repr_of_a_ragged(ragged, expected):
    assert repr(ragged) == expected


# Batch


def batch():
    columns = {
        "x": np.arange(8.0).reshape(4, 2),
        "tokens": Ragged.from_list(ROWS),
        "text": Ragged.from_list(TEXT),
        "object": objects([1, "a", None, []]),
    }
    return Batch(columns, ids=[9, 3, 4, 1], repeated=[False, False, False, True])


def has_same_samples(other):
    return (
        type(other) is Batch
        and list(other) == list(batch())
        and other.ids.tolist() == [9, 3, 4, 1]
        and other.n == 4
        and other.repeated.tolist() == [False, False, False, True]
    )


COPIES = {
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "copy": Batch.copy,
    "pickle": lambda original: pickle.loads(pickle.dumps(original)),
}
TORCH_COPIES = {
    "to_torch": lambda original, data: original.to_torch(),
    "default_convert": lambda original, data: data.default_convert(original),
    "loader": lambda original, data: next(iter(data.DataLoader([original], batch_size=None))),
    "worker": lambda original, data: next(
        iter(data.DataLoader([original], batch_size=None, num_workers=1))
    ),
}


def assert_keeps_samples(copy_batch):
    original = batch()
    assert has_same_samples(copy_batch(original))
    assert has_same_samples(original)
    assert isinstance(original["x"], np.ndarray)


@pytest.mark.parametrize("copy_batch", COPIES.values(), ids=COPIES)
def test_copies_of_a_batch_keep_its_ids(copy_batch):
    assert_keeps_samples(copy_batch)


@pytest.mark.parametrize("copy_batch", TORCH_COPIES.values(), ids=TORCH_COPIES)
def test_conversions_of_torch_keep_the_ids_of_a_batch(copy_batch, torch):
    assert_keeps_samples(lambda original: copy_batch(original, torch.utils.data))


def test_torch_converts_arrays_and_keeps_ragged_columns(torch):
    converted = torch.utils.data.default_convert(batch())
    assert isinstance(converted["x"], torch.Tensor)
    assert_rows(converted["tokens"], ROWS)
    assert_rows(converted["text"], TEXT)


@pytest.mark.usefixtures("torch")
def test_to_torch_shares_memory_and_keeps_text_and_objects():
    original = batch()
    tensors = original.to_torch()
    assert tensors["x"].data_ptr() == original["x"].ctypes.data
    assert tensors["tokens"].values().data_ptr() == original["tokens"].values.ctypes.data
    assert tensors["text"] is original["text"]
    assert tensors["object"] is original["object"]


def test_pinning_keeps_the_ids_and_ragged_columns(monkeypatch, torch):
    from torch.utils.data._utils.pin_memory import pin_memory

    pinned = []

    def pin(tensor):
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    result = pin_memory(torch.utils.data.default_convert(batch()))
    assert has_same_samples(result)
    assert len(pinned) == 1
    assert_rows(result["tokens"], ROWS)


def test_torch_collates_samples_of_rows(torch):
    rows = Ragged.from_list([[1, 2], [3, 4]])
    collated = torch.utils.data.default_collate([{"row": row, "text": "a"} for row in rows])
    assert collated["row"].tolist() == [[1, 2], [3, 4]]


def test_a_batch_rebuilt_from_its_columns_has_no_ids():
    rebuilt = type(batch())({key: batch()[key] for key in batch()})
    assert rebuilt.n == 4
    with pytest.raises(AttributeError, match="no sample ids"):
        rebuilt.ids  # noqa: B018


def test_ids_have_the_shape_of_the_view():
    view_batch = Batch({"x": np.zeros((2, 3, 5))}, ids=np.arange(6).reshape(2, 3))
    assert view_batch.n == 2
    assert view_batch.repeated.shape == (2, 3)
    assert not view_batch.repeated.any()
    assert Batch({}).n == 0


def test_an_unknown_column_of_a_batch_raises_with_advice():
    labels = Batch({"label": np.arange(3)}, ids=[4, 5, 6])
    with pytest.raises(ColumnError, match="no column 'lable'; did you mean 'label'"):
        labels["lable"]
    with pytest.raises(KeyError, match=r"batch\[0\]: a Batch is a dict .* batch\['label'\]\[0\]"):
        labels[0]
    with pytest.raises(AttributeError, match=r"it is a column: write batch\['label'\]"):
        _ = labels.label
    with pytest.raises(AttributeError, match="no attribute 'lable'"):
        _ = labels.lable
    with pytest.raises(AttributeError, match="it has no sample ids"):
        _ = Batch({"label": np.arange(3)}).ids
    assert labels.get("lable") is None
    assert "lable" not in labels


def test_the_repr_of_a_batch_is_short():
    assert repr(batch()) == "\n".join(
        [
            "<Batch: 4 samples, 160 bytes>",
            "  x       float64 (4, 2)                           [0. 1.], [2. 3.], ...",
            "  tokens  Ragged, 4 rows of int64, lengths 0 to 3  [1 2], [], [3 4 5], [6]",
            "  text    Ragged, 4 str, 0 to 9 bytes              'one', '', 'zwei', ...",
            "  object  object (4,)                              1, 'a', None, []",
        ]
    )
    wide = repr(Batch({f"c{i}": np.zeros(1) for i in range(1000)}))
    assert wide.count("\n") < 24
    assert wide.endswith("... and 980 more columns")


def test_html_of_a_batch_and_of_its_columns():
    columns = {"x": np.arange(40), "t": Ragged.from_list(["<b>"] * 40)}
    html, column_html = Batch(columns, range(100, 140))._repr_html_(), columns["t"]._repr_html_()
    assert html.count("<tr>") == 1 + 10
    assert '<th class="npstream-n">0</th><th class="npstream-n">100</th>' in html
    assert "... 40 rows" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html + column_html
    assert column_html.count("<tr>") == 1 + 10
    repeated = Batch({"x": np.arange(2)}, [0, 1], [False, True])._repr_html_()
    assert "1 row repeated to fill the batch" in repeated
    for odd in ({}, {"x": 7}, {"x": [1, None], 3: "ab"}, {"x": np.zeros(())}):
        assert Batch(odd)._repr_html_().startswith("<div")
        assert repr(Batch(odd)).startswith("<Batch: ")


@pytest.mark.usefixtures("torch")
def test_the_repr_of_a_batch_of_tensors():
    assert "torch.float64 (4, 2)" in repr(batch().to_torch())
