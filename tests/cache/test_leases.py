import multiprocessing
import threading
import time

import pytest

from npstream.cache import leases
from npstream.cache.leases import Lease, is_leased, wait_for_leases

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Give each test a registry of its own."""
    monkeypatch.setattr(leases, "_registry", leases._Registry())


def test_a_piece_has_one_owner():
    """Of many threads that want the same pieces, one gets each."""
    wanted = [("a", piece) for piece in range(1000)]
    barrier, taken = threading.Barrier(8), []

    def take():
        barrier.wait()
        taken.extend(piece for piece in wanted if Lease().take([piece]))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == wanted


def test_only_the_owner_drops_a_piece():
    owner, other = Lease(), Lease()
    assert owner.take([("a", 0)]) == [("a", 0)]
    assert owner.take([("a", 0)]) == []
    other.drop([("a", 0)])
    assert is_leased(("a", 0))
    assert other.take([("a", 0), ("b", 0)], from_lease=owner) == [("a", 0), ("b", 0)]
    owner.drop([("a", 0)])
    assert is_leased(("a", 0))
    other.drop([("a", 0), ("b", 0)])
    assert not is_leased(("a", 0))


def test_waiting_starts_the_owner_and_ends_when_it_drops_the_pieces():
    started = threading.Event()

    class HeldBack(Lease):
        def start(self):
            started.set()

    owner = HeldBack()
    owner.take([("a", 0), ("a", 1)])

    def fetch():
        started.wait()
        owner.drop([("a", 1)])
        owner.drop([("a", 0)])

    thread = threading.Thread(target=fetch)
    thread.start()
    wait_for_leases([("a", 0), ("a", 1), ("b", 0)], 50.0)
    assert started.is_set()
    assert not is_leased(("a", 0))
    thread.join()


def test_waiting_ends_when_time_is_up():
    Lease().take([("a", 0)])
    begin = time.monotonic()
    wait_for_leases([("a", 0)], 0.01)
    assert time.monotonic() - begin < 50


def test_a_forked_process_owns_nothing():
    """Of its parent's threads, which fetch, it has none; not even one that has the lock."""
    Lease().take([("a", 0)])
    with leases._registry.changed:
        context = multiprocessing.get_context("fork")
        taken = context.SimpleQueue()
        child = context.Process(target=lambda: taken.put(Lease().take([("a", 0)])))
        child.start()
        assert taken.get() == [("a", 0)]
        child.join()
