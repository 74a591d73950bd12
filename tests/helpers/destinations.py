"""Helpers that write datasets with one distinct value, and check the files that were written."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
from servers import SERVER_KINDS

import npstream
from npstream.formats.index import INDEX
from npstream.storage.local import open_store

WRITABLE = [name for name in SERVER_KINDS if name != "http"]

SAMPLES = 24
SHARD = 300  # bytes; small, so that a dataset has several shards


def add(writing, value, samples=SAMPLES):
    for _ in range(samples):
        writing.write({"v": np.int64(value), "text": str(value)})


def write(url, options, value, **settings):
    """Write a dataset whose rows all have one value, and return the report."""
    return npstream.write(url, data(value), shard_size=SHARD, storage_options=options, **settings)


def data(value):
    return {"v": np.full(SAMPLES, value), "text": [str(value)] * SAMPLES}


def names(url, options=None):
    return sorted(name for name, _ in open_store(url, options).names())


def assert_published(url, options, value, cache):
    """Assert that a directory holds one complete dataset of one value, and no other files."""
    with npstream.open(url, storage_options=options, cache=cache) as ds:
        assert ds["v"].load().tolist() == [value] * SAMPLES
        assert set(ds["text"]) == {str(value)}
        shards = [name for shard in range(len(ds.shards)) for name in files(ds, shard)]
    assert npstream.verify_dataset(url, storage_options=options).problems == ()
    file_names = names(url, options)
    columns = [name for name in file_names if name.startswith("index.columns/")]
    assert len(columns) == 1
    assert file_names == sorted([INDEX, "index.msgpack", *columns, *shards])


def files(ds, shard):
    shard_files = ds._source.index.files(shard)
    return [(shard_files.zip_data or shard_files.data).name]


def assert_no_files(url, options=None):
    """Assert that a failed write left no files and no directory."""
    assert names(url, options) == []
    store = open_store(url, options)
    if store.is_local:
        assert not Path(url).exists()
    elif url.startswith("sftp"):
        filesystem, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
        assert not filesystem.exists(path)


def failing_samples():
    for _ in range(SAMPLES):
        yield {"v": np.int64(1), "text": "1"}
    raise ZeroDivisionError
