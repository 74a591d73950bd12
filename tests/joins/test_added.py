"""Datasets with added columns are read like those that store all columns; NumPy is the oracle."""

from __future__ import annotations

import json
import pickle
import shutil
import tempfile

import fsspec
import numpy as np
import pytest
from children import run_in_child
from hypothesis import given, settings
from hypothesis import strategies as st

import npstream
from npstream import testing
from npstream.errors import ColumnError, CostError, FormatError
from npstream.formats.versions import COLUMNS_FILE
from npstream.storage.remote import RemoteStore

N = 300
EMB = np.random.default_rng(0).standard_normal((N, 40)).astype(np.float32)
WORDS = [f"word {number}" * (number % 4) for number in range(N)]
TAGS = [np.arange(1 + number % 5, dtype=np.uint16) for number in range(N)]


def write_base(path, n=N):
    """Write a dataset of `n` samples, in shards of 60 samples."""
    x = np.arange(n * 12, dtype=np.float64).reshape(n, 12)
    npstream.write(path, {"id": np.arange(n), "x": x}, shard_samples=60)


def append(path, first, stop):
    """Append the samples `first` to `stop`."""
    x = np.arange(first * 12, stop * 12, dtype=np.float64).reshape(-1, 12)
    npstream.write(path, {"id": np.arange(first, stop), "x": x}, mode="a", shard_samples=60)


def add_all(path, rows=slice(None), *, fill=False):
    """Add two groups of columns: "emb", then "word" and "tag". Each has its own shard size.

    With `fill`, both groups have values for samples that are appended later.
    """
    emb_fill = {"fill": {"emb": np.full(40, 7, np.float32)}} if fill else {}
    words_fill = {"fill": {"word": "?", "tag": np.zeros(3, np.uint16)}} if fill else {}
    npstream.add_columns(path, {"emb": EMB[rows]}, shard_samples=70, **emb_fill)
    words = {"word": WORDS[rows], "tag": TAGS[rows]}
    npstream.add_columns(
        path, words, shard_samples=25, columns={"word": "str", "tag": "ndarray:uint16"},
        **words_fill,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    write_base(tmp_path / "data")
    add_all(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(params=["local", "remote"])
def ds(request, path, tmp_path, upload, small_chunks):
    if request.param == "local":
        return npstream.open(path)
    return npstream.open(upload(path), cache=tmp_path / "cache")


INDICES = [slice(None), slice(200, 10, -3), [5, 299, 5, 0], np.arange(N) % 7 == 3, slice(0, 0)]


def assert_rows(batch, index):
    rows = np.arange(N)[index]
    np.testing.assert_array_equal(batch["id"], rows)
    np.testing.assert_array_equal(batch["x"][:, 1], rows * 12 + 1)
    np.testing.assert_array_equal(batch["emb"], EMB[rows])
    assert list(batch["word"]) == [WORDS[row] for row in rows]
    for value, row in zip(batch["tag"], rows, strict=True):
        np.testing.assert_array_equal(value, TAGS[row])


def test_columns_are_in_the_order_in_which_they_were_added(ds):
    assert ds.columns == ("id", "x", "emb", "word", "tag")
    assert ds.dtypes["emb"] == np.float32
    assert "emb   ndarray:float32:40" in repr(ds)


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_batches_and_samples(index, ds):
    view = ds[index]
    assert_rows(view.load(), index)
    rows = np.arange(N)[index]
    for sample, row in zip(view, rows, strict=True):
        assert list(sample) == list(ds.columns)
        assert (sample["id"], sample["word"]) == (row, WORDS[row])
        np.testing.assert_array_equal(sample["emb"], EMB[row])
    testing.assert_same_as_numpy(view["emb"], EMB[index], np.s_[..., 3:9])
    testing.assert_same_as_numpy(ds["emb"], EMB, index)


def test_single_samples(ds):
    for row in (0, 59, 60, 123, -1):
        sample = ds[row]
        assert sample["word"] == WORDS[row]
        np.testing.assert_array_equal(sample["emb"], EMB[row])
        np.testing.assert_array_equal(ds["tag"][row], TAGS[row])
    assert ds["emb"][7, 3] == EMB[7, 3]


def test_only_added_and_only_own_columns(ds):
    np.testing.assert_array_equal(ds[["emb"]][9:4:-1].load()["emb"], EMB[9:4:-1])
    assert [sample["word"] for sample in ds[["word"]]] == WORDS
    assert ds[["word"]][8] == {"word": WORDS[8]}
    assert ds[["id"]][8] == {"id": 8}
    batch = ds[["word", "id"]][30:40].load()
    assert list(batch) == ["word", "id"]


def test_filters_and_arithmetic(ds):
    mask = (ds["emb"][:, 0] > 0) & (ds["word"] != "") & (ds["id"] % 2 == 0)
    expected = (EMB[:, 0] > 0) & np.array([word != "" for word in WORDS]) & (np.arange(N) % 2 == 0)
    np.testing.assert_array_equal(mask, expected)
    assert_rows(ds[mask].load(), expected)
    np.testing.assert_allclose(ds["emb"].mean(axis=0), EMB.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(ds["x"][:, 0] + ds["emb"][:, 0],
                                  np.arange(N) * 12.0 + EMB[:, 0])  # fmt: skip
    assert ds.filter(lambda sample: sample["word"] == WORDS[5]).shape == (1,)


@pytest.mark.parametrize("batched", [True, False])
def test_iteration(batched, ds):
    size = {"batch_size": 7} if batched else {}
    ids = []
    for item in ds.iter(0, 1, shuffle=True, seed=3, last="short", **size):
        if batched:
            assert_rows(item, item.ids)
            ids += item.ids.tolist()
        else:
            np.testing.assert_array_equal(item["emb"], EMB[item["id"]])
            ids.append(item["id"])
    assert sorted(ids) == list(range(N))


def test_prefetch_and_explain(path, tmp_path, upload, small_chunks, requests):
    ds = npstream.open(upload(path), cache=tmp_path / "cache")
    fixed_size = ds[["id", "x", "emb"]]  # without the columns of variable size
    cost = fixed_size.explain()
    assert cost.samples == N
    assert cost.nbytes >= EMB.nbytes + N * 12 * 8  # x has 12 float64
    assert ds["emb"].explain().nbytes < cost.nbytes < ds.explain().nbytes
    requests.clear()
    fixed_size.load()
    assert (cost.requests, cost.nbytes) == (len(requests), sum(size for *_, size in requests))
    fresh = npstream.open(upload(path), cache=tmp_path / "fresh")
    requests.clear()
    fresh[["emb", "id"]].prefetch()
    assert requests
    requests.clear()
    assert fresh[["emb", "id"]].explain().nbytes == 0
    np.testing.assert_array_equal(fresh[["emb", "id"]].load()["emb"], EMB)
    assert requests == []
    assert fresh["word"].explain().nbytes > 0


def test_implicit_reads_are_limited_together(path, tmp_path, upload, small_chunks):
    url = upload(path)
    ds = npstream.open(url, cache=tmp_path / "a", columns=["emb", "x"])
    # Each column is below the limit, and both together are above it.
    limit = max(ds["emb"].explain().nbytes, ds["x"].explain().nbytes) + 10_000
    limited = npstream.open(url, cache=tmp_path / "b", implicit_read_limit=limit)
    with pytest.raises(CostError):
        np.asarray(limited[["emb", "x"]])
    np.asarray(limited[["emb"]])


def test_pickled_views_and_forked_processes(ds):
    view = pickle.loads(pickle.dumps(ds[::-1]))
    assert_rows(view.load(), slice(None, None, -1))
    column = pickle.loads(pickle.dumps(ds["emb"]))
    np.testing.assert_array_equal(column.load(), EMB)
    run_in_child(lambda: assert_rows(ds.load(), slice(None)))


def test_close_closes_added_columns(ds):
    emb = ds["emb"]
    ds.load()
    ds.close()
    for read in (lambda: ds[0], lambda: emb.load(), lambda: ds[["word"]].load()):
        with pytest.raises(ValueError, match="closed"):
            read()


def test_declared_and_selected_columns(path):
    ds = npstream.open(path, columns={"emb": "ndarray:uint32:40", "x": "ndarray:int64:12"})
    np.testing.assert_array_equal(ds["emb"].load(), EMB.view(np.uint32))
    assert ds.columns == ("id", "x", "emb", "word", "tag")
    some = npstream.open(path, columns=["word", "id"])
    assert some.columns == ("word", "id")
    assert some[4] == {"word": WORDS[4], "id": 4}
    with pytest.raises(ColumnError, match="did you mean 'emb'"):
        npstream.open(path, columns=["embb"])
    with pytest.raises(ValueError, match="twice"):
        npstream.open(path, columns=["emb", "emb"])


def test_groups_that_are_not_selected_are_not_opened(path, tmp_path, upload):
    url = upload(path)
    files = fsspec.filesystem("memory")
    files.rm(f"{url.removeprefix('memory:/')}/columns", recursive=True)
    assert npstream.open(url, cache=tmp_path / "cache", columns=["id"])[7] == {"id": 7}
    with pytest.raises(FileNotFoundError):
        npstream.open(url, cache=tmp_path / "cache")


def test_views_are_copied_with_their_added_columns(ds, tmp_path):
    rows = [5, 5, 290, 17]
    npstream.write(tmp_path / "copy", ds[rows])
    assert_rows(npstream.open(tmp_path / "copy").load(), rows)
    arrow = pytest.importorskip("pyarrow").table(ds)
    assert arrow.column("word").to_pylist() == WORDS


def test_a_hidden_column_is_not_copied(path, tmp_path):
    """The hidden base column has the same name and size as the added column."""
    npstream.add_columns(path, {"id": np.arange(N)[::-1].copy()}, replace=True)
    ds = npstream.open(path, columns=["id", "x"])
    npstream.copy(ds[10:20], tmp_path / "copy")
    copy = npstream.open(tmp_path / "copy")
    np.testing.assert_array_equal(copy["id"].load(), N - 1 - np.arange(10, 20))
    np.testing.assert_array_equal(copy["x"][:, 0], np.arange(10, 20) * 12)


def test_merge_raises_if_it_would_lose_added_columns(path, tmp_path):
    write_base(tmp_path / "other")
    with pytest.raises(ValueError, match="'emb' was added beside this dataset"):
        npstream.merge([path, tmp_path / "other"], tmp_path)
    npstream.remove_columns(path, ["emb", "word", "tag"])
    npstream.merge([path, tmp_path / "other"], tmp_path)
    npstream.add_columns(tmp_path, {"emb": np.concatenate([EMB, EMB])})
    np.testing.assert_array_equal(npstream.open(tmp_path)["emb"][N:].load(), EMB)


def test_an_added_column_is_memory_mapped(path):
    ds = npstream.open(path)
    np.testing.assert_array_equal(np.asarray(ds["emb"][3:50], copy=False), EMB[3:50])


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_table_split_into_groups(data):
    values, columns = data.draw(testing.tables(max_columns=5, min_samples=2))
    names = list(values)
    n = len(values[names[0]])
    group_of = {name: data.draw(st.integers(0, 2)) for name in names}
    group_of[names[0]] = 0  # group 0 is the base, which needs a column
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/new"
        for group in range(3):
            group_names = [name for name in names if group_of[name] == group]
            if group_names:
                write = npstream.add_columns if group else npstream.write
                write(path, {name: values[name] for name in group_names},
                      columns={name: columns[name] for name in group_names},
                      shard_samples=data.draw(st.integers(1, n)))  # fmt: skip
        with npstream.open(path) as ds:
            assert set(ds.columns) == set(names)
            view = ds[names]
            testing.assert_same_as_numpy(view, values)
            index = data.draw(testing.indices((n,)))
            testing.assert_same_as_numpy(view, values, index)


# Appended samples, and other changes of the base


def test_appended_samples_need_values(tmp_path):
    path = tmp_path / "data"
    write_base(path, 120)
    add_all(path, slice(120))
    old = npstream.open(path)
    append(path, 120, N)
    with pytest.raises(ColumnError, match=r"'emb' has values for 120 of 300 .* 180 samples came"):
        npstream.open(path)
    assert npstream.open(path, columns=["id"])["id"].sum() == N * (N - 1) // 2
    npstream.add_columns(path, {"emb": EMB[120:]})
    with pytest.raises(ColumnError, match="'word' has values for 120 of 300"):
        npstream.open(path)
    npstream.add_columns(path, {"word": WORDS[120:], "tag": TAGS[120:]})
    ds = npstream.open(path)
    assert ds.columns == old.columns
    assert_rows(ds.load(), slice(None))
    former = npstream.open(path, version=old.version)
    assert former.columns == old.columns
    assert_rows(former.load(), slice(120))
    assert_rows(pickle.loads(pickle.dumps(ds))[[299, 3, 120]].load(), [299, 3, 120])
    assert npstream.verify_dataset(path).problems == ()


@pytest.mark.parametrize("is_remote", [False, True])
def test_appended_samples_are_filled(is_remote, tmp_path, upload, small_chunks):
    path = tmp_path / "data"
    write_base(path, 120)
    add_all(path, slice(120), fill=True)
    append(path, 120, N)
    where = upload(path) if is_remote else path
    ds = npstream.open(where, cache=tmp_path / "cache")
    np.testing.assert_array_equal(ds["emb"].load(), [*EMB[:120], *np.full((180, 40), 7)])
    assert list(ds["word"]) == [*WORDS[:120], *["?"] * 180]
    assert int((ds["word"] == "?").sum()) == 180
    sample = ds[250]
    assert (sample["id"], sample["word"]) == (250, "?")
    np.testing.assert_array_equal(sample["tag"], np.zeros(3))
    for batch in ds.iter(0, 1, batch_size=30, shuffle=True, seed=1):
        np.testing.assert_array_equal(batch["emb"][batch.ids >= 120], 7)
    view = pickle.loads(pickle.dumps(ds[[299, 0, 119, 120]]))
    assert list(view.load()["word"]) == ["?", WORDS[0], WORDS[119], "?"]
    mixed = npstream.mix({"a": ds[100:140], "b": ds[[0, 299]]}, columns=["word", "source", "id"])
    assert list(mixed["word"]) == [*WORDS[100:120], *["?"] * 20, WORDS[0], "?"]
    assert mixed[41] == {"word": "?", "source": "b", "id": 299}
    assert [sample["word"] for sample in mixed] == list(mixed["word"])


def test_columns_that_were_added_to_another_dataset_are_left_out(tmp_path):
    """The new dataset gets `COLUMNS_FILE` and the added columns of a removed dataset."""
    path = tmp_path / "data"
    write_base(path, 120)
    add_all(path, slice(120))
    shutil.move(path / COLUMNS_FILE, tmp_path / COLUMNS_FILE)
    shutil.move(path / "columns", tmp_path / "columns")
    shutil.rmtree(path)
    npstream.write(path, {"id": np.arange(120), "y": np.arange(120)})
    shutil.move(tmp_path / COLUMNS_FILE, path / COLUMNS_FILE)
    shutil.move(tmp_path / "columns", path / "columns")
    ds = npstream.open(path)
    assert ds.columns == ("id", "y")
    with pytest.raises(ValueError, match="'emb' was added to version"):
        ds["emb"]
    with pytest.raises(ColumnError, match="'emb' was added to version"):
        npstream.open(path, columns=["emb"])


# Mixtures


def test_a_mixture_of_own_and_added_columns(path, tmp_path):
    npstream.write(tmp_path / "own", {"emb": EMB[::-1], "id": np.arange(N)})
    other, ds = npstream.open(tmp_path / "own"), npstream.open(path)
    mixed = npstream.mix(
        {"added": ds[[7, 3]].with_transform(mark), "own": other[5:8], "again": ds[::-1]},
        columns=["emb", "id", "source"],
    )
    expected = np.concatenate([EMB[[7, 3]], EMB[::-1][5:8], EMB[::-1]])
    np.testing.assert_array_equal(mixed["emb"].load(), expected)
    assert mixed[1]["marked"]
    np.testing.assert_array_equal(mixed[1]["emb"], EMB[3])
    assert [sample["id"] for sample in mixed[:6]] == [7, 3, 5, 6, 7, 299]
    plain = npstream.mix({"added": ds, "own": other})
    for batch in pickle.loads(pickle.dumps(plain)).iter(0, 1, batch_size=8, seed=2, shuffle=True):
        rows = batch["id"]
        assert all(
            (value == EMB[row]).all() or (value == EMB[::-1][row]).all()
            for value, row in zip(batch["emb"], rows, strict=True)
        )
    assert plain.explain().samples == 2 * N


def mark(sample):
    return {**sample, "marked": True}


# The list of added columns


def record_names(method, names):
    """Return a method of a store that appends the names of requested files to `names`."""

    def call(store, name, *arguments):
        names.append(name)
        return method(store, name, *arguments)

    return call


def test_an_absent_list_of_columns_takes_one_request(tmp_path, upload, monkeypatch):
    write_base(tmp_path / "data")
    url, requests = upload(tmp_path / "data"), []
    for method in ("version", "read", "read_start"):
        original = getattr(RemoteStore, method)
        monkeypatch.setattr(RemoteStore, method, record_names(original, requests))
    npstream.open(url, cache=tmp_path / "cache")
    assert requests.count(COLUMNS_FILE) == 1


def test_columns_json_of_another_program_is_neither_read_nor_replaced(path):
    (path / COLUMNS_FILE).write_text('{"columns": [1, 2]}')
    assert npstream.open(path).columns == ("id", "x")
    with pytest.raises(FileExistsError, match="rename it"):
        npstream.add_columns(path, {"y": np.arange(N)})


def test_a_list_whose_counts_do_not_fit_raises(path):
    document = json.loads((path / COLUMNS_FILE).read_text())
    document["groups"][0]["parts"][0]["samples"] = 299
    (path / COLUMNS_FILE).write_text(json.dumps(document))
    with pytest.raises(ColumnError, match="299 of 300"):
        npstream.open(path)
    document["groups"][0]["parts"][0]["samples"] = 301
    (path / COLUMNS_FILE).write_text(json.dumps(document))
    with pytest.raises(FormatError, match="301 values"):
        npstream.open(path)
    document["groups"][0]["parts"][0]["samples"] = 300
    document["groups"][0]["parts"].append({**document["groups"][0]["parts"][0]})
    document["groups"][0]["parts"][1]["samples"] = 0
    (path / COLUMNS_FILE).write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"300 samples; the dataset's columns\.json says 0"):
        npstream.open(path)


def test_a_list_without_permission_to_read_counts_as_absent(
    path, tmp_path, upload, monkeypatch, caplog
):
    """If the user may not list the bucket, S3 denies reads of absent files."""
    url, read_start = upload(path), RemoteStore.read_start

    def deny(store, name, nbytes):
        if name == COLUMNS_FILE:
            raise npstream.errors.StorageError(13, "denied", store.where(name))
        return read_start(store, name, nbytes)

    monkeypatch.setattr(RemoteStore, "read_start", deny)
    with caplog.at_level("DEBUG", "npstream"):
        ds = npstream.open(url, cache=tmp_path / "cache")
    assert ds.columns == ("id", "x")
    assert "permission denied, so there are no added columns" in caplog.text
