import threading
from types import SimpleNamespace

import pytest

from npstream.cache import downloads
from npstream.cache.downloads import Downloads
from npstream.cache.leases import Lease, is_leased
from npstream.errors import StorageError
from npstream.storage.deadlines import Deadlines

pytestmark = pytest.mark.timeout(60)

PIECES = [("file", piece) for piece in range(3)]


@pytest.fixture
def fetcher():
    """Return what fetches into no cache, from no store."""
    return Downloads(SimpleNamespace(deadlines=Deadlines(), timeout=50.0), None)


@pytest.mark.parametrize("fails", [False, True])
def test_a_piece_is_fetched_by_one_thread_or_by_who_waits(fetcher, fails, monkeypatch):
    """The second thread waits for the first; if that one fails, it fetches the pieces itself."""
    here, log, waits = set(), [], threading.Event()
    wait = downloads.wait_for_leases

    def spied(pieces, timeout):
        waits.set()
        wait(pieces, timeout)

    monkeypatch.setattr(downloads, "wait_for_leases", spied)

    def fetch(pieces, lease):
        log.append(pieces)
        if len(log) == 1:
            second.start()
            waits.wait()
            if fails:
                raise StorageError(5, "the store fails")
        here.update(pieces)

    def read():
        fetcher.fetch_once(PIECES, lambda piece: piece not in here, fetch)

    second = threading.Thread(target=read)
    if fails:
        with pytest.raises(StorageError, match="the store fails"):
            read()
    else:
        read()
    second.join()
    assert here == {*PIECES}
    assert log == [PIECES] * (1 + fails)
    assert not any(map(is_leased, PIECES))


def test_who_has_pieces_already_passes_its_lease_on(fetcher):
    queued, here = Lease(), set()
    queued.take(PIECES[:2])

    def fetch(pieces, lease):
        # A lease within is of the same pieces.
        fetcher.fetch_once(
            pieces, lambda piece: piece not in here, lambda p, _: here.update(p), lease
        )

    fetcher.fetch_once(PIECES, lambda piece: piece not in here, fetch, queued)
    assert here == {*PIECES}
    assert not any(map(is_leased, PIECES))


def test_what_is_here_is_not_fetched(fetcher):
    log = []
    fetcher.fetch_once(PIECES, lambda piece: piece[1] == 1, lambda pieces, _: log.append(pieces))
    assert log == [PIECES[1:2]]
