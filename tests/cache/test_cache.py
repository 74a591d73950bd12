"""The cache: what is kept, what is shared, what goes, and what nothing can break."""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import itertools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import crash_cache
import numpy as np
import pytest
from crash_cache import in_child

import npstream
from npstream.__main__ import main
from npstream._core import memory
from npstream.cache import directory as folder
from npstream.cache import eviction as room
from npstream.cache import locks
from npstream.cache import sparse_file as sparse
from npstream.cache.cache import Cache, CachedFile, Refusal
from npstream.errors import StorageError

KEY, OTHER = "0123456789abcdef", "f" * 64
PIECE, PIECES = 10_000, 4
CONTENT = np.random.default_rng(0).bytes(PIECE * PIECES)
FILE = 40_960  # what a file with all its pieces takes on a disk with blocks of 4 KiB


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(folder, "_said", set())
    monkeypatch.setattr(folder, "_examined", {})


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache", "100MB")


def opened(cache: Cache, key: str = KEY, **options) -> CachedFile:
    file = cache.open(key, len(CONTENT), PIECES, **options)
    assert file is not None
    return file


def add(file: CachedFile, pieces=range(PIECES)) -> None:
    for piece in pieces:
        assert file.put(piece * PIECE, CONTENT[piece * PIECE : (piece + 1) * PIECE])
    assert file.commit(pieces)


def read(file: CachedFile, piece: int) -> bytes:
    assert file.resident[piece]
    return file.data[piece * PIECE : (piece + 1) * PIECE].tobytes()


def filled(cache: Cache, key: str, age: float = 0) -> CachedFile:
    """Return a file with all its pieces, last used some seconds ago."""
    file = opened(cache, key)
    assert has_room(cache, len(CONTENT))
    add(file)
    then = time.time() - age
    os.utime(file.path, (then, then))
    return file


def has_room(cache: Cache, nbytes: int, keep: Iterable[CachedFile] = ()) -> bool:
    """Reserve bytes, give them up, and return whether that was possible."""
    found = cache.reserve(nbytes, keep)
    if isinstance(found, Refusal):
        return False
    found.close()
    return True


def key(number: int) -> str:
    return f"{number:016x}"


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


PRELUDE = f"""
import sys, time
from npstream.cache import Cache
directory = sys.argv[1]
cache = Cache(directory, "100MB")
file = cache.open({KEY!r}, {len(CONTENT)}, {PIECES})
"""


def program(cache: Cache, code: str) -> subprocess.Popen[str]:
    """Start another process, with a file of the cache open."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, cache.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(npstream.__file__).parents[1],
    )


# What is kept.


def test_pieces_come_one_by_one(cache):
    file = opened(cache)
    assert file.resident.tolist() == [0, 0, 0, 0]
    add(file, [2])
    assert file.resident.tolist() == [0, 0, 1, 0]
    assert read(file, 2) == CONTENT[2 * PIECE : 3 * PIECE]
    again = opened(cache)
    assert again.resident.tolist() == [0, 0, 1, 0]
    add(again, [0, 1])
    assert file.resident.tolist() == [1, 1, 1, 0]
    assert read(file, 0) == CONTENT[:PIECE]
    file.discard([2])
    assert again.resident.tolist() == [1, 1, 0, 0]


def test_nothing_but_files_can_be_written_through(cache):
    file = opened(cache)
    assert not file.data.flags.writeable
    assert not file.resident.flags.writeable
    assert (len(file.data), len(file.resident)) == (len(CONTENT), PIECES)


def test_absent_pieces_take_no_room(cache):
    big = cache.open(KEY, 1 << 30, 257)
    assert cache.info().nbytes < 1 << 16
    assert big.put(1 << 29, b"x" * 5000)
    assert 5000 <= cache.info().nbytes < 1 << 17


def test_nothing_is_written_beyond_a_shard(cache):
    file = opened(cache)
    for offset, nbytes in ((-1, 1), (0, len(CONTENT) + 1), (len(CONTENT), 1)):
        with pytest.raises(ValueError, match="of a shard of 40,000"):
            file.put(offset, bytes(nbytes))
    for piece in (-1, PIECES):
        with pytest.raises(IndexError, match=f"piece {piece} of 4"):
            file.commit([piece])
    assert opened(cache).resident.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("wrong", ["", "abc", "../" + KEY, KEY.upper() + "A", "g" * 16, "0" * 65])
def test_keys_are_hexadecimal(cache, wrong):
    for call in (lambda: cache.open(wrong, 1, 1), lambda: cache.fetch(wrong)):
        with pytest.raises(ValueError, match="16 to 64 hexadecimal digits"):
            call()


def test_no_descriptor_is_kept(cache):
    before = os.listdir("/dev/fd")
    files = [opened(cache, key(number)) for number in range(50)]
    for file in files:
        add(file, [0])
    assert os.listdir("/dev/fd") == before


def test_a_shard_of_no_bytes(cache):
    file = cache.open(KEY, 0, 1)
    assert file.put(0, b"")
    assert file.commit([0])
    assert len(file.data) == 0
    assert cache.open(KEY, 0, 1).resident.tolist() == [1]


def test_a_cache_can_be_sent_to_other_processes(cache):
    import pickle

    add(opened(cache), [1])
    assert opened(pickle.loads(pickle.dumps(cache))).resident.tolist() == [0, 1, 0, 0]


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
    add(opened(cache))
    path = Path(cache.directory, f"{KEY}.shard")
    content = damage(path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert has_room(cache, 100 << 20)
    cache.clear()
    assert path.read_bytes() == content


def test_another_shape_is_another_file(cache):
    opened(cache)
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


def give_away(path: str | Path, monkeypatch) -> None:
    """Make a file another user's, or this process another user."""
    if os.geteuid() == 0:
        os.chown(path, 54_321, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 54_321)


def test_files_of_others_are_refused(cache, monkeypatch, caplog):
    add(opened(cache))
    cache.store(OTHER, b"object")
    for name in (f"{KEY}.shard", f"{OTHER}.stored"):
        give_away(Path(cache.directory, name), monkeypatch)
    with caplog.at_level(logging.INFO, "npstream"):
        assert cache.open(KEY, len(CONTENT), PIECES) is None
        assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert caplog.text.count("this file is another user's") == 1
    assert cache.fetch(OTHER) is None
    cache.clear()
    assert len(list(Path(cache.directory).glob("*.s*"))) == 2


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    give_away(tmp_path / "theirs", monkeypatch)
    with pytest.raises(StorageError, match=r"belongs to user .* choose another with cache="):
        Cache(tmp_path / "theirs")


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be the cache's directory"):
        Cache(tmp_path / "file")


# Locks.


def test_a_piece_is_claimed_once(cache):
    file, other = opened(cache), opened(cache)
    add(file, [3])
    with file.lock([0, 1, 3]) as claim:
        assert claim.pieces == [0, 1]
        with other.lock(range(PIECES)) as second:
            assert second.pieces == [2]
        with other.lock([0]) as third:
            assert third.pieces == []
    with other.lock(np.arange(PIECES)) as claim:
        assert claim.pieces == [0, 1, 2]


def test_a_wait_ends_when_time_is_up(cache):
    file = opened(cache)
    start = time.monotonic()
    with file.lock([1]):
        file.wait([0, 2], 60)
        file.wait([1], 0.1)
    assert 0.1 <= time.monotonic() - start < 30


@pytest.mark.parametrize("event", ["commit", "close", "evict", "remove"])
def test_a_wait_ends_with_what_it_waits_for(cache, event):
    file, waiter = opened(cache), opened(cache)
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
    thread.join(30)
    assert not thread.is_alive()
    claim.close()


def test_threads_fetch_a_piece_once(cache):
    fetched = []

    def work() -> None:
        file = opened(cache)
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
    running = [program(cache, code) for _ in range(3)]
    fetched = [line for process in running for line in process.communicate()[0].split()]
    assert sorted(fetched) == ["0", "1", "2", "3"]
    assert [process.returncode for process in running] == [0, 0, 0]


def test_a_killed_process_leaves_no_lock(cache):
    holder = program(cache, "claim = file.lock(range(4)); print(claim.pieces, flush=True); input()")
    assert holder.stdout.readline() == "[0, 1, 2, 3]\n"
    file = opened(cache)
    with file.lock([0]) as claim:
        assert claim.pieces == []
    threading.Timer(0.1, holder.kill).start()
    file.wait([0], 60)
    with file.lock([0]) as claim:
        assert claim.pieces == [0]
    holder.communicate()


def test_a_forked_child_neither_keeps_nor_breaks_locks(cache):
    file = opened(cache)
    (tried, done), (wait, release) = os.pipe(), os.pipe()

    def child() -> None:
        assert own.pieces == [0]
        own.close()  # which must not close whatever has the descriptor's number by now
        with file.lock([0]) as claim:
            assert claim.pieces == []
        with file.lock([1]) as claim:
            assert claim.pieces == [1]
        os.write(done, b"x")
        os.close(release)
        os.read(wait, 1)

    own = file.lock([0])
    forked = in_child(child)
    os.close(done)
    assert os.read(tried, 1) == b"x"
    with opened(cache).lock([0]) as claim:
        assert claim.pieces == []
    own.close()
    # The child lives, and the lock does not.
    with opened(cache).lock([0]) as claim:
        assert claim.pieces == [0]
    os.close(release)
    assert ended(forked) == 0
    os.close(wait)
    os.close(tried)


def test_forks_beside_threads_that_lock(cache):
    file = opened(cache)
    stop = threading.Event()

    def lock() -> None:
        while not stop.is_set():
            file.lock([0]).close()

    threads = [threading.Thread(target=lock) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert ended(in_child(lambda: file.lock([1]).close())) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def without_ranges(monkeypatch):
    monkeypatch.setattr(locks, "_ranges", False)


def test_without_locks_of_ranges_a_claim_takes_the_file(cache, without_ranges):
    file, other = opened(cache), opened(cache)
    with file.lock([0]) as claim:
        assert claim.pieces == [0]
        with other.lock([0, 1]) as second:
            assert second.pieces == []
        other.wait([0], 0.05)
        add(file, [0])
        other.wait([0], 60)
    other.wait([1], 60)
    with other.lock([0, 1]) as claim:
        assert claim.pieces == [1]


def test_without_any_locks_each_fetches_for_itself(cache, without_ranges, monkeypatch):
    def flock(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with opened(cache).lock([0]) as claim, opened(cache).lock([0]) as second:
        assert claim.pieces == second.pieces == [0]
    assert has_room(cache, 1)
    add(opened(cache))


def test_missing_locks_are_said_once(tmp_path, without_ranges, caplog):
    with caplog.at_level(logging.INFO, "npstream"):
        Cache(tmp_path / "a")
        Cache(tmp_path / "a")
    assert caplog.text.count("no locks of ranges here") == 1


# Room.


def test_least_recently_used_files_go_first(tmp_path):
    cache = Cache(tmp_path, 4 * FILE + FILE // 2)
    files = [filled(cache, key(number), age=100 - 10 * number) for number in range(4)]
    cache.touch(files[0])  # too soon to cost anything
    cache.finished(files[2])
    files[1].touched -= 60
    cache.touch(files[1])
    assert has_room(cache, PIECE)
    assert [file.alive for file in files] == [True, True, True, True]
    expected = [True, True, False, True], [False, True, False, True], [False, True, False, False]
    for number, alive in enumerate(expected, 1):
        assert has_room(cache, number * FILE)
        assert [file.alive for file in files] == alive


def test_a_file_that_is_opened_again_is_used_again(tmp_path):
    cache = Cache(tmp_path, 3 * FILE)
    filled(cache, key(1), age=50)
    cache.finished(filled(cache, key(2)))
    for number in (1, 2):
        cache.touch(opened(cache, key(number)))
        assert time.time() - os.stat(tmp_path / f"{key(number)}.shard").st_mtime < 40


def test_who_reads_an_evicted_file_misses_next(cache):
    file = filled(cache, KEY)
    data = file.data[:PIECE]
    assert cache.clear() >= len(CONTENT)
    assert file.resident.tolist() == [0, 0, 0, 0]
    assert data.tobytes() == CONTENT[:PIECE]
    assert not file.alive
    with file.lock([0]) as claim:
        assert claim.pieces == []
    file.wait([0], 60)
    assert not file.put(0, b"x")
    assert not file.commit([0])
    again = opened(cache)
    assert again.alive
    assert again.resident.tolist() == [0, 0, 0, 0]
    # The old file is not mistaken for the new one, which has its name.
    assert not file.alive
    assert not file.put(0, b"x")


def test_eviction_by_another_process(cache):
    file = filled(cache, KEY)
    other = program(cache, "print(cache.clear(), file.resident.sum())")
    removed, resident = other.communicate()[0].split()
    assert int(removed) >= len(CONTENT)
    assert resident == "0"
    assert not file.resident.any()
    assert not file.alive


def test_files_in_need_stay(tmp_path):
    cache = Cache(tmp_path, 3 * FILE)
    old, new = filled(cache, key(1), age=50), filled(cache, key(2))
    assert has_room(cache, 2 * FILE, keep=[old])
    assert (old.alive, new.alive) == (True, False)


def test_nothing_goes_for_what_never_fits(tmp_path):
    cache = Cache(tmp_path, 3 * FILE)
    old, new = filled(cache, key(1)), filled(cache, key(2))
    assert not has_room(cache, 3 * FILE + 1)
    assert not has_room(cache, 2 * FILE + FILE // 2, keep=[old])
    assert old.alive
    assert new.alive


def test_a_file_that_is_not_ours_does_not_stop_eviction(tmp_path):
    cache = Cache(tmp_path, 3 * FILE)
    foreign = tmp_path / f"{key(9)}.shard"
    foreign.write_bytes(bytes(FILE))
    os.utime(foreign, (0, 0))
    files = [filled(cache, key(1)), filled(cache, key(2))]
    assert has_room(cache, 2 * FILE)
    assert [file.alive for file in files].count(True) <= 1
    assert foreign.read_bytes() == bytes(FILE)


def test_files_are_counted_only_when_room_runs_out(tmp_path, monkeypatch):
    counted = []
    entries = folder.entries
    monkeypatch.setattr(folder, "entries", lambda path: counted.append(path) or entries(path))
    cache = Cache(tmp_path, "10MB")
    for _ in range(100):
        assert has_room(cache, 100_000)
    assert len(counted) == 1
    # What was promised and never written does not count for ever.
    for _ in range(100):
        assert has_room(cache, 100_000)
    assert len(counted) == 2


def test_automatic_limit_leaves_a_tenth_of_the_disk(tmp_path, monkeypatch):
    cache = Cache(tmp_path, "auto")
    file = filled(cache, KEY)
    free = 1 << 20
    monkeypatch.setattr(room, "free_and_total", lambda path: (free, 5 << 20))
    assert has_room(cache, 1 << 19)
    assert file.alive
    assert cache.info().limit == cache.info().nbytes + (1 << 19)
    assert has_room(cache, (1 << 19) + 1)
    assert not file.alive
    # Others fill the disk: the cache gives way, and keeps nothing more.
    file = filled(cache, KEY)
    free = 0
    assert not has_room(cache, 1)
    assert not file.alive


def test_a_limit_that_is_too_small_says_the_least_that_would_do(tmp_path):
    cache = Cache(tmp_path, "1MB")
    cache.require(1 << 20)
    with pytest.raises(ValueError, match=r"1,048,576 bytes, and this needs at least 1,048,577"):
        cache.require((1 << 20) + 1)


def test_no_room_means_no_file(tmp_path):
    cache = Cache(tmp_path, 100)
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert not cache.store(KEY, b"object")


@contextlib.contextmanager
def held(path: str | Path) -> Iterator[None]:
    """Hold a lock as another process does that was stopped."""
    with locks.Description(str(path), os.O_RDWR | os.O_CREAT) as descriptor:
        assert locks.try_lock(descriptor)
        yield


def test_a_lock_that_is_never_let_go(tmp_path, monkeypatch, caplog):
    cache = Cache(tmp_path, "1MB", timeout=0.05)
    waits = []
    wait = locks.wait_until
    monkeypatch.setattr(locks, "wait_until", lambda done, t: waits.append(t) or wait(done, t))
    with held(tmp_path / ".lock"), caplog.at_level(logging.INFO, "npstream"):
        for _ in range(3):
            assert cache.reserve(1) is Refusal.LOCKED
        assert cache.reserve(1, may_exceed=True, timeout=7.0) is Refusal.LOCKED
        assert cache.open(KEY, len(CONTENT), PIECES) is None
        assert not cache.store(OTHER, b"object")
        cache.trim()
        with pytest.raises(TimeoutError, match=r"holds its lock: the cache was not emptied"):
            cache.clear()
        with pytest.raises(TimeoutError, match=r"holds its lock"):
            npstream.cache.clear(tmp_path, timeout=0.05)
    assert "which may have been stopped, holds its lock: reading on without" in caplog.text
    # The time is up once, and not once for each thing to do.
    assert waits[0] == 0.05
    assert not any(waits[1:])
    assert has_room(cache, 1)
    assert has_room(cache, 1)
    assert waits[-1] == 0.05


def test_a_file_that_another_process_goes_on_verifying(tmp_path, monkeypatch):
    cache = Cache(tmp_path, "1MB", timeout=0.05)
    add(opened(cache))
    monkeypatch.setattr(sparse, "boot_id", lambda: bytes(16))
    with held(tmp_path / f"{KEY}.shard"):
        begin = time.monotonic()
        assert cache.open(KEY, len(CONTENT), PIECES, lambda *_: True) is None
        assert time.monotonic() - begin < 20
    assert opened(cache, check=lambda *_: True).resident.all()


# Trouble.


@pytest.fixture
def small_disk(tmp_path, monkeypatch) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Make a tmpfs, and a way to fill it; where none can be mounted, one that says it is full."""
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path / "disk"]
    if shutil.which("mount") and not subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:

        def fill() -> None:
            with (
                open(tmp_path / "disk" / "ballast", "wb", buffering=0) as ballast,
                pytest.raises(OSError, match="No space left"),
            ):
                collections.deque(map(ballast.write, itertools.repeat(bytes(4096))), 0)

        yield tmp_path / "disk", fill
        gc.collect()
        subprocess.run(["umount", "-l", tmp_path / "disk"], check=True)
    else:

        def full(*_arguments: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        yield tmp_path / "disk", lambda: monkeypatch.setattr(sparse, "write_all", full)


def test_a_full_disk(small_disk, caplog):
    directory, fill = small_disk
    cache = Cache(directory, "1GB")
    file = opened(cache)
    add(file, [0])
    fill()
    with caplog.at_level(logging.INFO, "npstream"):
        assert [file.put(piece * PIECE, bytes(PIECE)) for piece in (1, 2)] == [False, False]
        assert file.resident.tolist() == [1, 0, 0, 0]
        assert read(file, 0) == CONTENT[:PIECE]
        assert cache.open(OTHER, len(CONTENT), PIECES) is None
        assert not cache.store(OTHER, bytes(10_000))
        assert opened(cache).resident.tolist() == [1, 0, 0, 0]
        os.truncate(directory / ".lock", 0)
        assert has_room(cache, 1)
    assert caplog.text.count("No space left on device") == 1
    assert sorted(os.listdir(directory)) in (
        [".lock", f"{KEY}.shard"],
        [".lock", f"{KEY}.shard", "ballast"],
    )


def test_a_file_that_may_not_grow(cache):
    """The limit of file sizes, which every user may set, stands for any disk that is full."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
print(file.put(0, bytes(10_000)), file.put(20_000, bytes(10_000)))
"""
    assert program(cache, code).communicate()[0] == "True False\n"


def unprivileged(function: Callable[[], None]) -> None:
    """Run a function in a process that may not write everywhere."""

    def child() -> None:
        if os.geteuid() == 0:
            os.setgid(65_534)
            os.setuid(65_534)
        function()

    assert ended(in_child(child)) == 0


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Make a directory that every user can reach, as pytest's own is not."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def test_a_cache_that_can_only_be_read(open_directory):
    cache = Cache(open_directory, "100MB")
    add(opened(cache), [1])
    cache.store(OTHER, b"object")
    for path in open_directory.iterdir():
        path.chmod(0o444)
    open_directory.chmod(0o555)

    def use(stamp: bytes | None, check: Callable[[CachedFile, int], bool] | None) -> None:
        if stamp is not None:
            sparse.boot_id = lambda: stamp
        mine = Cache(open_directory, "100MB")
        file = opened(mine, check=check)
        trusted = stamp is None or check is not None
        assert file.resident.tolist() == [0, int(trusted), 0, 0]
        if trusted:
            assert read(file, 1) == CONTENT[PIECE : 2 * PIECE]
        with file.lock(range(PIECES)) as claim:
            assert claim.pieces == []
        file.wait(range(PIECES), 60)
        assert not file.put(0, b"x")
        assert not file.commit([0])
        mine.touch(file)
        mine.finished(file)
        assert mine.fetch(OTHER) == b"object"
        assert mine.open(KEY[::-1], 1, 1) is None
        assert not mine.store(KEY, b"x")
        assert not has_room(mine, 200 << 20)
        with pytest.raises(PermissionError, match="the cache was not emptied"):
            mine.clear()

    unprivileged(lambda: use(None, None))
    unprivileged(lambda: use(bytes(16), None))
    unprivileged(lambda: use(bytes(16), lambda file, piece: True))


def test_a_directory_that_cannot_be_made(open_directory, caplog):
    open_directory.chmod(0o555)

    def use() -> None:
        with caplog.at_level(logging.INFO, "npstream"):
            cache = Cache(open_directory / "below")
            assert cache.open(KEY, 1, 1) is None
            assert not cache.store(KEY, b"")
            assert cache.fetch(KEY) is None
        assert "cannot make it (Permission denied)" in caplog.text

    unprivileged(use)


def test_a_cache_that_is_deleted_while_in_use(cache):
    file = filled(cache, KEY)
    shutil.rmtree(cache.directory)
    assert read(file, 1) == CONTENT[PIECE : 2 * PIECE]
    assert not file.alive
    assert not file.put(0, b"x")
    assert cache.fetch(OTHER) is None
    assert has_room(cache, PIECE)
    again = opened(cache)
    add(again, [0])
    assert os.stat(cache.directory).st_mode & 0o777 == 0o700
    shutil.rmtree(cache.directory)
    assert cache.store(OTHER, b"object")
    assert cache.fetch(OTHER) == b"object"


def test_what_the_dead_left_is_swept(cache):
    dead = Path(cache.directory, f".{'0' * 16}.tmp")
    alive = Path(cache.directory, f".{'1' * 16}.tmp")
    foreign = Path(cache.directory, ".other.tmp")
    for path in (dead, alive, foreign):
        path.touch()
    with locks.Description(str(alive)) as descriptor:
        assert locks.try_lock(descriptor)
        Cache(cache.directory)
        assert (dead.exists(), alive.exists(), foreign.exists()) == (False, True, True)
    cache.clear()
    assert (alive.exists(), foreign.exists()) == (False, True)


def test_a_file_vanishes_before_it_has_its_name(cache, monkeypatch):
    """A sweep may come before a temporary file is locked."""
    link, left = os.link, [True, True]

    def vanished(source: str, target: str, **options: object) -> None:
        if left and left.pop():
            os.unlink(source)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", vanished)
    add(opened(cache))
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
    add(opened(cache))
    assert opened(cache).resident.all()
    assert sorted(os.listdir(cache.directory)) == [".lock", f"{KEY}.shard"]


# After the system has started anew.


@pytest.fixture
def reboot(monkeypatch) -> Callable[[], None]:
    boots = itertools.count(1)

    def boot() -> None:
        stamp = bytes([next(boots)] * 16)
        monkeypatch.setattr(sparse, "boot_id", lambda: stamp)

    return boot


def test_after_a_boot_pieces_are_checked_once(cache, reboot):
    add(opened(cache), [0, 2, 3])
    with open(Path(cache.directory, f"{KEY}.shard"), "r+b") as file:
        file.seek(2 * PIECE)
        file.write(b"damage")
    reboot()
    asked = []

    def check(file: CachedFile, piece: int) -> bool:
        asked.append(piece)
        return read(file, piece) == CONTENT[piece * PIECE : (piece + 1) * PIECE]

    assert opened(cache, check=check).resident.tolist() == [1, 0, 0, 1]
    assert opened(cache, check=check).resident.tolist() == [1, 0, 0, 1]
    assert opened(cache).resident.tolist() == [1, 0, 0, 1]
    assert asked == [0, 2, 3]
    reboot()
    assert opened(cache).resident.tolist() == [0, 0, 0, 0]


def test_a_check_that_fails_leaves_the_file_to_the_next(cache, reboot):
    add(opened(cache))
    reboot()

    def check(file: CachedFile, piece: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(cache, check=check)
    assert opened(cache, check=lambda file, piece: piece != 1).resident.tolist() == [1, 0, 1, 1]


def test_all_wait_for_one_check(cache, reboot):
    add(opened(cache))
    reboot()
    begun, go_on, asked = threading.Event(), threading.Event(), []

    def check(file: CachedFile, piece: int) -> bool:
        asked.append(piece)
        begun.set()
        return go_on.wait(60)

    found = []
    threads = [
        threading.Thread(target=lambda: found.append(opened(cache, check=check).resident.sum()))
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
    add(opened(cache), [0, 1, 2])
    with open(Path(cache.directory, f"{KEY}.shard"), "r+b") as file:
        file.seek(len(CONTENT) + 2)
        file.write(bytes(os.fstat(file.fileno()).st_size - len(CONTENT) - 2))
    reboot()
    check = (lambda file, piece: True) if hashed else None
    for _ in range(2):
        assert opened(cache, check=check).resident.tolist() == 2 * [int(hashed)] + [0, 0]
    add(opened(cache), [3])
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


# Objects.


def test_objects_are_stored_whole(cache):
    assert cache.fetch(KEY) is None
    for content in (b"", b"first", bytes(100_000), memoryview(b"last")):
        assert cache.store(KEY, content)
        assert cache.fetch(KEY) == bytes(content)
    assert cache.info().files == 1


@pytest.mark.parametrize("place", [0, 5, 30, -1])
def test_a_damaged_object_is_none(cache, place):
    cache.store(KEY, b"some object")
    path = Path(cache.directory, f"{KEY}.stored")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert cache.fetch(KEY) is None
    assert cache.store(KEY, b"some object")
    assert cache.fetch(KEY) == b"some object"


def test_objects_are_evicted_like_shards(tmp_path):
    cache = Cache(tmp_path, "1MB")
    for number in range(4):
        assert cache.store(key(number), bytes(100_000))
        os.utime(tmp_path / f"{key(number)}.stored", (number, number))
    assert cache.fetch(key(0)) is not None  # and with that used just now
    assert has_room(cache, 900_000)
    assert [cache.fetch(key(number)) is not None for number in range(4)] == [True] + 3 * [False]


# Where it is, and what one sees of it.


def test_the_default_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("NPSTREAM_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert folder.default_directory() == str(tmp_path / ".cache/npstream")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder.default_directory() == str(tmp_path / "xdg/npstream")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert folder.default_directory() == str(tmp_path / ".cache/npstream")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert folder.default_directory() == str(tmp_path / "Library/Caches/npstream")
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "mine"))
    assert Cache().directory == str(tmp_path / "mine")
    assert Cache(tmp_path / "argument").directory == str(tmp_path / "argument")
    assert os.stat(tmp_path / "mine").st_mode & 0o777 == 0o700


def test_without_a_home(tmp_path, monkeypatch):
    monkeypatch.delenv("NPSTREAM_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert folder.default_directory() == str(tmp_path / f"npstream-{os.geteuid()}")


def test_the_limit(tmp_path, monkeypatch):
    monkeypatch.delenv("NPSTREAM_CACHE_LIMIT", raising=False)
    assert Cache(tmp_path).limit is None
    assert Cache(tmp_path, "1.5GB").limit == 3 << 29
    monkeypatch.setenv("NPSTREAM_CACHE_LIMIT", "2KB")
    assert Cache(tmp_path).limit == npstream.cache.info(tmp_path).limit == 2048
    assert Cache(tmp_path, "auto").limit is None
    assert Cache(tmp_path, 77).limit == 77
    with pytest.raises(ValueError, match="cannot read the size 'much'"):
        Cache(tmp_path, "much")


def test_hosts_do_not_share_what_a_network_stores(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_network", lambda path: "NFS")
    with pytest.warns(RuntimeWarning, match="the cache is on NFS, which is slow"):
        cache = Cache(tmp_path / "shared")
    assert os.path.dirname(cache.directory) == str(tmp_path / "shared")
    add(opened(cache))
    Cache(tmp_path / "shared")  # it warns once
    assert npstream.cache.info(tmp_path / "shared").files == 1


def test_the_kind_of_a_file_system(tmp_path, monkeypatch):
    assert folder._network(str(tmp_path)) is None
    kinds = {0xEF53, 0x01021994, 0x9123683E, 0x58465342, 0x794C7630}
    assert kinds.isdisjoint(folder._NETWORK)


def test_where_maps_do_not_show_writes_nothing_is_cached(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "map_shared", lambda descriptor, path: np.zeros(6, np.uint8))
    with pytest.warns(RuntimeWarning, match="nothing is cached, since maps do not show"):
        cache = Cache(tmp_path)
    assert cache.open(KEY, len(CONTENT), PIECES) is None
    assert cache.store(KEY, b"object")


def test_info_and_clear(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NPSTREAM_CACHE", str(tmp_path / "cache"))
    assert npstream.cache.info().files == 0
    assert npstream.cache.clear() == 0
    assert not (tmp_path / "cache").exists()
    cache = Cache(limit="100MB")
    assert repr(cache) == f"<npstream.Cache: {tmp_path / 'cache'}, limit 104,857,600 bytes>"
    add(opened(cache))
    cache.store(KEY, b"object")
    held = npstream.cache.info()
    assert held.files == 2
    assert held.nbytes >= len(CONTENT)
    assert main(["cache", "info"]) == 0
    assert f"{tmp_path / 'cache'}: 2 files, {held.nbytes:,} bytes of" in capsys.readouterr().out
    assert main(["cache", "clear", str(tmp_path / "cache")]) == 0
    assert capsys.readouterr().out == f"{held.nbytes:,} bytes removed\n"
    assert npstream.cache.info().files == 0


# Crashes.


def check_rounds(counts: dict[str, int], rounds: int) -> None:
    assert counts["rounds"] == rounds
    assert counts["killed"] >= rounds - 1  # one may end just before it is killed
    assert counts["hits"] > rounds
    assert counts["kept"] > rounds
    assert counts["peak"] <= crash_cache.LIMIT + crash_cache.IN_FLIGHT
    assert counts["at rest"] <= crash_cache.LIMIT
    for what in ("wrong", "failed", "temporaries", "locks", "foreign touched", "unusable"):
        assert counts[what] == 0, what


def test_processes_that_are_killed_break_nothing(tmp_path):
    check_rounds(crash_cache.run(10, str(tmp_path)), 10)


def test_nor_where_locks_are_missing(tmp_path, without_ranges):
    check_rounds(crash_cache.run(2, str(tmp_path)), 2)
