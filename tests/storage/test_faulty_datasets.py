"""Datasets on faulty servers: reads are retried, or raise an error that names the fault."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import (
    FOR_EVER,
    flip,
    reset,
    stall,
    status,
    truncate,
    wrong_length,
)
from faulty_stores import HANG, FaultyStore, on_every_server, on_web_servers
from servers import RemoteDirectory

import npstream
from npstream.errors import IntegrityError, StorageError

pytestmark = pytest.mark.usefixtures("short_pauses")

VALUES = np.arange(60_000).reshape(3000, 20)


@pytest.fixture
def dataset_location(faulty: FaultyStore, tmp_path: Path) -> RemoteDirectory:
    """Return the location of a dataset behind a faulty proxy."""
    npstream.write(tmp_path / "data", {"value": VALUES}, shard_size="128KiB")
    remote_dir = faulty.remote_dir.server.new_directory()
    for file in (tmp_path / "data").iterdir():
        remote_dir.put(file.name, file.read_bytes())
    return remote_dir.with_proxy(faulty.proxy)


@pytest.fixture
def dataset(
    faulty: FaultyStore, dataset_location: RemoteDirectory, tmp_path: Path
) -> Callable[..., npstream.Dataset]:
    """Return a function that opens the dataset with an empty cache."""

    def open_dataset(**settings: Any) -> npstream.Dataset:
        settings |= {
            "cache": tmp_path / "cache",
            "storage_options": dataset_location.storage_options,
        }
        ds = npstream.open(dataset_location.url, **settings)
        faulty.proxy.clear()
        return ds

    return open_dataset


@on_web_servers
def test_a_dataset_is_read_despite_many_faults(
    faulty: FaultyStore, dataset: Callable[..., npstream.Dataset]
):
    ds = dataset(timeout=120.0)
    shards = {"path": ".mds", "method": "GET"}
    faulty.proxy.faults = [
        status(503, times=2, **shards),
        flip(50_000, times=2, **shards),
        truncate(1000, **shards),
        reset(**shards),
        reset(2000, **shards),
        wrong_length(3000, **shards),
    ]
    assert np.array_equal(ds["value"].load(), VALUES)
    assert faulty.statuses().count(503) == 2


@on_web_servers
def test_damaged_samples_raise_integrity_error(
    faulty: FaultyStore, dataset: Callable[..., npstream.Dataset]
):
    ds = dataset(timeout=60.0, retries=1)
    faulty.proxy.faults = [flip(50_000, times=FOR_EVER, path=".mds")]
    with pytest.raises(IntegrityError, match=r"shard\.\d+\.mds"):
        ds["value"].load()
    faulty.proxy.faults = []
    assert np.array_equal(ds["value"].load(), VALUES)


@on_web_servers
def test_a_shard_that_is_replaced_while_the_dataset_is_open_raises(
    faulty: FaultyStore,
    dataset_location: RemoteDirectory,
    dataset: Callable[..., npstream.Dataset],
    tmp_path: Path,
):
    ds = dataset(timeout=60.0, retries=1)
    shard = sorted((tmp_path / "data").glob("*.mds"))[1]
    npstream.write(tmp_path / "other", {"value": VALUES + 1}, shard_size="128KiB")
    other = (tmp_path / "other" / shard.name).read_bytes()
    assert np.array_equal(ds["value"][:10].load(), VALUES[:10])
    dataset_location.put(shard.name, other)
    with pytest.raises(IntegrityError, match=shard.name):
        ds["value"].load()
    dataset_location.put(shard.name, other[:50_000])
    with pytest.raises((IntegrityError, StorageError), match=shard.name):
        ds["value"].load()
    dataset_location.put(shard.name, shard.read_bytes())
    assert np.array_equal(ds["value"].load(), VALUES)


@on_web_servers
def test_a_dataset_raises_while_its_server_fails(
    faulty: FaultyStore, dataset: Callable[..., npstream.Dataset]
):
    ds = dataset(timeout=60.0, retries=1)
    for fault in (status(503, times=FOR_EVER), reset(1000, times=FOR_EVER)):
        faulty.proxy.faults = [fault]
        with pytest.raises(StorageError, match=r"after \d attempts in .*shard\.\d+\.mds"):
            ds["value"].load()
    faulty.proxy.faults = []
    assert np.array_equal(ds["value"].load(), VALUES)


@on_every_server
def test_closing_a_dataset_cancels_pending_requests(
    faulty: FaultyStore, dataset: Callable[..., npstream.Dataset]
):
    ds = dataset(timeout=10 * HANG)
    faulty.proxy.faults = [stall(times=FOR_EVER)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        load_future = pool.submit(ds["value"].load)
        while not faulty.proxy.log:
            assert not load_future.done()
            time.sleep(0.01)
        ds.close()
        with pytest.raises((StorageError, ValueError), match=r"was stopped|is closed"):
            load_future.result(HANG)
