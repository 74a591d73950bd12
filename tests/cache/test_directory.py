"""The directory of the cache: defaults, owners, permissions and file systems."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cached_files import (
    CONTENT,
    KEY,
    OTHER,
    PIECE,
    PIECES,
    add,
    can_reserve,
    exit_code_of,
    open_file,
    read,
)
from crash_cache import in_child

import npstream
from npstream._core import memory
from npstream.cache import directory as cache_dir
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import CachedFile, ShardCache
from npstream.errors import StorageError

# Owners and file types


def give_away(path: str | Path, monkeypatch) -> None:
    """Change the owner of a file, or simulate another user."""
    if os.geteuid() == 0:
        os.chown(path, 54_321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54_321)


def test_files_of_other_users_are_not_used(cache, monkeypatch, caplog):
    add(open_file(cache))
    cache.store(OTHER, b"object")
    for name in (f"{KEY}.shard", f"{OTHER}.stored"):
        give_away(Path(cache.directory, name), monkeypatch)
    with caplog.at_level(logging.INFO, "npstream"):
        assert cache.open(KEY, len(CONTENT), PIECES) is None
        assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert caplog.text.count("this file belongs to another user") == 1
    assert cache.load(OTHER) is None
    cache.clear()
    assert len(list(Path(cache.directory).glob("*.s*"))) == 2  # both files stay


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    give_away(tmp_path / "theirs", monkeypatch)
    with pytest.raises(StorageError, match=r"belongs to user .* Choose another with cache="):
        ShardCache(tmp_path / "theirs")


def test_a_file_as_the_cache_directory_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be the cache's directory"):
        ShardCache(tmp_path / "file")


# Permissions


def run_unprivileged(function: Callable[[], None]) -> None:
    """Run a function in a process without root privileges."""

    def child() -> None:
        if os.geteuid() == 0:
            os.setgid(65_534)
            os.setuid(65_534)
        function()

    assert exit_code_of(in_child(child)) == 0


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Make a directory that every user can access, unlike the directories of pytest."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def test_a_read_only_cache_serves_its_pieces(open_directory):
    cache = ShardCache(open_directory, "100MB")
    add(open_file(cache), [1])
    cache.store(OTHER, b"object")
    for path in open_directory.iterdir():
        path.chmod(0o444)
    open_directory.chmod(0o555)

    def use(boot_id: bytes | None, check: Callable[[CachedFile, int], bool] | None) -> None:
        """Use the cache, after a reboot if `boot_id` is given.

        Pieces that were cached before a reboot are trusted only if `check` verifies them.
        """
        if boot_id is not None:
            sparse.boot_id = lambda: boot_id
        cache = ShardCache(open_directory, "100MB")
        file = open_file(cache, check=check)
        trusted = boot_id is None or check is not None
        assert file.resident.tolist() == [0, int(trusted), 0, 0]
        if trusted:
            assert read(file, 1) == CONTENT[PIECE : 2 * PIECE]
        with file.lock(range(PIECES)) as claim:
            assert claim.pieces == []
        file.wait(range(PIECES), 60)
        assert not file.put(0, b"x")
        assert not file.commit([0])
        cache.touch(file)
        cache.mark_finished(file)
        assert cache.load(OTHER) == b"object"
        assert cache.open(KEY[::-1], 1, 1) is None
        assert not cache.store(KEY, b"x")
        assert not can_reserve(cache, 200 << 20)
        with pytest.raises(PermissionError, match="the cache was not emptied"):
            cache.clear()

    run_unprivileged(lambda: use(None, None))
    run_unprivileged(lambda: use(bytes(16), None))
    run_unprivileged(lambda: use(bytes(16), lambda file, piece: True))


def test_a_directory_that_cannot_be_created_disables_caching(open_directory, caplog):
    open_directory.chmod(0o555)

    def use() -> None:
        with caplog.at_level(logging.INFO, "npstream"):
            cache = ShardCache(open_directory / "below")
            assert cache.open(KEY, 1, 1) is None
            assert not cache.store(KEY, b"")
            assert cache.load(KEY) is None
        assert "cannot make the directory (Permission denied)" in caplog.text

    run_unprivileged(use)


# Defaults and file systems


def test_the_default_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("NPSTREAM_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir.default_directory() == str(tmp_path / ".cache/npstream")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir.default_directory() == str(tmp_path / "xdg/npstream")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir.default_directory() == str(tmp_path / ".cache/npstream")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir.default_directory() == str(tmp_path / "Library/Caches/npstream")
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))
    assert ShardCache().directory == str(tmp_path / "cache")
    assert ShardCache(tmp_path / "argument").directory == str(tmp_path / "argument")
    assert os.stat(tmp_path / "cache").st_mode & 0o777 == 0o700


def test_the_default_directory_without_a_home(tmp_path, monkeypatch):
    monkeypatch.delenv("NPSTREAM_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert cache_dir.default_directory() == str(tmp_path / f"npstream-{os.geteuid()}")


def test_limits_from_arguments_and_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("NPSTREAM_CACHE_LIMIT", raising=False)
    assert ShardCache(tmp_path).limit is None
    assert ShardCache(tmp_path, "1.5GB").limit == 3 << 29
    monkeypatch.setenv("NPSTREAM_CACHE_LIMIT", "2KB")
    assert ShardCache(tmp_path).limit == npstream.cache.info(tmp_path).limit == 2048
    assert ShardCache(tmp_path, "auto").limit is None
    assert ShardCache(tmp_path, 77).limit == 77
    with pytest.raises(ValueError, match="cannot read the size 'much'"):
        ShardCache(tmp_path, "much")


def test_each_host_has_its_own_directory_on_a_network_file_system(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_dir, "_network_type", lambda path: "NFS")
    with pytest.warns(RuntimeWarning, match="the cache is on NFS, which is slow"):
        cache = ShardCache(tmp_path / "shared")
    assert os.path.dirname(cache.directory) == str(tmp_path / "shared")
    add(open_file(cache))
    ShardCache(tmp_path / "shared")  # the second time it does not warn
    assert npstream.cache.info(tmp_path / "shared").files == 1


def test_local_file_systems_are_not_network_types(tmp_path, monkeypatch):
    assert cache_dir._network_type(str(tmp_path)) is None
    # ext4, tmpfs, Btrfs, XFS and OverlayFS, as statfs(2) numbers them.
    local_types = {0xEF53, 0x01021994, 0x9123683E, 0x58465342, 0x794C7630}
    assert local_types.isdisjoint(cache_dir._NETWORK_TYPES)


def test_nothing_is_cached_if_memory_maps_do_not_show_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "map_shared", lambda descriptor, path: np.zeros(6, np.uint8))
    with pytest.warns(RuntimeWarning, match="nothing is cached, since maps do not show"):
        cache = ShardCache(tmp_path)
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert cache.store(KEY, b"object")
