"""Helpers that append to datasets, and check the content."""

from __future__ import annotations

import numpy as np
from destinations import SHARD

import npstream


def append(url, options, values, **settings):
    """Append samples of these values, in several shards."""
    settings = {"shard_size": SHARD, "storage_options": options, **settings}
    data = {"v": np.array(values, np.int64), "text": [str(value) for value in values]}
    return npstream.write(url, data, mode="a", **settings)


def contents(url, options, cache, **settings):
    """Return the values of a dataset, after the check that its columns agree."""
    with npstream.open(url, storage_options=options, cache=cache, **settings) as ds:
        values = ds["v"].load().tolist()
        assert [int(text) for text in ds["text"]] == values
        return values


def assert_sound(url, options):
    assert npstream.verify_dataset(url, storage_options=options).problems == ()


def lacks_conditional_uploads(url):
    """Return True if the store of a URL has no conditional uploads."""
    return url.startswith("sftp")
