"""Columns: attributes, lazy indexing, reading, reinterpretation and iteration, as in NumPy."""

from __future__ import annotations

import copy
import decimal
import pickle

import numpy as np
import pytest
from column_values import (
    COLUMNS,
    FIXED,
    OBJECTS,
    RAGGED,
    VALUES,
    N,
    write_columns,
)
from dataset_files import merge, objects, write_jsonl

import npstream
from npstream.testing import assert_same


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_columns(tmp_path_factory.mktemp("column"))


@pytest.fixture
def ds(path):
    return npstream.open(path)


@pytest.fixture
def single(tmp_path):
    """Return a dataset with one shard of fixed-size columns, which can be mapped."""
    values = {name: VALUES[name] for name in FIXED}
    npstream.write(tmp_path / "single", values, columns={name: COLUMNS[name] for name in FIXED})
    return npstream.open(tmp_path / "single")


# Attributes


def test_attributes_describe_the_column(ds):
    tokens = ds["tokens"]
    assert (tokens.name, tokens.shape, tokens.ndim, tokens.size) == ("tokens", (N, 4, 3), 3, N * 12)
    assert (tokens.dtype, tokens.nbytes, len(tokens)) == (np.dtype("uint16"), N * 24, N)
    assert tokens[:, 1].nbytes == N * 6
    assert ds["text"].dtype == np.dtypes.StringDType()
    assert ds["ragged"].dtype == np.int32
    assert ds["str_int"].dtype == np.int64
    for name in ("data", "any", "json", "image", "decimal"):
        assert ds[name].dtype == object
    for name in COLUMNS:
        assert ds[name].shape[:1] == (N,)
        assert ds[[[1, 2, 3]]][name].shape[:2] == (1, 3)


@pytest.mark.parametrize("name", ["text", "ragged", "json"])
def test_nbytes_raises_if_values_vary_in_size(ds, name):
    with pytest.raises(TypeError, match=rf"column '{name}' vary in size.*load\(\)"):
        assert ds[name].nbytes


def test_chunks_have_about_the_rows_of_a_stored_chunk(ds, tmp_path):
    assert ds["tokens"].chunks == (N, 4, 3)
    assert ds["tokens"][:, 1, :0].chunks == (N, 0)
    assert ds["text"].chunks == (N,)
    assert ds["label"][[]].chunks == (1,)
    assert ds[..., 3]["tokens"].chunks == (4, 3)
    rows = np.zeros((64, 1 << 18), np.uint8)
    npstream.write(tmp_path, {"x": rows})
    # A chunk has 4 MiB. The shards are slightly larger than their 64 rows, so 15 rows fit, not 16.
    assert npstream.open(tmp_path)["x"].chunks == (15, 1 << 18)


def test_columns_are_unhashable_and_read_only(ds):
    with pytest.raises(TypeError, match="unhashable"):
        hash(ds["label"])
    with pytest.raises(TypeError, match="refused, as datasets are read-only"):
        ds["label"][0] = 1
    with pytest.raises(AttributeError):
        ds["label"].shape = (1, N)


@pytest.mark.parametrize("name", COLUMNS)
def test_copies_and_pickles_are_the_same_view(ds, name):
    column = ds[::-2][name]
    expected = np.asarray(column, object)
    for copied in (copy.copy(column), copy.deepcopy(column), pickle.loads(pickle.dumps(column))):
        assert_same(np.asarray(copied, object), expected)
    part = ds["tokens"][1:, ::2, [1, 0]]
    assert_same(pickle.loads(pickle.dumps(part)).load(), part.load())


# Indexing


@pytest.mark.parametrize("name", COLUMNS)
def test_an_integer_reads_the_value_of_the_sample(ds, name):
    for i in (0, 5, -1, np.int8(7), np.array(3)):
        value, sample = ds[name][i], ds[int(i)]
        assert_same(value, sample[name])
        # A view gives the same sample; for samples before the view, compare the last one.
        assert_same(
            ds[2:][name][np.asarray(i) - 2 if i > 2 else -1],
            sample[name] if i > 2 else ds[-1][name],
        )


def test_numbers_are_numpy_scalars_or_python_ints(ds):
    assert [type(ds[name][1]) for name in ("label", "small", "score", "number", "str_int")] == [
        np.int64, np.int8, np.float32, int, int,
    ]  # fmt: skip
    assert type(ds["tokens"][1, 2, 0]) is np.uint16


@pytest.mark.parametrize(
    "index",
    [
        slice(3, None, 4),
        ...,
        (..., 0),
        (slice(None), 1),
        (slice(None, None, -1), slice(1, 3), 2),
        ([1, 1, 5], slice(None), slice(None, None, 2)),
        (np.arange(N) > 6, 3),
        (slice(2), ..., [0, 2]),
        ([[0, 1], [2, 3]], 1, [[0], [1]]),
        (slice(None), [0, 1], slice(None)),
        (slice(4), slice(None), np.array([True, False, True])),
        np.arange(N * 12).reshape(N, 4, 3) % 5 == 0,
        (slice(0, 0), 3),
        ([], slice(None), 1),
    ],
)
def test_other_indices_return_columns_without_reading(ds, index, monkeypatch):
    monkeypatch.setattr(npstream.shards.table.Fetcher, "read", None)
    column = ds["tokens"][index]
    expected = VALUES["tokens"][index]
    assert isinstance(column, npstream.Column)
    assert column.shape == expected.shape
    monkeypatch.undo()
    assert_same(np.asarray(column), expected)
    assert_same(column.load(), expected)
    assert column.load().flags.c_contiguous
    assert column.load().flags.writeable


def test_an_index_copies_only_the_selected_part(ds):
    assert ds["tokens"][3, 1].flags.owndata
    assert ds["tokens"][3, :, 1].base is None


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ((0, 4), IndexError, "index 4 is out of bounds for axis 1 with size 4"),
        ((slice(None), 0, -4), IndexError, "index -4 is out of bounds for axis 2 with size 3"),
        ((N, 0), IndexError, f"index {N} is out of bounds for axis 0 with size {N}"),
        ((0, 0, 0, 0), IndexError, "too many indices for array: array is 3-dimensional"),
        ((..., ...), IndexError, "single ellipsis"),
        (([0, 1], [0, 1, 2]), IndexError, "shape mismatch: indexing arrays"),
        ((slice(None), [4]), IndexError, "index 4 is out of bounds for axis 1"),
        ((slice(None), np.ones(3, bool)), IndexError, "boolean index did not match .* axis 1"),
        (np.ones((N, 3), bool), IndexError, "boolean index did not match .* axis 1"),
        (np.ones((N + 1, 4), bool), IndexError, "boolean index did not match .* axis 0"),
        ((0, "a"), IndexError, "only integers, slices"),
        ((0, slice("a")), TypeError, "slice indices must be integers"),
        ((0, None), IndexError, "newaxis"),
        ((0, True), IndexError, "neither a row number nor a mask"),
        ((0, 1.0), IndexError, "1.0 is not an integer"),
        ((0, [True, 1]), IndexError, "neither a mask nor row numbers"),
        ("tokens", IndexError, "only integers, slices"),
    ],
)
def test_invalid_indices_raise(ds, index, error, message):
    with pytest.raises(error, match=message):
        ds["tokens"][index]


def test_an_index_into_values_of_varying_size_raises(ds):
    with pytest.raises(IndexError, match="too many indices for array: array is 1-dimensional"):
        ds["text"][0, 0]


def test_0d_views_behave_like_0d_arrays(ds):
    label = ds[..., 3]["label"]
    assert label.shape == ()
    assert_same(label[()], np.int64(3))
    assert_same(np.asarray(label), np.array(3))
    assert_same(label.load(), np.array(3))
    assert_same(label + 1, np.int64(4))
    assert label == 3
    assert np.mean(label) == 3
    assert 3 in ds["label"][..., 3] + np.zeros(1)
    assert ds["text"][..., 3] == "text"
    assert_same(np.asarray(ds[..., 3]["text"]), VALUES["text"][..., 3])
    assert_same(ds[..., 3]["tokens"][1:, [0, 2]].load(), VALUES["tokens"][3][1:, [0, 2]])
    with pytest.raises(TypeError, match="unsized"):
        len(label)
    with pytest.raises(TypeError, match="0-d"):
        iter(label)


# Reading


@pytest.mark.parametrize("index", [..., slice(None, None, -2), [3, 3, 0], [[1, 2], [4, 12]], []])
@pytest.mark.parametrize("name", COLUMNS)
def test_load_returns_an_array_or_a_ragged(ds, name, index):
    expected = VALUES[name][index]
    column = ds[name][index].load()
    if name in RAGGED:
        assert isinstance(column, npstream.Ragged)
        assert column.kind == {"text": "str", "data": "bytes", "image": "image"}.get(name)
        if name != "image":
            for got, row in zip(column, expected.flat, strict=True):
                assert_same(got, row)
        assert len(column) == expected.size
    elif name == "any" and isinstance(column, npstream.Ragged):
        assert len({row.dtype for row in expected.flat}) <= 1
        for got, row in zip(column, expected.flat, strict=True):
            assert_same(got, row)
    else:
        assert_same(column, expected)
    batch = ds[index].load()[name]
    assert type(batch) is type(column)


@pytest.mark.parametrize("name", FIXED)
def test_load_fills_a_given_array(ds, name):
    expected = VALUES[name][::3]
    for out in (np.empty_like(expected), np.empty((*expected.shape, 2), expected.dtype)[..., 1]):
        assert ds[name][::3].load(out=out) is out
        assert np.array_equal(out, expected)


PARTS_OF_VALUES = [(0,), (slice(None), 1), (slice(None, None, 2),), ([2, 0],)]


@pytest.mark.parametrize("cells", PARTS_OF_VALUES)
def test_load_of_a_part_fills_a_given_tensor(ds, cells, torch):
    expected = VALUES["tokens"][(slice(None), *cells)]
    out = torch.empty(expected.shape, dtype=torch.uint16)
    assert ds["tokens"][(slice(None), *cells)].load(out=out) is out
    assert np.array_equal(out.numpy(), expected)


@pytest.mark.parametrize("cells", PARTS_OF_VALUES)
def test_load_of_a_part_fills_a_given_array(ds, cells):
    expected = VALUES["tokens"][(slice(None), *cells)]
    part = ds["tokens"][(slice(None), *cells)]
    wide = np.empty((*expected.shape, 2), expected.dtype)
    assert np.array_equal(part.load(out=wide[..., 0]), expected)
    for bad, error in (
        (np.empty(N, np.uint16), ValueError),
        (np.empty(expected.shape, np.int16), TypeError),
        (np.broadcast_to(np.uint16(0), expected.shape), ValueError),
        (expected.tolist(), TypeError),
        (part, TypeError),
    ):
        with pytest.raises(error, match="out for column 'tokens'"):
            part.load(out=bad)


@pytest.mark.parametrize("name", ["text", "ragged", "json", "str_int"])
def test_load_into_an_array_raises_if_values_vary_in_size(ds, name):
    with pytest.raises(TypeError, match="vary in size"):
        ds[name].load(out=np.empty(N, object))


@pytest.mark.parametrize("index", [..., slice(4, None, 2), [[0, 12], [6, 1]], []])
@pytest.mark.parametrize("name", COLUMNS)
def test_asarray_reads_the_column(ds, name, index):
    column, expected = ds[name][index], VALUES[name][index]
    if name in OBJECTS:
        for read in (np.asarray, np.sum, column.astype):
            with pytest.raises(TypeError, match=r"holds .* values.*dtype=object"):
                read(*([str] if read == column.astype else [column]))
    else:
        array = np.asarray(column)
        assert_same(array, expected)
        assert array.flags.writeable
        assert_same(column.to_numpy(), expected)
        assert_same(np.array(column), expected)
        assert np.asarray(column, copy=True) is not array
    assert_same(np.asarray(column, object), expected.astype(object))
    assert_same(column.astype(object), expected.astype(object))
    assert_same(column.to_numpy(object), expected.astype(object))


def test_asarray_converts_to_a_dtype(ds):
    assert_same(np.asarray(ds["small"], float), VALUES["small"].astype(float))
    assert_same(ds["score"].astype("f8"), VALUES["score"].astype(float))
    assert_same(np.asarray(ds["text"], "U4"), VALUES["text"].astype("U4"))
    assert_same(ds["str_int"].astype(np.float32), VALUES["str_int"].astype(np.float32))
    with pytest.raises(ValueError, match=r"invalid literal|could not convert"):
        ds["text"].astype(int)


def test_asarray_without_a_copy_maps_the_file(single):
    for index in (
        ...,
        slice(2, 9, 3),
        slice(None, None, -1),
        slice(8, 1, -3),
        (slice(3, None), 1),
        (slice(None), slice(None, None, -2), 2),
        (slice(None), 3, 1),
        slice(5, 6),
    ):
        array = np.asarray(single["tokens"][index], copy=False)
        assert_same(array, VALUES["tokens"][index])
        assert not array.flags.writeable
        assert not array.flags.owndata
    for name in FIXED:
        assert_same(np.asarray(single[name], copy=False), VALUES[name])
        assert_same(np.asarray(single[name], VALUES[name].dtype, copy=False), VALUES[name])


def test_mapped_arrays_outlive_the_dataset(single):
    before = npstream._core.memory._map_count
    array = np.asarray(single["tokens"], copy=False)
    single.close()
    del single
    assert_same(array, VALUES["tokens"])
    assert npstream._core.memory._map_count == before + 1
    del array
    assert npstream._core.memory._map_count == before


def test_asarray_without_a_copy_raises_if_mapping_is_impossible(ds, single):
    for column, dtype in (
        (ds["label"], None),  # in several shards
        (ds["text"], None),
        (single["label"][[0, 1]], None),
        (single["label"][:0], None),  # no bytes
        (single["label"], np.int32),  # another dtype
        (single["tokens"][:, [0, 1]], None),
        (single["tokens"].view("bytes"), None),
        (single.shuffle(0, block=None)["label"], None),
    ):
        with pytest.raises(ValueError, match="Unable to avoid copy"):
            np.asarray(column, dtype, copy=False)


def test_asarray_without_a_copy_raises_for_compressed_shards(tmp_path):
    npstream.write(tmp_path, {"x": np.arange(9)}, compression="zstd")
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.asarray(npstream.open(tmp_path)["x"], copy=False)


@pytest.mark.parametrize("block", [1, 1 << 23])
@pytest.mark.parametrize("name", COLUMNS)
def test_iteration_yields_the_values_in_order(ds, name, block, monkeypatch):
    monkeypatch.setattr(npstream.dataset.column, "READ_BYTES", block)
    column = ds[1::2][name]
    # Tokens are compared with the written values, others with those that an index reads.
    for i, value in enumerate(column):
        assert_same(value, column[i] if name != "tokens" else VALUES[name][1::2][i])
    assert i == len(column) - 1
    grid = [[0, 1], [2, 3]]
    for part, expected in zip(ds[grid][name], VALUES[name][grid], strict=True):
        assert_same(part, expected)
    assert list(ds[:0][name]) == []


@pytest.mark.parametrize("block", [1, 1 << 23])
def test_in_searches_for_a_value(ds, block, monkeypatch):
    monkeypatch.setattr(npstream.dataset.column, "READ_BYTES", block)
    assert 3 in ds["label"]
    assert 4 not in ds["label"]
    assert "3" not in ds["label"]
    assert 12 * 10**12 in ds["number"]
    assert VALUES["score"][-1] in ds["score"]
    assert VALUES["tokens"][-1, 0, 0] in ds["tokens"]
    assert "text" in ds["text"]
    assert "tex" not in ds["text"]
    assert b"text" not in ds["text"]
    assert b"\xff" in ds["data"]
    assert "text" not in ds["data"]
    assert {"i": 12} in ds["json"]
    assert [5, 5] in ds["json"]
    assert None in ds["json"]
    assert [5] not in ds["json"]
    assert np.arange(3) in ds["ragged"]
    assert np.arange(4) not in ds["ragged"]
    assert ds["image"][7] in ds["image"]
    assert ds["image"][7] not in ds["image"][:7]
    assert decimal.Decimal("0.125") in ds["decimal"]
    assert 12**5 in ds["str_int"]
    assert 3 not in ds["label"][:0]
    assert [5, 5] in ds[[[5, 1]]]["json"]


def test_take_reads_the_elements_that_numpy_takes(ds):
    tokens, values = ds["tokens"], VALUES["tokens"]
    for axis, n in ((0, N), (1, 4), (-1, 3), (None, values.size)):
        for indices in ([0, -1], [[1, 0], [2, 2]], 2, []):
            array = np.array(indices, int)
            assert_same(tokens.take(indices, axis), values.take(array, axis))
            assert_same(np.take(tokens[::2], indices, axis), values[::2].take(array, axis))
        for mode in ("wrap", "clip"):
            assert_same(
                tokens.take([n, -n - 1, 1], axis, None, mode),
                values.take([n, -n - 1, 1], axis, None, mode),
            )
        with pytest.raises(IndexError, match=f"index {n} is out of bounds"):
            tokens.take([n], axis)
    out = np.empty((2, 4, 3), np.uint16)
    assert tokens.take([5, 4], 0, out) is out
    assert np.array_equal(out, values[[5, 4]])
    assert ds["label"].take([3, 2], out=(numbers := np.empty(2, int))) is numbers
    assert numbers.tolist() == [3, 2]
    assert ds["label"].take(3, out=(number := np.empty((), int))) is number
    assert number == 3
    assert ds["text"].take([3, 1]).to_list() == ["text", "ab"]
    assert ds["text"].take(3) == "text"
    assert ds[[[1, 2], [3, 4]]]["text"].take([2]).to_list() == ["text"]
    assert_same(ds[[[1, 2], [3, 4]]]["label"].take([2, 0]), np.array([3, 1]))
    assert_same(tokens[:, [0, 1]].take([1], 0), values[:, [0, 1]].take([1], 0))
    for axis in (3, -4):
        with pytest.raises(np.exceptions.AxisError):
            tokens.take([0], axis)
    with pytest.raises(IndexError, match="empty axes"):
        ds["label"][:0].take([0], mode="wrap")


# Other libraries


def test_to_torch_returns_tensors_of_the_values(ds, torch):
    tensor = ds["tokens"][::2].to_torch()
    assert torch.equal(tensor, torch.from_numpy(VALUES["tokens"][::2]))
    assert torch.equal(torch.from_numpy(ds.load()["label"]), torch.from_numpy(VALUES["label"]))
    nested = ds["ragged"].to_torch()
    assert [row.tolist() for row in nested.unbind()] == [row.tolist() for row in VALUES["ragged"]]


def test_dask_computes_with_columns(ds):
    dask = pytest.importorskip("dask.array")
    for index in (..., slice(0, 0), (slice(None), 1, slice(None, 0))):
        lazy = dask.from_array(ds["tokens"][index])
        assert_same(np.asarray(lazy), VALUES["tokens"][index])
        assert_same((lazy + 1)[::2].compute(), (VALUES["tokens"][index] + 1)[::2])
    lazy = dask.from_array(ds["tokens"], chunks=(4, 4, 2))
    assert_same(lazy.sum(axis=0).compute(), VALUES["tokens"].sum(axis=0))
    lazy = dask.from_array(ds["label"], getitem=lambda x, i: np.asarray(x[i]))
    assert_same(lazy[lazy > 1].compute(), VALUES["label"][VALUES["label"] > 1])


def test_pandas_makes_a_frame_of_columns(ds):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({name: np.asarray(ds[name]) for name in ("label", "score", "data")})
    assert frame["data"].tolist() == VALUES["data"].tolist()


# Reinterpretation with view()


def test_view_reinterprets_values_as_a_dtype(ds):
    assert_same(ds["tokens"].view("int16").load(), VALUES["tokens"].view("int16"))
    assert_same(ds["tokens"].view(np.uint8).load(), VALUES["tokens"].view(np.uint8))
    assert_same(ds["score"].view("uint32")[::2].load(), VALUES["score"].view("uint32")[::2])
    ragged = ds["ragged"].view("float32")
    assert ragged.dtype == np.float32
    assert np.array_equal(ragged[1], VALUES["ragged"][1].view("float32"))
    assert np.array_equal(ragged.load()[2], VALUES["ragged"][2].view("float32"))
    assert_same(ds[[3, 1]]["tokens"].view("int16")[0], VALUES["tokens"][3].view("int16"))


@pytest.mark.parametrize("dtype", ["M8[D]", "m8[s]", ">M8[s]", "c16", ">i8", "S8"])
def test_view_works_for_dtypes_that_the_buffer_protocol_lacks(dtype, tmp_path):
    days, spans = np.arange(6), np.arange(12).reshape(6, 2)
    npstream.write(tmp_path, {"when": days, "span": spans, "some": [row for row in spans]})
    ds = npstream.open(tmp_path)
    expected = {"span": spans.view(dtype)}
    if np.dtype(dtype).itemsize == 8:
        expected |= {"when": days.view(dtype), "some": spans.view(dtype)}
    for name, array in expected.items():
        viewed, declared = ds[name].view(dtype), npstream.open(tmp_path, columns={name: dtype})
        for k in (0, 3, -1):
            assert_same(viewed[k], array[k])
            assert_same(declared[k][name], array[k])
        if name == "some":
            assert_same(declared.load()["some"].values, array.ravel())
            continue
        (batch,) = declared.iter(0, 1, batch_size=6)
        for read in (viewed.load(), declared.load()[name], batch[name], np.asarray(viewed)):
            assert_same(read, array)
        out = np.empty_like(array)
        assert viewed.load(out) is out
        assert_same(out, array)
        assert_same(viewed[::-2].load(), array[::-2])
        assert np.array_equal(viewed == array[1], array == array[1])
        assert np.array_equal(viewed != viewed.load(), array != array)


def test_view_reinterprets_bytes_as_arrays_or_json(tmp_path):
    rows = np.arange(24, dtype=np.int64).reshape(4, 6)
    # The first value has two integers, the others have six.
    bodies = [row.tobytes()[: 48 if i else 16] for i, row in enumerate(rows)]
    npstream.write(tmp_path, {"tokens": bodies, "meta": [b'{"a": 1}'] * 4, "x": np.arange(4)})
    ds = npstream.open(tmp_path)
    ragged = ds["tokens"].view(np.int64)
    assert (ragged.shape, ragged.dtype) == ((4,), np.dtype(np.int64))
    assert_same(ragged[0], rows[0, :2])
    assert [row.tolist() for row in ragged.load()] == [
        row[: 6 if i else 2].tolist() for i, row in enumerate(rows)
    ]
    fixed = ds["tokens"][1:].view("ndarray:int64:2,3")
    assert fixed.shape == (3, 2, 3)
    assert_same(fixed.load(), rows[1:].reshape(3, 2, 3))
    assert_same(fixed[::2, 1, ::-1].load(), rows[1::2].reshape(2, 2, 3)[:, 1, ::-1])
    assert_same(fixed[:, 1].load(), rows[1:].reshape(3, 2, 3)[:, 1])
    assert_same(fixed[2, 0], rows[3, :3])
    assert_same(fixed[:, :, 1].load(out=(out := np.empty((3, 2), np.int64))), out)
    assert_same(np.sum(fixed, axis=0), rows[1:].reshape(3, 2, 3).sum(axis=0))
    declared = npstream.open(tmp_path, columns={"tokens": "ndarray:int64:6", "meta": "json"})
    assert declared[1]["meta"] == {"a": 1}
    assert_same(declared[3]["tokens"], rows[3])
    assert_same(declared[1:]["tokens"].load(), rows[1:])
    assert_same(declared[1:].load()["tokens"], rows[1:])
    for read in (declared.load, lambda: declared[0], ds["tokens"].view("ndarray:int64:6").load):
        with pytest.raises(
            npstream.errors.FormatError, match=r"shard.00000.mds .*sample 0 .*16 bytes"
        ):
            read()
    assert pickle.loads(pickle.dumps(declared))[1]["meta"] == {"a": 1}
    assert ds["meta"].view("json")[2] == {"a": 1}
    assert ds["meta"].view("str").load()[0] == '{"a": 1}'


@pytest.mark.parametrize("dtype", ["int32", "ndarray:int32:5", "float", "nothing", None])
def test_view_as_an_unsuitable_dtype_raises(ds, dtype):
    with pytest.raises(ValueError, match=r"cannot be viewed as|neither a dtype nor an encoding"):
        ds["small"].view(dtype)


@pytest.mark.parametrize("cells", [(0,), (slice(None, None, 2),), (slice(0, 1),), ([0],)])
def test_view_of_a_part_raises(ds, cells):
    with pytest.raises(ValueError, match="on the whole column"):
        ds["tokens"][(slice(None), *cells)].view("int16")


# User-defined encodings, and integers of any size


def encode_complex(value):
    return np.complex128(value).tobytes()


def decode_complex(body):
    return complex(np.frombuffer(body, np.complex128)[0])


@pytest.mark.parametrize("size", [16, None])
def test_registered_encodings_are_written_and_read(tmp_path, size):
    npstream.register_encoding("complex", encode_complex, decode_complex, size=size)
    values = [1 + 2j, 0j, -1j]
    npstream.write(
        tmp_path, {"z": values, "i": np.arange(3)}, columns={"z": "complex", "i": "int8"}
    )
    ds = npstream.open(tmp_path)
    assert [sample["z"] for sample in ds] == values
    assert [ds[i]["z"] for i in range(3)] == values
    assert ds["z"][1] == 0j
    assert_same(ds["z"][[2, 0]].load(), objects([-1j, 1 + 2j]))
    assert_same(np.asarray(ds["z"], object), objects(values))
    assert list(ds["z"]) == values
    assert -1j in ds["z"]
    assert (ds["z"] == 0).tolist() == [False, True, False]
    with pytest.raises(TypeError, match="dtype=object"):
        np.asarray(ds["z"])
    assert pickle.loads(pickle.dumps(ds))[0]["z"] == 1 + 2j


def test_the_error_of_a_decoder_names_the_sample(tmp_path):
    npstream.register_encoding("broken", bytes, lambda body: 1 // len(body))
    npstream.write(tmp_path, {"x": [b"a", b"", b"b"]}, columns={"x": "broken"})
    ds = npstream.open(tmp_path)
    for read in (ds.load, lambda: ds[1], lambda: list(ds), lambda: ds["x"][1]):
        with pytest.raises(
            npstream.errors.FormatError, match=r"sample 1 .*column 'x': integer division"
        ):
            read()


def test_integers_beyond_int64_are_read_as_objects_only(tmp_path):
    values = [1, 2**63, -(2**70)]
    write_jsonl(tmp_path / "0", [{"n": n} for n in values], {"n": "int"})
    npstream.write(tmp_path / "1", [{"n": n} for n in values], columns={"n": "str_int"})
    for part in ("0", "1"):
        ds = npstream.open(tmp_path / part)
        for read in (
            ds.load,
            ds["n"].load,
            lambda ds=ds: np.asarray(ds["n"]),
            lambda ds=ds: ds["n"] + 1,
        ):
            with pytest.raises(
                OverflowError, match=r"sample 1 .*9223372036854775808.*dtype=object"
            ):
                read()
        assert [sample["n"] for sample in ds] == values
        assert list(ds["n"]) == values
        assert ds["n"][2] == values[2]
        assert_same(np.asarray(ds["n"], object), objects(values))
        assert_same(ds[:1].load()["n"], np.array([1]))
    with pytest.raises(npstream.errors.FormatError, match="'str_int' in shard 1"):
        merge(tmp_path)["n"]


# Text and HTML


def test_the_repr_describes_the_column_and_shows_its_first_values(ds):
    title = (
        f"<npstream.Column 'tokens': shape ({N}, 3), dtype uint16, stored as ndarray:uint16:4,3, "
    )
    column = ds["tokens"][:, 1]
    assert repr(column).startswith(f"{title}{2 * 3 * N} bytes\n  [")
    assert str(column[0].tolist()).replace(",", "") in repr(column)
    assert "shape (13,), dtype StringDType(), stored as str\n  '', 'ab', 'é', ...>" in repr(
        ds["text"]
    )


@pytest.mark.parametrize("name", COLUMNS)
def test_html_shows_the_first_values(ds, name):
    assert ds[name]._repr_html_().count("<tr>") == 1 + 5
    assert ds[[[0, 1]]][name]._repr_html_().count("<tr>") == 1 + 2
    assert ds[..., 1][name]._repr_html_().count("<tr>") == 1 + 1


def test_html_is_escaped(tmp_path):
    evil = "<script>"
    npstream.write(tmp_path, [{evil: evil}])
    html = npstream.open(tmp_path)[evil]._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script") == 3


@pytest.mark.parametrize(
    "operation",
    [lambda c: c[0, 0], lambda c: c > 0.5, lambda c: c == 1, lambda c: np.exp(c)],
    ids=["index", "greater", "equal", "ufunc"],
)
def test_errors_about_ragged_columns_have_a_note(tmp_path, operation):
    npstream.write(tmp_path / "x", [{"emb": np.ones(k + 1)} for k in range(3)])
    column = npstream.open(tmp_path / "x")["emb"]
    with pytest.raises((TypeError, ValueError, IndexError)) as caught:
        operation(column)
    assert "column 'emb' holds ndarray:float64 values of varying size" in caught.value.__notes__[0]
    with pytest.raises(IndexError) as caught:
        column[5]
    assert not hasattr(caught.value, "__notes__")
