"""Datasets: attributes, lazy indexing, reading, shuffling, transforms, pickling and closing."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from mixed_columns import COLUMNS, SIZES, VALUES, N, check_sample, ids_of, label

import npstream
from npstream import errors
from npstream._core import memory, progress


@pytest.fixture
def fixed(ds):
    return ds[["label", "number", "tokens"]]


# Attributes


def test_attributes_describe_the_dataset(ds):
    assert ds.columns == tuple(COLUMNS)
    assert (len(ds), ds.shape, ds.ndim, ds.size) == (N, (N,), 1, N)
    assert ds.dtypes == {
        "label": np.dtype("int64"),
        "number": np.dtype("int64"),
        "tokens": np.dtype("uint16"),
        "text": np.dtypes.StringDType(),
        "data": np.dtype(object),
        "ragged": np.dtype("int32"),
        "meta": np.dtype(object),
    }


def test_shards_lists_all_shards_of_the_dataset(ds):
    assert ds.shards["name"].tolist() == [f"{i:04}/shard.00000.mds" for i in range(4)]
    assert ds.shards["samples"].tolist() == list(SIZES)
    assert ds.shards["start"].tolist() == [0, 4, 4, 10]
    assert ds.shards["bytes"].dtype == np.int64
    assert ds[:2].shards.tolist() == ds.shards.tolist()


def test_locate_returns_shards_and_rows(ds):
    assert ds.locate(3) == (0, 3)
    assert ds.locate(4) == (2, 0)
    assert ds[::-1].locate(0) == (3, 0)
    assert all(type(number) is int for number in ds.locate(-1))
    shard, row = ds.locate([[9, 10], [0, 4]])
    assert shard.tolist() == [[2, 3], [0, 2]]
    assert row.tolist() == [[5, 0], [0, 0]]
    assert ds.locate(slice(0, 0))[0].shape == (0,)
    with pytest.raises(IndexError, match="out of bounds"):
        ds.locate(N)


def test_equality_is_identity(ds):
    assert ds == ds
    assert ds != ds[:]
    assert len({ds, ds, ds[:]}) == 2


# Indexing


@pytest.mark.parametrize("index", [0, -1, np.int8(3), np.uint64(5), np.array(7)])
def test_an_integer_reads_a_sample(ds, index):
    check_sample(ds[index], int(index))


@pytest.mark.parametrize(
    "index",
    [
        slice(2, 9, 3),
        slice(None, None, -2),
        ...,
        [3, 3, -1],
        np.array([7, 0]),
        np.array([[1, 2], [3, 4], [5, 0]]),
        [[1, 2]],
        np.arange(N) % 2 == 0,
        (np.arange(N) > 4).tolist(),
        (slice(3),),
        (..., [1, 2]),
    ],
)
def test_other_indices_return_views_without_reading(ds, index, monkeypatch):
    monkeypatch.setattr(npstream.shards.table.Fetcher, "read", None)
    monkeypatch.setattr(npstream.shards.table.Fetcher, "locate", None)
    view = ds[index]
    assert isinstance(view, npstream.Dataset)
    assert view.shape == np.arange(N)[index].shape
    monkeypatch.undo()
    assert np.array_equal(ids_of(view), np.arange(N)[index])


def test_a_list_of_names_selects_columns(ds):
    part = ds[["text", "label"]]
    assert part.columns == ("text", "label")
    assert part[3] == {"text": VALUES["text"][3], "label": 3}
    assert list(part[3]) == ["text", "label"]
    assert list(part.load()) == ["text", "label"]
    assert [list(sample) for sample in part[:2]] == [["text", "label"]] * 2
    assert part[["label"]].columns == ("label",)
    assert isinstance(ds["text"], npstream.Column)


def test_only_selected_columns_are_decoded(tmp_path):
    npstream.write(tmp_path, [{"a": 1, "b": b"no json"}], columns={"a": "int", "b": "json"})
    ds = npstream.open(tmp_path)
    assert ds[["a"]][0] == {"a": 1}
    assert list(ds[["a"]]) == [{"a": 1}]
    with pytest.raises(errors.FormatError, match=r"shard.00000.mds .*sample 0 .*column 'b'"):
        ds[0]
    with pytest.raises(errors.FormatError, match=r"shard.00000.mds .*sample 0 .*column 'b'"):
        ds.load()


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (N, IndexError, f"index {N} is out of bounds for axis 0 with size {N}"),
        (-N - 1, IndexError, f"index {-N - 1} is out of bounds for axis 0 with size {N}"),
        ([0, N], IndexError, f"index {N} is out of bounds for axis 0 with size {N}"),
        (np.ones(N + 1, bool), IndexError, "boolean index did not match"),
        ((0, 0), IndexError, "too many indices for array"),
        (True, IndexError, "a mask has a bool for every row"),
        (np.bool_(True), IndexError, "a mask has a bool for every row"),
        (None, IndexError, "newaxis"),
        (1.0, IndexError, "1.0 is not an integer"),
        (np.float32(1), IndexError, "1.0 is not an integer"),
        ([0.0, 1.0], IndexError, "only integers, slices"),
        ([True, 0], IndexError, "neither a mask nor row numbers"),
        (["text", 0], TypeError, "all column names or all rows"),
        ([0, "text"], TypeError, "all column names or all rows"),
        (["text", "text"], ValueError, "listed twice"),
        ({"a": 1}, IndexError, "only integers, slices"),
        (slice(1.0), TypeError, "slice indices must be integers"),
    ],
)
def test_invalid_indices_raise(ds, index, error, message):
    with pytest.raises(error, match=message):
        ds[index]


@pytest.mark.parametrize("name", ["lable", ["lable"]])
def test_an_unknown_column_raises_with_the_nearest_name(ds, name):
    with pytest.raises(
        errors.ColumnError, match="no column 'lable'; did you mean 'label'"
    ) as caught:
        ds[name]
    assert isinstance(caught.value, KeyError)
    with pytest.raises(errors.ColumnError, match="no column 'label'; columns: text"):
        ds[["text"]]["label"]


def test_an_empty_list_selects_no_rows(ds):
    assert ds[[]].shape == (0,)
    assert ds[[]].columns == ds.columns


def test_index_arrays_with_several_axes_return_nd_views(ds):
    order = np.array([[5, 0, 9], [10, 2, 2]])
    view = ds[order]
    assert (view.shape, view.ndim, view.size, len(view)) == ((2, 3), 2, 6, 2)
    check_sample(view[1, 0], 10)
    assert view[1].shape == (3,)
    assert [part.shape for part in view] == [(3,), (3,)]
    assert [ids_of(part).tolist() for part in view] == order.tolist()
    assert ids_of(view[:, ::-1]).tolist() == order[:, ::-1].tolist()
    assert ids_of(view[order > 4]).tolist() == order[order > 4].tolist()
    assert ids_of(view[[False, True]]).tolist() == order[1:].tolist()
    batch = view.load()
    assert batch.ids.tolist() == order.tolist()
    assert np.array_equal(batch["tokens"], VALUES["tokens"][order])
    assert batch["text"].to_list() == [VALUES["text"][i] for i in order.ravel()]
    assert batch["meta"].shape == order.shape
    assert ids_of(view.ravel()).tolist() == order.ravel().tolist()


def test_an_ellipsis_and_an_integer_return_a_0d_view(ds):
    view = ds[..., 3]
    assert (view.shape, view.ndim, view.size) == ((), 0, 1)
    check_sample(view[()], 3)
    assert view[...].shape == ()
    batch = view.load()
    assert batch.ids.shape == ()
    assert batch["tokens"].shape == (3, 2)
    assert "1 sample" in repr(batch)
    assert view["label"].shape == ()
    with pytest.raises(TypeError, match="len\\(\\) of unsized object"):
        len(view)
    with pytest.raises(TypeError, match="iteration over a 0-d array"):
        iter(view)
    assert ids_of(view.ravel()).tolist() == [3]


def test_index_arrays_are_copied(ds):
    index = np.array([1, 2])
    view = ds[index]
    index[0] = 5
    assert ids_of(view).tolist() == [1, 2]


def test_comparisons_are_masks_for_indexing(ds):
    assert ids_of(ds[ds["label"] == 3]).tolist() == np.flatnonzero(VALUES["label"] == 3).tolist()
    assert ids_of(ds[ds["text"] == "text 1"]).tolist() == [1]
    assert ids_of(ds[(ds["label"] > 0) & (ds["number"] < 5e12)]).tolist() == [1, 2, 3]
    view = ds[::-1]
    assert ids_of(view[view["label"] == 3]).tolist() == [7, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda: pytest.importorskip("torch").tensor([3, 1]),
        lambda: pytest.importorskip("pandas").Series([3, 1]),
        lambda: [np.int8(3), np.uint8(1)],
    ],
    ids=["torch", "pandas", "NumPy scalars"],
)
def test_arrays_of_other_libraries_are_indices(ds, make):
    assert ids_of(ds[make()]).tolist() == [3, 1]
    assert ds["label"][make()].load().tolist() == [3, 1]


def test_scalar_tensors_and_bool_tensors_are_indices(ds, torch):
    check_sample(ds[torch.tensor(3)], 3)
    assert ids_of(ds[torch.arange(N) > 8]).tolist() == [9, 10]


def test_a_column_of_numbers_is_an_index(ds):
    assert ids_of(ds[ds["label"]]).tolist() == VALUES["label"].tolist()


# Reading


def test_load_returns_a_batch_of_all_columns(ds):
    batch = ds.load()
    assert isinstance(batch, npstream.Batch)
    assert list(batch) == list(ds.columns)
    assert batch.n == N
    assert batch.ids.dtype == np.int64
    for name in ("label", "number", "tokens"):
        assert batch[name].dtype == VALUES[name].dtype
        assert np.array_equal(batch[name], VALUES[name])
    assert batch["text"].to_list() == VALUES["text"]
    assert batch["data"].to_list() == VALUES["data"]
    assert (batch["text"].kind, batch["data"].kind) == ("str", "bytes")
    assert all(map(np.array_equal, batch["ragged"], VALUES["ragged"]))
    assert batch["meta"].dtype == object
    assert batch["meta"].tolist() == VALUES["meta"]


@pytest.mark.parametrize("index", [[], slice(0, 0), np.zeros(N, bool), np.empty((0, 2), int)])
def test_load_of_an_empty_view_returns_empty_columns(ds, index):
    batch = ds[index].load()
    shape = np.arange(N)[index].shape
    assert batch.ids.shape == shape
    assert batch["tokens"].shape == (*shape, 3, 2)
    assert len(batch["text"]) == len(batch["ragged"]) == 0
    assert batch["meta"].shape == shape
    assert list(ds[index]) == []
    for name in ds.columns:
        assert ds[index][name].load().dtype == batch[name].dtype
        assert ds[index][name].size == 0


def test_load_fills_given_arrays(ds):
    out = {"label": np.empty(3, np.int64), "tokens": np.empty((3, 3, 2), np.uint16)}
    batch = ds[[4, 0, 10]].load(out=out)
    assert batch["label"] is out["label"]
    assert batch["tokens"] is out["tokens"]
    assert out["label"].tolist() == [0, 0, 2]
    assert np.array_equal(out["tokens"], VALUES["tokens"][[4, 0, 10]])
    assert list(batch) == list(ds.columns)


@pytest.mark.parametrize("package", ["numpy", "torch"])
def test_load_fills_strided_arrays_and_tensors(ds, package):
    rows = [[4, 0], [10, 1]]
    wide = np.zeros((2, 2, 5), np.int64)
    arrays = pytest.importorskip(package)
    tokens = arrays.zeros((2, 2, 3, 2), dtype=arrays.uint16)
    out = {"label": wide[..., ::-1][..., 1], "tokens": tokens}
    batch = ds[rows].load(out=out)
    assert batch["tokens"] is tokens
    assert np.array_equal(np.asarray(tokens), VALUES["tokens"][rows])
    assert np.array_equal(wide[..., 3], VALUES["label"][rows])
    assert wide.sum() == VALUES["label"][rows].sum()


@pytest.mark.parametrize(
    ("name", "out", "error", "message"),
    [
        ("label", np.empty(4, np.int64), ValueError, r"shape \(4,\); expected \(3,\)"),
        ("label", np.empty(3, np.int32), TypeError, "dtype int32; expected int64"),
        ("label", np.broadcast_to(np.int64(0), 3), ValueError, "read-only"),
        ("label", [0, 0, 0], TypeError, "is a list; expected an array"),
        ("text", np.empty(3, object), TypeError, "vary in size"),
        ("lable", np.empty(3, object), errors.ColumnError, "did you mean 'label'"),
    ],
)
def test_load_into_an_unsuitable_array_raises(ds, name, out, error, message):
    with pytest.raises(error, match=message):
        ds[:3].load(out={name: out})


def test_load_into_a_column_raises(ds):
    with pytest.raises(TypeError, match="is a Column; expected an array"):
        ds[[[0, 1]]].load(out={"label": ds[[[0, 1]]]["label"]})


def test_take_reads_samples_like_an_index(ds):
    assert ids_of(ds[[3, -1]]).tolist() == ds.take([3, -1]).ids.tolist()
    check_sample(ds.take(5), 5)
    assert ds.take([[1, 2]]).ids.tolist() == [[1, 2]]
    assert np.take(ds, [1, 2]).ids.tolist() == [1, 2]
    out = {"label": np.empty(2, np.int64)}
    assert ds.take([3, 2], out=out)["label"] is out["label"]
    assert out["label"].tolist() == [3, 2]
    assert ds.take([]).n == 0


@pytest.mark.parametrize("mode", ["wrap", "clip"])
@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8])
def test_take_has_the_modes_of_numpy(ds, mode, dtype):
    indices = np.array([0, N, 100, 3]).astype(dtype)
    assert (
        ds.take(indices, mode=mode).ids.tolist() == np.arange(N).take(indices, mode=mode).tolist()
    )
    assert (
        ds[[[1, 2], [3, 4]]].take([5, -1], mode=mode).ids.tolist()
        == {
            "wrap": [2, 4],
            "clip": [4, 1],
        }[mode]
    )


def test_take_along_an_axis_of_an_nd_view(ds):
    view = ds[[[1, 2], [3, 4]]]
    assert view.take([1, 0], axis=0).ids.tolist() == [[3, 4], [1, 2]]
    assert view.take([1], axis=-2).ids.tolist() == [[3, 4]]
    assert view.take([3]).ids.tolist() == [4]


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (([N],), IndexError, f"index {N} is out of bounds"),
        (([0.5],), TypeError, "Cannot cast array data from dtype\\('float64'\\)"),
        (([True],), TypeError, "not a mask"),
        (([0], 1), np.exceptions.AxisError, "axis 1 is out of bounds"),
        (([0], None, None, "warp"), ValueError, "mode='warp'"),
        ((0, None, {}), TypeError, "out="),
    ],
)
def test_invalid_arguments_of_take_raise(ds, args, error, message):
    with pytest.raises(error, match=message):
        ds.take(*args)
    if args == ([0], 1):
        with pytest.raises(ValueError, match="along axis 0"):
            ds[[[0, 1]]].take(*args)


def test_asarray_returns_a_structured_array(fixed):
    table = np.asarray(fixed)
    assert table.shape == (N,)
    assert table.dtype.names == ("label", "number", "tokens")
    assert table.dtype["tokens"] == np.dtype(("<u2", (3, 2)))
    assert table.itemsize == 8 + 8 + 12
    assert table.flags.writeable
    for name in table.dtype.names:
        assert np.array_equal(table[name], VALUES[name])
    assert np.asarray(fixed[[[1, 2]]]).shape == (1, 2)
    assert np.array(fixed[["label"]], dtype=[("label", "f4")])["label"].dtype == np.float32
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.asarray(fixed, copy=False)


def test_asarray_raises_for_columns_of_varying_size(ds):
    with pytest.raises(TypeError, match="text, data, ragged, meta; leave them out"):
        np.asarray(ds)


def test_samples_are_writable_and_share_no_memory(ds):
    for sample in (ds[0], next(iter(ds)), ds.__getitems__([0])[0]):
        assert sample["tokens"].flags.owndata
        assert sample["ragged"].flags.owndata
        sample["tokens"][:] = 0
    check_sample(ds[0], 0)


def test_iteration_yields_the_samples_in_order(ds, monkeypatch):
    for block in (1, 1 << 20):
        monkeypatch.setattr(npstream.reading.load, "SAMPLE_BLOCK", block)
        for i, sample in enumerate(ds):
            check_sample(sample, i)
        assert i == N - 1
        for i, sample in zip([10, 8, 6], ds[::-2], strict=False):
            check_sample(sample, i)
    assert next(reversed(ds))["number"] == 10 * 10**12


def test_reading_more_than_the_free_memory_raises(ds, fixed, monkeypatch):
    monkeypatch.setattr(memory, "_UNCHECKED_BYTES", 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 20)
    for read in (ds.load, fixed.load, ds["tokens"].load, ds["text"].load, ds["ragged"].load):
        with pytest.raises(MemoryError, match="20 are free"):
            read()
    check_sample(ds[0], 0)
    monkeypatch.setattr(memory, "available_memory", lambda: 200)
    with pytest.raises(MemoryError, match="as a structured array"):
        np.asarray(fixed)


# Orders and transforms


def test_shuffle_permutes_the_samples_by_seed_and_epoch(ds):
    shuffled = ds.shuffle(3, block=None)
    order = ids_of(shuffled)
    assert sorted(order) == list(range(N))
    assert order.tolist() == ids_of(ds.shuffle(3, block=None)).tolist()
    others = [ids_of(ds.shuffle(*key, block=None)).tolist() for key in ((4,), (3, 1), (0, 3))]
    assert order.tolist() not in others
    assert ids_of(shuffled[2:5]).tolist() == order[2:5].tolist()
    check_sample(shuffled[4], order[4])
    assert np.array_equal(shuffled["tokens"][:3], VALUES["tokens"][order[:3]])
    view = ds[[[5, 6], [7, 8]]].shuffle(0, block=None)
    assert view.shape == (4,)
    assert sorted(ids_of(view)) == [5, 6, 7, 8]


def double(sample):
    return {**sample, "label": 2 * sample["label"]}


def test_a_transform_applies_to_samples_only(ds):
    view = ds.with_transform(double)
    assert [view[i]["label"] for i in range(N)] == (2 * VALUES["label"]).tolist()
    assert [sample["label"] for sample in view[::2]] == (2 * VALUES["label"][::2]).tolist()
    assert [sample["label"] for sample in view.__getitems__([3, 1])] == [6, 2]
    assert np.array_equal(view["label"], VALUES["label"])
    assert np.array_equal(view.load()["label"], VALUES["label"])
    assert ds[1]["label"] == 1
    assert view.with_transform(None)[1]["label"] == 1
    assert repr(view).endswith("  samples, not columns, pass through the transform double>")
    with pytest.raises(TypeError, match="transform='double': expected a function"):
        ds.with_transform("double")


def test_transforms_are_chained_and_can_be_pickled(ds):
    view = pickle.loads(pickle.dumps(ds.with_transform(double).with_transform(label)))
    assert list(view) == (2 * VALUES["label"]).tolist()
    assert list(view[["label"]].shuffle(0, block=None)) != list(view)


def test_long_operations_show_progress_on_a_terminal(ds, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_DELAY", -1)
    # A clock that advances by a second each time it is read.
    clock = SimpleNamespace(monotonic=itertools.count(0.0, 1.0).__next__)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    ds.filter(lambda batch: batch["label"] > 0, batch_size=1)
    assert "filter:  45%" in capsys.readouterr().err
    np.sum(ds["label"])
    assert "sum of 'label': 100%" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    ds.filter(lambda batch: batch["label"] > 0, batch_size=1)
    assert capsys.readouterr().err == ""


# torch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_samples_in_map_style(fixed, workers, torch):
    loader = torch.utils.data.DataLoader(fixed, batch_size=4, num_workers=workers)
    batches = list(loader)
    assert torch.equal(
        torch.cat([b["tokens"] for b in batches]), torch.from_numpy(VALUES["tokens"])
    )
    assert torch.cat([batch["label"] for batch in batches]).tolist() == VALUES["label"].tolist()


def test_a_data_loader_reads_nd_views(fixed, torch):
    view = fixed[[[0, 1], [2, 3]]]
    (batch,) = torch.utils.data.DataLoader(view, batch_size=2, collate_fn=list)
    assert [ids_of(view).tolist() for view in batch] == [[0, 1], [2, 3]]


# Copying and closing


def test_copies_and_pickles_are_the_same_view(ds):
    for copied in (
        copy.copy(ds[::-1]),
        copy.deepcopy(ds[::-1]),
        pickle.loads(pickle.dumps(ds[::-1])),
    ):
        assert ids_of(copied).tolist() == list(range(N))[::-1]
        check_sample(copied[0], N - 1)


def test_reading_a_closed_dataset_raises(path):
    with npstream.open(path) as ds:
        view, column = ds[::2], ds["label"]
        check_sample(view[1], 2)
    for read in (
        lambda: ds[0],
        lambda: view[0],
        ds.load,
        lambda: list(view),
        lambda: np.sum(column),
    ):
        with pytest.raises(ValueError, match="closed; open it again"):
            read()
    assert repr(ds)
    assert len(view) == 6
    ds.close()


def test_close_releases_maps(path):
    gc.collect()
    before = memory._map_count
    ds = npstream.open(path)
    ds.load()
    list(ds)
    ds[0]
    assert memory._map_count > before
    ds.close()
    assert memory._map_count == before


# Text and HTML


def test_the_repr_fits_on_one_screen(ds, tmp_path):
    text = repr(ds[2:5])
    assert "3 samples of 11 in 4 shards" in text
    for name, encoding in COLUMNS.items():
        assert f"{name:6}  {encoding}" in text
    assert "samples of shape (1, 2)" in repr(ds[[[0, 1]]])
    row = {f"{'x' * 200}{i}": i for i in range(100)}
    npstream.write(tmp_path / "wide", [row])
    wide = repr(npstream.open(tmp_path / "wide"))
    assert "and 76 more columns" in wide
    assert len(wide.splitlines()) < 30
    assert max(map(len, wide.splitlines()[1:])) < 80


def test_html_shows_a_table_of_the_first_rows(ds):
    html = ds._repr_html_()
    assert html.count("<tr>") == 1 + 5
    assert ">text 4</span>" in html
    assert ds[[[0, 1], [2, 3]]]._repr_html_().count("<tr>") == 1 + 4
    assert ds[[]]._repr_html_().count("<tr>") == 1
    assert "<span>1</span>" in ds.with_transform(label)._repr_html_()


def test_html_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    npstream.write(tmp_path / "<b>", [{evil: evil, "json": [evil], "bytes": evil.encode()}])
    html = npstream.open(tmp_path / "<b>")._repr_html_()
    assert "<script" not in html
    assert "<b>" not in html
    assert html.count("&lt;script") == 4


def test_a_process_exits_without_resource_warnings(path):
    code = f"import npstream; ds = npstream.open({str(path)!r}); ds[0]; list(ds); ds.load()"
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert (process.returncode, process.stderr) == (0, "")
