"""What was used last is kept, up to a bound."""

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
def test_against_a_model(made):
    recent, model = LRUCache(LIMIT), OrderedDict()
    for what, number, nbytes in made:
        if what == "get":
            assert recent.get([number]) == [model.get(number)]
            if number in model:
                model.move_to_end(number)
        elif what == "drop":
            recent.drop([number])
            model.pop(number, None)
        else:
            recent.put([number], [bytes(nbytes)])
            model.pop(number, None)
            model[number] = bytes(nbytes)
            while sum(ENTRY_OVERHEAD + len(part) for part in model.values()) > LIMIT:
                model.popitem(last=False)
        assert recent.numbers() == list(model)


def test_what_is_larger_than_the_bound_is_not_kept():
    recent = LRUCache(LIMIT)
    recent.put([1, 2], [bytes(10), bytes(LIMIT)])
    assert recent.numbers() == []


def test_threads():
    recent = LRUCache(LIMIT)

    def work(thread):
        for k in range(2000):
            number = (k * (thread + 1)) % 9
            assert recent.get([number]) in ([None], [bytes([number])])
            recent.put([number], [bytes([number])])
            recent.drop([(number + 3) % 9])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    numbers = recent.numbers()
    recent.drop(numbers)
    # Had the count of bytes gone wrong, fewer or more than four would fit.
    recent.put(range(9), [bytes(10)] * 9)
    assert recent.numbers() == [5, 6, 7, 8]
