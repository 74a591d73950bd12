"""The file of a partly cached shard: pieces, claims, and waiting for them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from cached_files import CONTENT, KEY, PIECE, PIECES, add, key, open_file, read, start_process

# Pieces


def test_pieces_are_added_and_discarded_one_by_one(cache):
    file = open_file(cache)
    assert file.resident.tolist() == [0, 0, 0, 0]
    add(file, [2])
    assert file.resident.tolist() == [0, 0, 1, 0]
    assert read(file, 2) == CONTENT[2 * PIECE : 3 * PIECE]
    again = open_file(cache)
    assert again.resident.tolist() == [0, 0, 1, 0]
    add(again, [0, 1])
    assert file.resident.tolist() == [1, 1, 1, 0]
    assert read(file, 0) == CONTENT[:PIECE]
    file.discard([2])
    assert again.resident.tolist() == [1, 1, 0, 0]


def test_arrays_of_a_cached_file_are_read_only(cache):
    file = open_file(cache)
    assert not file.data.flags.writeable
    assert not file.resident.flags.writeable
    assert (len(file.data), len(file.resident)) == (len(CONTENT), PIECES)


def test_absent_pieces_take_no_disk_space(cache):
    big = cache.open(KEY, 1 << 30, 257)
    assert cache.info().nbytes < 1 << 16
    assert big.put(1 << 29, b"x" * 5000)
    assert 5000 <= cache.info().nbytes < 1 << 17


def test_writes_beyond_the_shard_raise(cache):
    file = open_file(cache)
    for offset, nbytes in ((-1, 1), (0, len(CONTENT) + 1), (len(CONTENT), 1)):
        with pytest.raises(ValueError, match="of a shard of 40,000"):
            file.put(offset, bytes(nbytes))
    for piece in (-1, PIECES):
        with pytest.raises(IndexError, match=f"piece {piece} of 4"):
            file.commit([piece])
    assert open_file(cache).resident.tolist() == [0, 0, 0, 0]


def test_cached_files_keep_no_descriptor(cache):
    files = [open_file(cache, key(number)) for number in range(50)]
    for file in files:
        add(file, [0])
    targets = []
    for descriptor in os.listdir("/dev/fd"):
        with suppress(FileNotFoundError):  # that of the listing, and those of other threads
            targets.append(os.readlink(f"/dev/fd/{descriptor}"))
    assert not [target for target in targets if target.startswith(str(cache.directory))]


def test_bytes_are_written_at_an_offset(cache):
    file = cache.open(KEY, 10_000, 1)
    body = np.random.default_rng(0).bytes(9_000)
    assert file.put(1_000, memoryview(body))
    assert file.put(0, bytes(1_000))
    assert file.put(5, b"")
    assert file.data.tobytes() == bytes(1_000) + body
    with pytest.raises(ValueError, match="9,000 bytes at 1,001 of a shard of 10,000"):
        file.put(1_001, body)


def test_a_shard_without_bytes(cache):
    file = cache.open(KEY, 0, 1)
    assert file.put(0, b"")
    assert file.commit([0])
    assert len(file.data) == 0
    assert cache.open(KEY, 0, 1).resident.tolist() == [1]


# Claims


def test_a_piece_has_one_claim(cache):
    file, other = open_file(cache), open_file(cache)
    add(file, [3])
    with file.lock([0, 1, 3]) as claim:
        assert claim.pieces == [0, 1]
        with other.lock(range(PIECES)) as second:
            assert second.pieces == [2]
        with other.lock([0]) as third:
            assert third.pieces == []
    with other.lock(np.arange(PIECES)) as claim:
        assert claim.pieces == [0, 1, 2]


def test_a_wait_for_a_piece_ends_at_the_timeout(cache):
    file = open_file(cache)
    start = time.monotonic()
    with file.lock([1]):
        file.wait([0, 2], 60)  # returns at once, because these pieces are not claimed
        file.wait([1], 0.1)
    assert time.monotonic() - start >= 0.1


@pytest.mark.parametrize("event", ["commit", "close", "evict", "remove"])
def test_a_wait_for_a_piece_ends_with_the_claim(cache, event):
    file, waiter = open_file(cache), open_file(cache)
    claim = file.lock([1])
    thread = threading.Thread(target=waiter.wait, args=([1], 60))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    if event == "commit":
        add(file, [1])
    elif event == "evict":
        cache.clear()
        claim.close()
    elif event == "remove":
        shutil.rmtree(cache.directory)
        claim.close()
    else:
        claim.close()
    thread.join(60)
    assert not thread.is_alive()
    claim.close()


def test_threads_fetch_a_piece_once(cache):
    fetched = []

    def work() -> None:
        file = open_file(cache)
        for piece in range(PIECES):
            with file.lock([piece]) as claim:
                if claim.pieces:
                    fetched.append(piece)
                    time.sleep(0.01)
                    add(file, [piece])
            file.wait([piece], 60)
            assert read(file, piece) == CONTENT[piece * PIECE : (piece + 1) * PIECE]

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(fetched) == list(range(PIECES))


def test_processes_fetch_a_piece_once(cache):
    code = """
for piece in range(4):
    with file.lock([piece]) as claim:
        if claim.pieces:
            print(piece, flush=True)
            time.sleep(0.02)
            file.put(piece * 10_000, bytes(10_000))
            file.commit([piece])
    file.wait([piece], 60)
    assert file.resident[piece]
"""
    processes = [start_process(cache, code) for _ in range(3)]
    fetched = [line for process in processes for line in process.communicate()[0].split()]
    assert sorted(fetched) == ["0", "1", "2", "3"]
    assert [process.returncode for process in processes] == [0, 0, 0]
