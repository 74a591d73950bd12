"""Leases of pieces: one per piece, waiting for them, and forks."""

import multiprocessing
import threading

import pytest

from npstream.cache import leases
from npstream.cache.leases import Lease, is_leased, wait_for_leases

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """Give each test its own registry."""
    monkeypatch.setattr(leases, "_registry", leases._Registry())


def test_a_piece_has_one_lease():
    """If many threads take the same pieces, one thread gets each piece."""
    pieces = [("a", piece) for piece in range(1000)]
    barrier, taken = threading.Barrier(8), []

    def take():
        barrier.wait()
        taken.extend(piece for piece in pieces if Lease().take([piece]))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == pieces


def test_only_the_lease_of_a_piece_drops_it():
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


def test_waiting_starts_a_lease_and_ends_when_it_drops_the_pieces():
    started = threading.Event()

    class DelayedLease(Lease):
        def start(self):
            started.set()

    owner = DelayedLease()
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


def test_waiting_for_a_lease_ends_at_the_timeout():
    Lease().take([("a", 0)])
    wait_for_leases([("a", 0)], 0.01)
    assert is_leased(("a", 0))


def test_a_forked_process_has_no_leases():
    """It has none of its parent's threads, not even the thread that holds the registry's lock."""
    Lease().take([("a", 0)])
    with leases._registry.condition:
        context = multiprocessing.get_context("fork")
        taken = context.SimpleQueue()
        child = context.Process(target=lambda: taken.put(Lease().take([("a", 0)])))
        child.start()
        assert taken.get() == [("a", 0)]
        child.join()
