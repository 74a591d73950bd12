"""The helper functions return what Streaming's return."""

from __future__ import annotations

import numpy as np
import pytest

from npstream.streaming.base.format import get_index_basename
from npstream.streaming.base.util import (
    bytes_to_int,
    clean_stale_shared_memory,
    get_list_arg,
    number_abbrev_to_int,
)
from npstream.streaming.base.world import World


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1234", 1234), ("10b", 10), (" 64KB ", 65536), ("1.5mb", 1572864), ("2gb", 2 << 30),
        ("3tb", 3 << 40), ("1pb", 1 << 50), ("1eb", 1 << 60), ("1zb", 1 << 70), ("1yb", 1 << 80),
        (7, 7), (7.9, 7),
    ],
)  # fmt: skip
def test_bytes(text, number):
    assert bytes_to_int(text) == number


@pytest.mark.parametrize("text", ["", "kb", "1.5", "1.5b", "-3", "1xb", "b", "10 q"])
def test_invalid_bytes(text):
    with pytest.raises(ValueError, match="expected a number, with one of the suffixes b, kb, mb"):
        bytes_to_int(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1234", 1234), ("100k", 10**5), (" 1.5M ", 1500000), ("77b", 77 * 10**9),
        ("2T", 2 * 10**12), (7, 7), (7.9, 7),
    ],
)  # fmt: skip
def test_numbers(text, number):
    assert number_abbrev_to_int(text) == number


@pytest.mark.parametrize("text", ["", "k", "1.5", "-3", "1x"])
def test_invalid_numbers(text):
    with pytest.raises(ValueError, match="expected a number, with one of the suffixes k, m, b, t"):
        number_abbrev_to_int(text)


def test_list_arguments():
    assert get_list_arg("a,b") == ["a", "b"]
    assert get_list_arg("a") == ["a"]
    assert get_list_arg("") == []


def test_there_is_no_shared_memory_to_clean():
    assert clean_stale_shared_memory() is None


def test_the_name_of_the_index():
    assert get_index_basename() == "index.json"


def test_the_place_of_a_rank(set_rank):
    set_rank(11, 16, 8)
    world = World.detect()
    assert (world.num_nodes, world.node, world.is_multinode) == (2, 1, True)
    assert (world.rank, world.num_ranks, world.rank_of_node, world.ranks_per_node) == (11, 16, 3, 8)
    assert (world.worker, world.num_workers, world.is_leader) == (11, 16, False)
    assert not world.is_local_leader
    assert world.replicate(4).to_json() == World(1, 4, 1, 2).to_json()
    with pytest.raises(ValueError, match="replication=3"):
        world.replicate(3)


@pytest.mark.parametrize("worker", range(24))
def test_the_place_of_a_worker(worker):
    world = World(num_nodes=2, ranks_per_node=3, workers_per_rank=4, worker=worker)
    place = (world.node, world.rank_of_node, world.worker_of_rank)
    assert place == np.unravel_index(worker, (2, 3, 4))
    assert world.worker_of_node == worker % 12
    assert world.is_local_leader == (worker in (0, 12))
    assert world.is_leader == (worker == 0)
    assert (world.num_workers, world.workers_per_node, world.workers_per_rank) == (24, 12, 4)
