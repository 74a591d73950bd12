"""Tests of descriptions: from the side-car, from all rows, and from samples, against NumPy."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import npstream
from npstream.errors import CostError
from npstream.explore import describe
from npstream.explore.describe import RUNS, describe_statistics
from npstream.explore.summary import ColumnSummary, Description, align_cells
from npstream.formats.index import parse_index
from npstream.formats.sidecar.sidecar import Sidecar, digest_index, encode_sidecar
from npstream.formats.statistics import encode_statistics
from npstream.storage.local import LocalStore

RNG = np.random.default_rng(3)
N = 3000
COLUMNS = {
    "id": np.arange(N),
    "label": RNG.integers(0, 9, N, np.int32),
    "score": np.where(RNG.random(N) < 0.1, np.nan, RNG.normal(size=N)),
    "half": RNG.random(N).astype(np.float16),
    "flag": RNG.random(N) < 0.3,
    "tokens": RNG.integers(0, 500, (N, 4), np.uint16),
    "day": np.datetime64("2020-01-01") + RNG.integers(0, 99, N),
    "text": ["é" * k for k in RNG.integers(0, 9, N)],
    "body": [b"q" * k for k in RNG.integers(0, 4, N)],
    "meta": [{"a": 1} if k else None for k in RNG.integers(0, 2, N)],
    "rows": [np.arange(k) for k in RNG.integers(1, 5, N)],
}
NUMBERS = ["id", "label", "score", "half", "flag", "tokens"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("describe") / "ds"
    npstream.write(path, COLUMNS, shard_size="16KB")
    return path


@pytest.fixture(scope="module")
def ds(path):
    return npstream.open(path)


def check_numbers(summary, values, is_exact=True):
    present = np.asarray(values).reshape(-1)
    assert summary.elements == len(present)
    present = present[present == present]
    assert summary.missing == summary.elements - len(present)
    assert (summary.min, summary.max) == (present.min(), present.max())
    wide = present.astype(np.float64)
    assert summary.mean == pytest.approx(wide.mean())
    assert summary.std == pytest.approx(wide.std())
    ranks = np.sort(wide)
    for probability, value in summary.quantiles.items():
        low, high = (np.searchsorted(ranks, float(value), side) for side in ("left", "right"))
        error = summary.rank_error * len(ranks) + 1
        assert low - error <= probability * len(ranks) <= high + error
    unique, counts = np.unique(present, return_counts=True)
    if summary.distinct is not None:
        assert summary.distinct == len(unique)
    if is_exact:
        assert summary.rank_error == 0
        assert summary.distinct == len(unique)
        if len(unique) < len(present):
            assert summary.top[0][1] == counts.max()


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_all_rows_are_exact(ds, name):
    summary = ds[name].describe()
    assert (summary.origin, summary.count) == ("rows", N)
    check_numbers(summary, COLUMNS[name])
    view = ds[::-7][name].describe()
    check_numbers(view, COLUMNS[name][::-7])


@pytest.mark.parametrize("name", NUMBERS)
def test_sketches_of_many_numbers_keep_within_their_error(ds, name, monkeypatch):
    monkeypatch.setattr(describe, "EXACT_ELEMENTS", 100)
    check_numbers(ds[name].describe(), COLUMNS[name], is_exact=False)


def test_quantiles_are_those_of_pandas(ds):
    pandas = pytest.importorskip("pandas")
    names = ["id", "label", "score"]
    ours = ds[names].describe().to_pandas().astype(float)
    frame = pandas.DataFrame({name: COLUMNS[name] for name in names}).describe()
    for row in ("mean", "min", "25%", "50%", "75%", "max"):
        np.testing.assert_allclose(ours.loc[row], frame.loc[row], err_msg=row)
    np.testing.assert_allclose(ours.loc["count"] - ours.loc["missing"], frame.loc["count"])
    assert ds["text"].describe().to_pandas()["max length"] == 16


def test_times_have_bounds_and_quantiles(ds, monkeypatch):
    for _ in range(2):  # first exactly, then by sketches
        summary = ds["day"].describe()
        assert (summary.min, summary.max) == (COLUMNS["day"].min(), COLUMNS["day"].max())
        assert summary.min <= summary.quantiles[0.25] <= summary.quantiles[0.5] <= summary.max
        assert summary.mean is None
        monkeypatch.setattr(describe, "EXACT_ELEMENTS", 100)


def test_text_bytes_objects_and_arrays_have_lengths_and_counts(ds):
    lengths = [len(text.encode()) for text in COLUMNS["text"]]
    text = ds["text"].describe()
    assert text.lengths == (min(lengths), pytest.approx(np.mean(lengths)), max(lengths))
    assert (text.missing, text.distinct) == (COLUMNS["text"].count(""), 9)  # "" is missing
    value, count = text.top[0]
    assert count == COLUMNS["text"].count(value) == max(map(COLUMNS["text"].count, COLUMNS["text"]))
    assert ds["body"].describe().distinct == 4
    assert ds["meta"].describe().missing == COLUMNS["meta"].count(None)
    rows = ds["rows"].describe()
    assert rows.lengths[::2] == (1, 4)
    check_numbers(rows, np.concatenate(COLUMNS["rows"]))


def test_images_have_sizes(tmp_path):
    image = pytest.importorskip("PIL.Image")
    images = [image.new("RGB", (5 + k % 3, 9)) for k in range(200)]
    npstream.write(tmp_path / "a", {"image": images})
    summary = npstream.open(tmp_path / "a")["image"].describe()
    assert summary.image_sizes == (5, 7, 9, 9)
    assert "5 to 7 x 9 pixels" in repr(summary)


def test_a_description_states_and_repeats_its_sample(ds):
    description = ds.describe(sample=100)
    assert description["text"].origin == "sample"
    assert description["text"].count == 100
    assert description["label"].count == N  # numbers of a local column are never sampled
    assert "a sample of 100 of 3,000 rows" in repr(description)
    again = ds.describe(sample=100)
    assert again["text"] == description["text"]
    assert ds.describe(sample=100, seed=1)["text"] != description["text"]
    with pytest.raises(ValueError, match="sample=0"):
        ds.describe(sample=0)


def test_samples_of_remote_rows_are_runs():
    rows = describe._sample_rows(100_000, 6400, 0, True)
    assert len(np.unique(rows)) == len(rows) == 6400
    assert (np.diff(rows) > 1).sum() <= RUNS
    assert rows.min() >= 0
    assert rows.max() < 100_000
    assert describe._sample_rows(10, 10, 0, True) is None


def test_views_without_rows_or_with_axes_are_described(ds):
    assert "0 rows" in repr(ds[:0].describe())
    grid = ds[np.arange(12).reshape(3, 4)][["label", "text"]]
    check_numbers(grid.describe()["label"], COLUMNS["label"][:12])
    check_numbers(ds["tokens"][:, 1:3].describe(), COLUMNS["tokens"][:, 1:3])


# From the side-car of a remote dataset.


@pytest.mark.parametrize("store", ["s3", "http"])
def test_a_remote_dataset_takes_at_most_two_requests(store, path, servers, tmp_path):
    place, proxy = servers[store].new_directory(), servers.proxy(store)
    for file in path.rglob("*"):
        if file.is_file():
            place.put(str(file.relative_to(path)), file.read_bytes())
    via = place.with_proxy(proxy)
    ds = npstream.open(via.url, storage_options=via.storage_options, cache=tmp_path / "cache")
    assert len(ds.shards) > 10
    before = len(proxy.log)
    description = ds.describe()
    log = proxy.log[before:]
    assert len(log) <= 2
    assert sum(request.nbytes for request in log) <= 2 << 20
    for name in NUMBERS:
        summary = description[name]
        assert (summary.origin, summary.count) == ("side-car", N)
        check_numbers(summary, COLUMNS[name], is_exact=False)
    assert description["day"].min == COLUMNS["day"].min()
    lengths = [len(text.encode()) for text in COLUMNS["text"]]
    text = description["text"]
    assert text.lengths == (min(lengths), pytest.approx(np.mean(lengths)), max(lengths))
    assert (text.missing, text.distinct) == (COLUMNS["text"].count(""), 9)
    assert dict(text.top)["é"] == COLUMNS["text"].count("é")
    assert description["meta"].missing == COLUMNS["meta"].count(None)
    assert "all 3,000 rows, by the side-car." in repr(description)


def test_many_shards_take_at_most_two_requests_of_few_bytes(ds, path, upload, requests, tmp_path):
    """The dataset consists of an index and a side-car; no request reads a shard."""
    files = tmp_path / "many"
    files.mkdir()
    document = json.loads((path / "index.json").read_text())
    shard = document["shards"][0]
    shards = [
        {**shard, "raw_data": {**shard["raw_data"], "basename": f"shard.{number:06}.mds"}}
        for number in range(20_000)
    ]
    text = json.dumps({**document, "shards": shards}).encode()
    (files / "index.json").write_bytes(text)
    (name,) = (file.name for file in path.glob("*.msgpack"))
    known = Sidecar(LocalStore(path), name).statistics()
    body = np.frombuffer(encode_statistics(known), np.uint8)
    parts = encode_sidecar(
        parse_index(text, "index.json"), digest_index(text), [], {"statistics": body}
    )
    (files / name).write_bytes(b"".join(map(bytes, parts)))
    remote = npstream.open(upload(files), cache=tmp_path / "cache")
    assert len(remote.shards) == 20_000
    requests.clear()
    description = remote.describe()
    assert len(requests) <= 2
    assert sum(nbytes for *_, nbytes in requests) <= 2 << 20
    assert description["label"].origin == "side-car"
    assert description["label"].mean == ds["label"].describe().mean
    assert description["id"].rows == len(remote)


def test_views_and_other_declarations_do_not_take_the_side_car(path, upload, tmp_path):
    url = upload(path)
    ds = npstream.open(url, cache=tmp_path / "cache")
    check_numbers(ds[:500]["label"].describe(), COLUMNS["label"][:500])
    assert ds[::-1]["label"].describe().origin != "side-car"
    other = npstream.open(url, cache=tmp_path / "cache", columns={"id": "float64"})
    assert other["id"].describe().origin == "rows"
    source = other._source
    assert describe_statistics(source, source.field("id"), {}) is None


def test_renamed_columns_keep_their_statistics(path, upload, tmp_path):
    ds = npstream.open(upload(path), cache=tmp_path / "cache")
    swapped = ds.rename({"id": "label", "label": "id"}).describe()
    assert swapped["id"].origin == "side-car"
    check_numbers(swapped["id"], COLUMNS["label"], is_exact=False)


def test_concatenated_datasets_are_read(ds):
    both = npstream.concat([ds, ds[:100]])
    check_numbers(both["label"].describe(), np.append(COLUMNS["label"], COLUMNS["label"][:100]))


def test_describing_remote_rows_obeys_the_implicit_read_limit(path, upload, tmp_path):
    ds = npstream.open(upload(path), cache=tmp_path / "cache", implicit_read_limit="1KB")
    with pytest.raises(CostError, match="describing 'text'"):
        ds[::2]["text"].describe()


# Text and HTML.


def test_text_fits_a_screen_and_html_is_escaped():
    columns = [
        ColumnSummary(f"<b>{k}", "int64", 9, 9, "rows", min=0, max=k, mean=1.5) for k in range(60)
    ]
    description = Description(9, columns)
    lines = repr(description).splitlines()
    assert len(lines) < 40
    assert "  ... and 36 more columns" in lines
    page = description._repr_html_()
    assert "&lt;b&gt;0" in page
    assert not re.search("<b>", page)
    assert len(align_cells([["a"], ["b"]], 1)) == 2
    assert "&lt;b&gt;0" in columns[0]._repr_html_()


def test_unstable_deviations_are_left_out(tmp_path, monkeypatch):
    values = 1e15 + RNG.random(2000)
    npstream.write(tmp_path / "a", {"x": values, "same": np.full(2000, 1e15)})
    ds = npstream.open(tmp_path / "a")
    assert ds["x"].describe().std == pytest.approx(values.std())
    # Beyond this limit, the deviation is computed from sums, which are too inexact for such floats.
    monkeypatch.setattr(describe, "EXACT_ELEMENTS", 100)
    assert ds["x"].describe().std is None
    assert ds["same"].describe().std == 0
