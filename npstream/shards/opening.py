"""Provide `open_shards`, which opens the shards of a dataset in any store.

Tested in tests/dataset/test_opening.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from npstream.shards.local import LocalShards
from npstream.shards.manifest import read_manifest
from npstream.storage.local import LocalStore

if TYPE_CHECKING:
    import os

    from npstream.cache.cache import ShardCache
    from npstream.shards.base import Verify
    from npstream.storage.local import Store

CacheSettings: TypeAlias = "tuple[str | os.PathLike[str] | None, int | str | None]"
"""The directory of a cache, and its limit."""


def open_cache(store: Store, settings: CacheSettings) -> ShardCache | None:
    """Return the cache of a store; None for a local one, which needs none."""
    if isinstance(store, LocalStore):
        return None
    from npstream.cache.cache import ShardCache

    return ShardCache(*settings, store.timeout)


def open_shards(
    store: Store,
    cache: ShardCache | None,
    verify: Verify,
    sidecar_store: Store | None = None,
    version: str | None = None,
) -> LocalShards:
    """Read the index of a dataset, and return its shards.

    Parameters
    ----------
    store : LocalStore or RemoteStore
    cache : ShardCache or None
        The result of `open_cache`.
    verify : bool or str
        As for `npstream.open`.
    sidecar_store : LocalStore or RemoteStore, optional
        The store of the side-car, if it is not next to the index.
    version : str, optional
        The fingerprint of an older index; by default the newest.
    """
    manifest = read_manifest(store, cache, sidecar_store, version, verify is True)
    if isinstance(store, LocalStore):
        shards = LocalShards(manifest.index, store, verify, manifest.snapshot)
    else:
        from npstream.shards.remote import RemoteShards
        from npstream.shards.residency import RemoteFiles

        assert cache is not None
        files = RemoteFiles(
            manifest.index, store.identity, cache, manifest.identity, manifest.sidecar,
            strict=verify not in (False, "auto"),
        )  # fmt: skip
        if cache.limit is not None:
            cache.require(files.min_cache_bytes())
            cache.trim()
        shards = RemoteShards(store, files, verify, manifest.snapshot)
    if isinstance(verify, str) and verify != "auto" and len(shards.index):
        shards.require_hash(verify)
    return shards
