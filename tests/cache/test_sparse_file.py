"""A file of the cache: what is not ours, footers, and checks after the system started anew."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from cached_files import (
    CONTENT,
    KEY,
    OTHER,
    PIECE,
    PIECES,
    add,
    can_reserve,
    open_file,
    read,
    start_process,
)

import npstream
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import CachedFile

# Files that are not what they should be.


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: bytes(len(content) - 1),
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content.replace(b"npcache", b"npcbche"),
    ],
    ids=["empty", "zeros", "shorter", "longer", "magic"],
)
def test_a_file_without_our_footer_is_neither_used_nor_touched(cache, damage):
    add(open_file(cache))
    path = Path(cache.directory, f"{KEY}.shard")
    content = damage(path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert can_reserve(cache, 100 << 20)
    cache.clear()
    assert path.read_bytes() == content


def test_another_shape_is_another_file(cache):
    open_file(cache)
    assert cache.open(KEY, len(CONTENT), PIECES + 1) is None
    assert cache.open(KEY, len(CONTENT) - 1, PIECES + 1) is None
    os.rename(Path(cache.directory, f"{KEY}.shard"), Path(cache.directory, f"{OTHER}.shard"))
    assert cache.open(OTHER, len(CONTENT), PIECES) is None


def test_a_link_is_not_followed(cache, tmp_path):
    (tmp_path / "target").write_bytes(b"mine")
    os.symlink(tmp_path / "target", Path(cache.directory, f"{KEY}.shard"))
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    cache.clear()
    assert (tmp_path / "target").read_bytes() == b"mine"


# Trouble.


def test_a_file_that_may_not_grow(cache):
    """The limit of file sizes, which every user may set, stands for any disk that is full."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print(file.put(0, bytes(10_000)), file.put(20_000, bytes(10_000)))
"""
    assert start_process(cache, code).communicate()[0] == "True False\n"


def test_a_file_vanishes_before_it_has_its_name(cache, monkeypatch):
    """A sweep may come before a temporary file is locked."""
    link, left = os.link, [True, True]

    def vanished(source: str, target: str, **options: object) -> None:
        if left and left.pop():
            os.unlink(source)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", vanished)
    add(open_file(cache))
    assert left == []

    rename, again = os.rename, [True]

    def gone(source: str, target: str) -> None:
        if again and again.pop():
            os.unlink(source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", gone)
    assert cache.store(KEY, b"object")
    assert again == []


def test_without_hard_links(cache, monkeypatch):
    def link(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    add(open_file(cache))
    assert open_file(cache).resident.all()
    assert sorted(os.listdir(cache.directory)) == [".lock", f"{KEY}.shard"]


# After the system has started anew.


def test_after_a_boot_pieces_are_checked_once(cache, reboot):
    add(open_file(cache), [0, 2, 3])
    with open(Path(cache.directory, f"{KEY}.shard"), "r+b") as file:
        file.seek(2 * PIECE)
        file.write(b"damage")
    reboot()
    asked = []

    def check(file: CachedFile, piece: int) -> bool:
        asked.append(piece)
        return read(file, piece) == CONTENT[piece * PIECE : (piece + 1) * PIECE]

    assert open_file(cache, check=check).resident.tolist() == [1, 0, 0, 1]
    assert open_file(cache, check=check).resident.tolist() == [1, 0, 0, 1]
    assert open_file(cache).resident.tolist() == [1, 0, 0, 1]
    assert asked == [0, 2, 3]
    reboot()
    assert open_file(cache).resident.tolist() == [0, 0, 0, 0]


def test_a_check_that_fails_leaves_the_file_to_the_next(cache, reboot):
    add(open_file(cache))
    reboot()

    def check(file: CachedFile, piece: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_file(cache, check=check)
    assert open_file(cache, check=lambda file, piece: piece != 1).resident.tolist() == [1, 0, 1, 1]


def test_all_wait_for_one_check(cache, reboot):
    add(open_file(cache))
    reboot()
    begun, go_on, asked = threading.Event(), threading.Event(), []

    def check(file: CachedFile, piece: int) -> bool:
        asked.append(piece)
        begun.set()
        return go_on.wait(60)

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(open_file(cache, check=check).resident.sum()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go_on.set()
    for thread in threads:
        thread.join()
    assert asked == list(range(PIECES))
    assert found == [PIECES] * 3


@pytest.mark.parametrize("hashed", [True, False])
def test_a_power_failure_takes_the_footer(cache, reboot, hashed):
    """A file's name may reach the disk before its tail does."""
    add(open_file(cache), [0, 1, 2])
    with open(Path(cache.directory, f"{KEY}.shard"), "r+b") as file:
        file.seek(len(CONTENT) + 2)
        file.write(bytes(os.fstat(file.fileno()).st_size - len(CONTENT) - 2))
    reboot()
    check = (lambda file, piece: True) if hashed else None
    for _ in range(2):
        assert open_file(cache, check=check).resident.tolist() == 2 * [int(hashed)] + [0, 0]
    add(open_file(cache), [3])
    assert cache.clear() > 0
    assert npstream.cache.info(cache.directory).files == 0


def test_the_boot_has_a_number():
    assert len(sparse.boot_id()) == 16
    code = "from npstream.cache import sparse_file; print(sparse_file.boot_id().hex())"
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(npstream.__file__).parents[1],
    )
    assert bytes.fromhex(other.stdout) == sparse.boot_id()
