"""LRUCache evicts the least recently used entries beyond its limit."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from npstream._core.lru import ENTRY_OVERHEAD, LRUCache

LIMIT = 4 * (ENTRY_OVERHEAD + 10)

operations = st.lists(
    st.tuples(st.sampled_from(["get", "put", "drop"]), st.integers(0, 6), st.integers(0, 30)),
    max_size=60,
)


@given(operations)
def test_entries_equal_those_of_an_ordered_dict(steps):
    cache, model = LRUCache(LIMIT), OrderedDict()
    for operation, key, nbytes in steps:
        if operation == "get":
            assert cache.get([key]) == [model.get(key)]
            if key in model:
                model.move_to_end(key)
        elif operation == "drop":
            cache.drop([key])
            model.pop(key, None)
        else:
            cache.put([key], [bytes(nbytes)])
            model.pop(key, None)
            model[key] = bytes(nbytes)
            while sum(ENTRY_OVERHEAD + len(value) for value in model.values()) > LIMIT:
                model.popitem(last=False)
        assert cache.keys() == list(model)


def test_a_value_larger_than_the_limit_evicts_all_entries_and_itself():
    cache = LRUCache(LIMIT)
    cache.put([1, 2], [bytes(10), bytes(LIMIT)])
    assert cache.keys() == []


def test_threads_share_a_cache():
    cache = LRUCache(LIMIT)

    def work(thread):
        for k in range(2000):
            key = (k * (thread + 1)) % 9
            assert cache.get([key]) in ([None], [bytes([key])])
            cache.put([key], [bytes([key])])
            cache.drop([(key + 3) % 9])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    cache.drop(cache.keys())
    # Exactly four entries fit, if the threads did not corrupt the count of bytes.
    cache.put(range(9), [bytes(10)] * 9)
    assert cache.keys() == [5, 6, 7, 8]
