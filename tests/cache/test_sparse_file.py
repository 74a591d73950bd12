"""Files of the cache: invalid footers, faults while writing, and verification after a boot."""

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

# Invalid files


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
def test_files_without_a_valid_footer_are_neither_used_nor_changed(cache, damage):
    add(open_file(cache))
    path = Path(cache.directory, f"{KEY}.shard")
    content = damage(path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert can_reserve(cache, 100 << 20)
    cache.clear()
    assert path.read_bytes() == content


def test_a_file_of_another_size_or_key_is_not_opened(cache):
    open_file(cache)
    assert cache.open(KEY, len(CONTENT), PIECES + 1) is None
    assert cache.open(KEY, len(CONTENT) - 1, PIECES + 1) is None
    os.rename(Path(cache.directory, f"{KEY}.shard"), Path(cache.directory, f"{OTHER}.shard"))
    assert cache.open(OTHER, len(CONTENT), PIECES) is None


def test_symbolic_links_are_not_followed(cache, tmp_path):
    (tmp_path / "target").write_bytes(b"mine")
    os.symlink(tmp_path / "target", Path(cache.directory, f"{KEY}.shard"))
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    cache.clear()
    assert (tmp_path / "target").read_bytes() == b"mine"


# Faults while writing


def test_put_returns_false_at_the_limit_of_file_sizes(cache):
    """A limit on file sizes simulates a full disk."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print(file.put(0, bytes(10_000)), file.put(20_000, bytes(10_000)))
"""
    assert start_process(cache, code).communicate()[0] == "True False\n"


def test_a_temporary_file_that_vanishes_is_written_again(cache, monkeypatch):
    """A sweep may remove a temporary file before it is locked."""
    link, removals = os.link, [True, True]

    def remove_and_link(source: str, target: str, **options: object) -> None:
        if removals and removals.pop():
            os.unlink(source)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", remove_and_link)
    add(open_file(cache))
    assert removals == []

    rename, rename_removals = os.rename, [True]

    def remove_and_rename(source: str, target: str) -> None:
        if rename_removals and rename_removals.pop():
            os.unlink(source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", remove_and_rename)
    assert cache.store(KEY, b"object")
    assert rename_removals == []


def test_a_file_is_created_without_hard_links(cache, monkeypatch):
    def link(*_arguments: object, **_options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    add(open_file(cache))
    assert open_file(cache).resident.all()
    assert sorted(os.listdir(cache.directory)) == [".lock", f"{KEY}.shard"]


def test_pieces_can_be_locked_while_the_creator_has_its_lock(cache, monkeypatch):
    """Otherwise two processes could fail to lock the same piece, and both would download it."""
    link, locked_pieces = sparse._link, []

    def link_and_lock(source: str, target: str) -> None:
        link(source, target)
        monkeypatch.undo()
        with open_file(cache).lock(range(PIECES)) as claim:
            locked_pieces.extend(claim.pieces)

    monkeypatch.setattr(sparse, "_link", link_and_lock)
    open_file(cache)
    assert locked_pieces == list(range(PIECES))


# After a boot


def test_pieces_are_verified_once_after_a_boot(cache, reboot):
    add(open_file(cache), [0, 2, 3])
    with open(Path(cache.directory, f"{KEY}.shard"), "r+b") as file:
        file.seek(2 * PIECE)
        file.write(b"damage")
    reboot()
    checked = []

    def check(file: CachedFile, piece: int) -> bool:
        checked.append(piece)
        return read(file, piece) == CONTENT[piece * PIECE : (piece + 1) * PIECE]

    assert open_file(cache, check=check).resident.tolist() == [1, 0, 0, 1]
    assert open_file(cache, check=check).resident.tolist() == [1, 0, 0, 1]
    assert open_file(cache).resident.tolist() == [1, 0, 0, 1]
    assert checked == [0, 2, 3]
    reboot()
    # Without `check`, no piece can be verified, so all count as absent.
    assert open_file(cache).resident.tolist() == [0, 0, 0, 0]


def test_an_interrupted_verification_is_repeated(cache, reboot):
    add(open_file(cache))
    reboot()

    def check(file: CachedFile, piece: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_file(cache, check=check)
    assert open_file(cache, check=lambda file, piece: piece != 1).resident.tolist() == [1, 0, 1, 1]


def test_threads_wait_for_one_verification(cache, reboot):
    add(open_file(cache))
    reboot()
    has_begun, may_continue, checked = threading.Event(), threading.Event(), []

    def check(file: CachedFile, piece: int) -> bool:
        checked.append(piece)
        has_begun.set()
        return may_continue.wait(60)

    counts = []
    threads = [
        threading.Thread(target=lambda: counts.append(open_file(cache, check=check).resident.sum()))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert has_begun.wait(60)
    may_continue.set()
    for thread in threads:
        thread.join()
    assert checked == list(range(PIECES))
    assert counts == [PIECES] * 3


@pytest.mark.parametrize("hashed", [True, False])
def test_a_file_whose_footer_was_lost_is_verified(cache, reboot, hashed):
    """A file's name may reach the disk before its tail: the residency bytes and the footer.

    Here, only the residency bytes of the first two pieces reached the disk.
    """
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


def test_boot_ids_are_equal_in_all_processes():
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
