"""Downloads of pieces by several threads and processes."""

import threading
from types import SimpleNamespace

import pytest

from npstream.cache import downloads, eviction
from npstream.cache.cache import CachedFile, ShardCache
from npstream.cache.downloads import Downloads, PieceRange
from npstream.cache.leases import Lease, is_leased
from npstream.errors import StorageError
from npstream.storage.deadlines import Deadlines

pytestmark = pytest.mark.timeout(60)

PIECES = [("file", piece) for piece in range(3)]


@pytest.fixture
def fetcher():
    """Return a `Downloads` without a store and a cache."""
    return Downloads(SimpleNamespace(deadlines=Deadlines(), timeout=50.0), None)


@pytest.mark.parametrize("fails", [False, True])
def test_a_waiting_thread_fetches_pieces_only_if_the_first_thread_fails(
    fetcher, fails, monkeypatch
):
    """The second thread waits for the first. If the first fails, the second fetches the pieces."""
    present, log, waits = set(), [], threading.Event()
    wait = downloads.wait_for_leases

    def signalling_wait(pieces, timeout):
        waits.set()
        wait(pieces, timeout)

    monkeypatch.setattr(downloads, "wait_for_leases", signalling_wait)

    def fetch(pieces, lease):
        log.append(pieces)
        if len(log) == 1:
            second.start()
            waits.wait()
            if fails:
                raise StorageError(5, "the store fails")
        present.update(pieces)

    def read():
        fetcher.fetch_once(PIECES, lambda piece: piece not in present, fetch)

    second = threading.Thread(target=read)
    if fails:
        with pytest.raises(StorageError, match="the store fails"):
            read()
    else:
        read()
    second.join()
    assert present == {*PIECES}
    assert log == [PIECES] * (1 + fails)
    assert not any(map(is_leased, PIECES))


def test_pieces_of_the_given_lease_are_fetched(fetcher):
    queued, present = Lease(), set()
    queued.take(PIECES[:2])

    def fetch(pieces, lease):
        # A nested call takes over the pieces of its caller's lease.
        fetcher.fetch_once(
            pieces, lambda piece: piece not in present, lambda p, _: present.update(p), lease
        )

    fetcher.fetch_once(PIECES, lambda piece: piece not in present, fetch, queued)
    assert present == {*PIECES}
    assert not any(map(is_leased, PIECES))


def test_present_pieces_are_not_fetched(fetcher):
    log = []
    fetcher.fetch_once(PIECES, lambda piece: piece[1] == 1, lambda pieces, _: log.append(pieces))
    assert log == [PIECES[1:2]]


@pytest.mark.parametrize("fails", [False, True])
def test_space_is_reserved_only_for_pieces_that_are_downloaded(tmp_path, monkeypatch, fails):
    """Regression: two processes both reserved space for one piece, and so evicted two files."""
    nbytes = 1 << 16
    cache = ShardCache(tmp_path, 3 * nbytes + 32_768)  # with the overhead of two files
    old, new = (cache.open(f"{k:016x}", nbytes, 1) for k in range(2))
    with cache.reserve(nbytes):
        assert old.put(0, bytes(nbytes))
        assert old.commit([0])
    with cache.reserve(2 * nbytes):
        other = new.lock([0])  # the lock is that of another process
        assert other.pieces == [0]
        calls, waits = [], threading.Event()
        store = SimpleNamespace(
            deadlines=Deadlines(),
            timeout=50.0,
            stream_bodies=lambda spans: (
                (k, bytes(span[2])) for k, span in enumerate(spans) if not calls.append(span)
            ),
        )
        wait = CachedFile.wait
        monkeypatch.setattr(
            CachedFile, "wait", lambda self, *args: (waits.set(), wait(self, *args))
        )
        part = PieceRange(new, "shard", 0, (0, nbytes), None)
        second = threading.Thread(target=Downloads(store, cache).fetch, args=([part],))
        second.start()
        assert waits.wait(30)
        assert eviction._reserved_bytes(str(tmp_path)) == 2 * nbytes
        assert old.is_linked
        if not fails:
            assert new.put(0, bytes(nbytes))
            assert new.commit([0])
        other.close()
        second.join()
    assert calls == [("shard", 0, nbytes)] * fails
    assert new.present.all()
    assert old.is_linked != fails
