"""A preview of a dataset or column reads a few samples that are local, cached or cheap."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from sharded import publish_repeated_shard

import npstream
from npstream.explore import preview
from npstream.orders.chunks import shard_chunks
from npstream.shards.table import Fetcher
from npstream.storage.remote import RemoteStore
from tests.rendering.test_html import ATTACKS, check_page, visible

N = 600
SHARDS = 200_000


def write(path, shard_size="16KB", **options):
    columns = {
        "id": np.arange(N),
        "text": [f"text {i} " + "x" * (i % 50) for i in range(N)],
        "meta": [{"i": i} for i in range(N)],
    }
    npstream.write(path, columns, shard_size=shard_size, **options)
    return columns


def rows_of(html: str) -> list[str]:
    return re.findall("<tr>(.*?)</tr>", html)[1:]


# Local datasets


@pytest.fixture
def ds(tmp_path):
    write(tmp_path / "data")
    return npstream.open(tmp_path / "data")


def test_the_repr_shows_types_and_first_values(ds):
    lines = repr(ds).splitlines()
    assert lines[0].startswith("<npstream.Dataset: 600 samples of 600 in ")
    assert lines[1:] == [
        "  id    int64  0, 1, 2, ...",
        "  text  str    'text 0 ', 'text 1 x', 'text 2 xx', ...",
        "  meta  json   {'i': 0}, {'i': 1}, {'i': 2}, ...>",
    ]
    assert repr(ds["id"][5:7]).splitlines()[1] == "  5, 6>"


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_only_a_view_with_more_rows_than_are_shown_ends_in_an_ellipsis(ds, rows):
    values = ", ".join(map(str, range(min(rows, 3)))) + (", ..." if rows > 3 else "")
    assert repr(ds[["id"]][:rows]).splitlines()[1] == f"  id  int64  {values}>"
    assert repr(ds["id"][:rows]).splitlines()[1] == f"  {values}>"


def test_a_concatenation_counts_the_rows_of_its_parts(ds):
    both = npstream.concat([ds, ds[:10]])
    assert repr(both).startswith("<npstream.Dataset: 610 samples of 610 in ")
    assert repr(both[605:]).startswith("<npstream.Dataset: 5 samples of 610 in ")
    part = npstream.concat([ds[:2], ds[4:5]])
    assert repr(part[[0]]).startswith("<npstream.Dataset: 1 sample of 3 in ")


def test_html_of_a_mixture_has_its_rows(ds):
    mixture = npstream.mix({"a": ds[:4], "b": ds[7:9]})
    html = mixture[4:]._repr_html_()
    assert check_page(html).text.startswith("npstream.")
    first, _ = rows_of(html)
    assert first.startswith('<th class="npstream-n">0</th><th class="npstream-n">4</th>')
    assert ">7<" in first
    assert mixture.origin(4) == (1, 0)
    html = mixture._repr_html_()
    assert check_page(html).text.startswith("npstream.Mixture: 6 samples of 2 sources")


def test_html_has_the_rows_of_the_view_and_of_the_dataset(ds):
    html = ds[[7, 3]]._repr_html_()
    assert check_page(html).text.startswith("npstream.Dataset: 2 samples of 600 in ")
    first, second = rows_of(html)
    assert first.startswith('<th class="npstream-n">0</th><th class="npstream-n">7</th>')
    assert second.startswith('<th class="npstream-n">1</th><th class="npstream-n">3</th>')
    assert "<small>int64</small>" in html
    assert "600 rows" not in html
    column = ds["text"][[7, 3]]._repr_html_()
    assert '<th class="npstream-n">7</th>' in column
    assert check_page(column).text.count("text 7 xxxxxxx") == 1


def test_html_of_a_large_view_has_its_first_rows(ds):
    html = ds._repr_html_()
    assert len(rows_of(html)) == preview.HEAD_ROWS
    assert check_page(html).text.endswith("... 600 rows")
    assert len(rows_of(ds[:10]._repr_html_())) == 10
    assert len(rows_of(ds["id"][::100]._repr_html_())) == 6


def test_rows_of_an_nd_view_have_an_index_for_each_axis(ds):
    html = ds[[[5, 6], [7, 8]]]._repr_html_()
    assert [row.split("</th>")[0][-4:] for row in rows_of(html)] == ["0, 0", "0, 1", "1, 0", "1, 1"]
    assert "1, 1" in ds["id"][[[5, 6], [7, 8]]]._repr_html_()
    assert repr(ds["id"][[[5, 6], [7, 8]]]).endswith("5, 6, 7, ...>")


def test_a_preview_reads_a_few_samples(ds, monkeypatch):
    read = []
    columns = npstream.reading.source.Source.columns

    def record(self, plan, lookup, out):
        read.append(len(lookup.rows))
        return columns(self, plan, lookup, out)

    monkeypatch.setattr("npstream.reading.source.Source.columns", record)
    repr(ds), ds._repr_html_(), repr(ds.shuffle(0)), ds.shuffle(0)._repr_html_()
    assert max(read) <= preview.HEAD_ROWS
    assert len(read) == 4


def test_parts_of_values_are_shown(tmp_path):
    array = np.arange(4 * 3 * 2 * 5).reshape(4, 3, 2, 5)
    npstream.write(tmp_path, {"x": array})
    column = npstream.open(tmp_path)["x"]
    for index in (np.s_[:, 0, 1, 2], np.s_[..., [1, 0]], np.s_[:, ::2], np.s_[[[0, 1], [3, 2]], 0]):
        part, expected = column[index], array[index]
        assert repr(part).startswith(f"<npstream.Column 'x': shape {expected.shape}")
        rows = rows_of(part._repr_html_())
        assert len(rows) == 4
        assert str(expected.reshape(4, -1)[-1, 0]) in check_page(rows[-1]).text
    around = column[:, [0, 1], :, [2, 3]]  # its first axis is not the axis of rows
    assert repr(around).startswith("<npstream.Column 'x': ")
    assert "shape (2, 4, 2)" in check_page(around._repr_html_()).text


def test_large_values_are_not_read(ds, monkeypatch):
    monkeypatch.setattr(preview, "MAX_READ", 50)  # bytes of a column; text 49 is longer
    assert "not read" in repr(ds[49:])
    assert "not read" in repr(ds["text"][49:])
    assert "49, 50, 51" in repr(ds[49:])


def test_large_values_in_the_cache_are_not_read(tmp_path, upload, monkeypatch):
    write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    ds.prefetch()
    monkeypatch.setattr(preview, "MAX_READ", 50)  # bytes of a column; text 49 is longer
    assert "not read" in repr(ds[49:])
    assert "not read" in repr(ds["text"][49:])
    assert "49, 50, 51" in repr(ds[49:])


def test_damaged_values_show_their_error_in_their_cell(tmp_path):
    write(tmp_path / "data", sidecar=False)
    path = tmp_path / "data" / "shard.00000.mds"
    body = path.read_bytes().replace(b'{"i": 1}', b'{"i": !}', 1).replace(b'{"i":1}', b'{"i":!}', 1)
    os.chmod(path, 0o600)
    path.write_bytes(body)
    ds = npstream.open(tmp_path / "data")
    rows = rows_of(ds._repr_html_())
    assert ["npstream-e" in row for row in rows] == [False, True, False, False, False]
    assert "text 1 x" in rows[1]
    assert "Error" in repr(ds["meta"][1:2])


def test_closed_and_removed_datasets_still_have_a_repr(ds, tmp_path):
    ds.close()
    assert "the dataset is closed" in repr(ds) + ds._repr_html_()
    assert "the dataset is closed" in repr(ds["text"]) + ds["text"]._repr_html_()
    other = npstream.open(tmp_path / "data")
    for file in (tmp_path / "data").glob("*.mds"):
        file.unlink()
    assert check_page(other._repr_html_()).text.count("Error") >= 1


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_name_or_text_becomes_markup(attack, tmp_path):
    stored = attack.encode("utf-8", "replace").decode()
    name = re.sub("[\x00-\x1f]", "_", stored)
    npstream.write(tmp_path, [{name: stored, "json": [stored], "bytes": stored.encode()}])
    ds = npstream.open(tmp_path)
    page = check_page(ds._repr_html_())
    assert page.text.count(visible(stored)) >= 1
    for shown in (ds[name], ds["json"], ds.load(), ds[name].load(), ds["bytes"].load()):
        check_page(shown._repr_html_())
    assert "\x1b" not in repr(ds) + repr(ds[name]) + repr(ds.load()) + repr(ds[name].load())


# Remote datasets


def test_a_remote_repr_takes_no_request(tmp_path, upload, requests, small_chunks):
    write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    requests.clear()
    text = repr(ds) + repr(ds["text"])
    assert requests == []
    cost = ds[:3].explain()
    expected = f"to read 3 samples takes {cost.requests} request"
    assert text.count("values are not shown") == 2
    assert expected in text
    ds[:3].load()
    requests.clear()
    assert "'text 0 ', 'text 1 x'" in repr(ds)
    assert requests == []


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("sidecar", [False, True])
def test_html_of_a_remote_dataset_takes_few_requests(
    shuffle, sidecar, tmp_path, upload, requests, small_chunks
):
    write(tmp_path / "data", sidecar=sidecar)
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    view = ds.shuffle(0, block=None) if shuffle else ds
    for shown in (view, view["id"], view["text"]):
        requests.clear()
        html = shown._repr_html_()
        assert len(requests) <= preview.MAX_REQUESTS
        assert rows_of(html) or "values are not shown" in html


def test_an_expensive_preview_states_its_cost(
    tmp_path, upload, requests, small_chunks, monkeypatch
):
    write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")
    monkeypatch.setattr(preview, "MAX_DOWNLOAD", 10)
    requests.clear()
    html, cost = ds._repr_html_(), ds[:5].explain()
    assert requests == []
    assert "<tbody></tbody>" in html
    assert f"takes {cost.requests} request" in check_page(html).text
    assert "600 rows" in html


def test_errors_of_the_store_are_shown(tmp_path, upload, small_chunks, monkeypatch):
    write(tmp_path / "data")
    ds = npstream.open(upload(tmp_path / "data"), cache=tmp_path / "cache")

    def fail(self, spans):
        raise npstream.errors.StorageError("<no> network")

    monkeypatch.setattr(RemoteStore, "stream_bodies", fail)
    assert "StorageError: &lt;no&gt; network" in ds._repr_html_()
    check_page(ds["text"]._repr_html_())


def test_an_interrupt_is_not_caught(ds, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Fetcher, "read", interrupt, raising=False)
    monkeypatch.setattr("npstream.reading.source.Source.columns", interrupt)
    with pytest.raises(KeyboardInterrupt):
        repr(ds)


def test_a_preview_of_200_000_shards_takes_at_most_3_requests(tmp_path, upload, requests):
    write(tmp_path / "data", shard_size="1GB")
    url = publish_repeated_shard(tmp_path / "data", SHARDS, upload)
    ds = npstream.open(url, cache=tmp_path / "cache")
    assert (len(ds), len(ds.shards)) == (N * SHARDS, SHARDS)
    requests.clear()
    text, html = repr(ds), ds._repr_html_()
    assert len(requests) <= preview.MAX_REQUESTS
    assert "in 200,000 shards" in text
    assert len(rows_of(html)) == preview.HEAD_ROWS
    assert "text 4 xxxx" in html
    assert "... 120,000,000 rows" in html


def test_a_preview_computes_the_chunks_of_one_shard(tmp_path, upload, monkeypatch):
    write(tmp_path / "data", shard_size="1GB")
    url = publish_repeated_shard(tmp_path / "data", 1000, upload)
    ds = npstream.open(url, cache=tmp_path / "cache")
    shards = []

    def count(starts, *args):
        shards.append(len(starts) - 1)
        return shard_chunks(starts, *args)

    monkeypatch.setattr("npstream.reading.source.shard_chunks", count)
    repr(ds)
    ds._repr_html_()
    assert set(shards) == {1}


def test_publish_repeated_shard_makes_a_readable_dataset(tmp_path, upload):
    data = write(tmp_path / "data", shard_size="1GB")
    ds = npstream.open(publish_repeated_shard(tmp_path / "data", 2, upload), cache=tmp_path / "c")
    assert ds["text"][:N].load().to_list() == data["text"]
    assert json.loads((tmp_path / "data" / "index.json").read_text())["shards"][1:] == []
