"""Provide patterns: random sequences of sources in which every prefix has exact shares.

A pattern of L slots has n_s units of source s. Its first k slots have ``n_s * k / L`` units of s,
rounded up or down. This holds if and only if each unit is in its *window*. The window of unit i of
source s begins with slot ``floor(i * L / n_s)``, and ends before slot ``ceil((i + 1) * L / n_s)``,
the unit's *deadline*.

Slots are filled one after the other, each by a random unit whose window is open. The chance of a
unit is 1 / (slots left in its window). If sources did not compete for slots, these chances would
make each slot of a window equally likely.

A unit may be drawn only if all other units can still meet their deadlines. They can if, for every
D, the number of unplaced units with deadlines up to D is at most the number of free slots before D.
(The starts of windows need no check: a range of slots never contains more whole windows than
slots.) The difference of the two numbers is the *slack* of D. A deadline without slack is *tight*.
A tree over deadlines finds the first tight one, and units with later deadlines must wait.

Placing the unit with the earliest deadline in each slot would be valid, too. But its patterns are
almost periodic, so a reader of every tenth slot might see only one source.
"""

from __future__ import annotations

import numpy as np

from npstream._core.jit import kernel
from npstream._core.typing import AnyArray, Int64
from npstream.orders.draws import draw

PATTERN_VERSION = 1
"""Version of the patterns. It must change if this module computes other patterns for any input."""

_CLASSES = 24
"""Number of classes of sources with similar chances.

Class k has the sources with a chance above ``2**-(k + 1)``, up to ``2**-k``. A draw chooses a class
first, so it need not go through all sources. Patterns must have fewer than ``2**_CLASSES`` slots.
"""

_MAX_DRAWS = 16
"""Maximum number of draws for a slot; then the unit with the earliest deadline is placed."""


@kernel
def interleave_sources(counts: Int64, key: int, sources: AnyArray) -> None:
    """Write the source of each slot of a pattern with ``counts[s]`` units of source s."""
    length = sources.size
    next_units = np.zeros(counts.size, np.int64)  # number of each source's next unit
    deadlines = np.zeros(counts.size, np.int64)  # deadline of this unit
    sums, min_sums = _make_slack_tree(counts, length)
    members = np.empty((_CLASSES, counts.size), np.int32)
    sizes = np.zeros(_CLASSES, np.int64)
    class_of = np.full(counts.size, -1)
    index_of = np.zeros(counts.size, np.int64)
    # Each slot has a linked list of the sources whose window opens there, or whose class changes.
    heads = np.full(length + 1, -1, np.int64)
    next_source = np.full(counts.size, -1)
    previous_source = np.full(counts.size, -1)
    slot_of = np.full(counts.size, -1)
    for source in range(counts.size):
        if counts[source] > 0:
            deadlines[source] = (length + counts[source] - 1) // counts[source]
            _add_to_slot(source, 0, heads, next_source, previous_source, slot_of)
    counter = 0
    for slot in range(length):
        while heads[slot] >= 0:
            source = int(heads[slot])
            _remove_from_slot(source, heads, next_source, previous_source, slot_of)
            _remove_member(source, members, sizes, class_of, index_of)
            count = int(counts[source])
            numerator, denominator = _chance(slot, count, int(next_units[source]), length)
            class_index = 0
            while denominator >= numerator << (class_index + 1):
                class_index += 1
            class_of[source] = class_index
            index_of[source] = sizes[class_index]
            members[class_index, sizes[class_index]] = source
            sizes[class_index] += 1
            # Set the slot at which to determine the class of the source again. If the window before
            # shares the current slot (see `_chance`), determine the class at the next slot.
            # Otherwise the chance grows from slot to slot. Determine the class at the slot in which
            # the chance exceeds 2**-class_index.
            if slot * count < next_units[source] * length:
                _add_to_slot(source, slot + 1, heads, next_source, previous_source, slot_of)
            elif class_index:
                end = (int(next_units[source]) + 1) * length
                change_slot = (end - (count << class_index)) // count + 1
                _add_to_slot(source, change_slot, heads, next_source, previous_source, slot_of)
        tight = _first_tight_deadline(slot, sums, min_sums)
        source, counter = _draw_source(
            length, slot, tight, key, counter, counts, next_units, deadlines, members, sizes
        )
        sources[slot] = source
        _remove_member(source, members, sizes, class_of, index_of)
        if slot_of[source] >= 0:
            _remove_from_slot(source, heads, next_source, previous_source, slot_of)
        _remove_deadline(int(deadlines[source]) - 1, sums, min_sums)
        next_units[source] += 1
        number = int(next_units[source])
        count = int(counts[source])
        if number < count:
            deadlines[source] = ((number + 1) * length + count - 1) // count
            opening_slot = max(slot + 1, number * length // count)
            _add_to_slot(source, opening_slot, heads, next_source, previous_source, slot_of)


@kernel
def _draw_source(
    length: int,
    slot: int,
    tight: int,
    key: int,
    counter: int,
    counts: Int64,
    next_units: Int64,
    deadlines: Int64,
    members: AnyArray,
    sizes: Int64,
) -> tuple[int, int]:
    """Draw a source whose deadline is at most `tight`; return it and the counter of draws."""
    # Rejection sampling: draw as if each source of class k had the chance 2**-k. Then accept the
    # source with probability chance / 2**-k, which is above 1/2.
    total = 0
    for class_index in range(_CLASSES):
        total += int(sizes[class_index]) << (_CLASSES - class_index)
    for _ in range(_MAX_DRAWS):
        target = draw(key ^ counter, total)
        class_index = 0
        while target >= int(sizes[class_index]) << (_CLASSES - class_index):
            target -= int(sizes[class_index]) << (_CLASSES - class_index)
            class_index += 1
        source = int(members[class_index, target >> (_CLASSES - class_index)])
        numerator, denominator = _chance(slot, int(counts[source]), int(next_units[source]), length)
        is_accepted = draw(key ^ (counter + 1), denominator) < numerator << class_index
        counter += 2
        if is_accepted and deadlines[source] <= tight:
            return source, counter
    # Look for the earliest deadline in the first class only: its units have the fewest slots left.
    class_index = 0
    while sizes[class_index] == 0:
        class_index += 1
    first = int(members[class_index, 0])
    for i in range(1, int(sizes[class_index])):
        source = int(members[class_index, i])
        is_equal = deadlines[source] == deadlines[first]
        if deadlines[source] < deadlines[first] or (is_equal and source < first):
            first = source
    return first, counter


@kernel
def _chance(slot: int, count: int, number: int, length: int) -> tuple[int, int]:
    """Return the chance of unit `number` in a slot, as numerator and denominator.

    The bounds of a window may be fractions. If a window begins within a slot, the window before
    shares this slot. Then a part of the slot belongs to the unit before, and the chance of this
    unit is smaller.
    """
    # Slots are multiplied by count, so that bounds of windows are integers: unit i begins at
    # i * length, and a slot at slot * count.
    begin = slot * count
    if begin >= number * length:
        remaining = (number + 1) * length - begin
        return min(count, remaining), remaining
    return begin + count - number * length, begin - (number - 1) * length


@kernel
def _make_slack_tree(counts: Int64, length: int) -> tuple[AnyArray, AnyArray]:
    """Return a segment tree over deadlines, as two arrays of nodes: sums and minimum prefix sums.

    Leaf k belongs to deadline k + 1. Its value is 1 minus the number of unplaced units with this
    deadline. A node has the sum of its leaves, and the minimum of their prefix sums. The slack of a
    deadline D is the sum of the leaves from the first unfilled slot to D - 1.
    """
    size = 1
    while size < length:
        size *= 2
    sums = np.ones(2 * size, np.int32)
    for source in range(counts.size):
        count = int(counts[source])
        for number in range(count):
            sums[size + ((number + 1) * length + count - 1) // count - 1] -= 1
    min_sums = sums.copy()
    for node in range(size - 1, 0, -1):
        sums[node] = sums[2 * node] + sums[2 * node + 1]
        min_sums[node] = min(min_sums[2 * node], sums[2 * node] + min_sums[2 * node + 1])
    return sums, min_sums


@kernel
def _first_tight_deadline(slot: int, sums: AnyArray, min_sums: AnyArray) -> int:
    """Return the first tight deadline after a slot."""
    size = sums.size // 2
    node = size + slot
    slack = 0
    # This ends, because the last deadline of a pattern has no slack.
    while slack + min_sums[node] > 0:
        slack += int(sums[node])
        while node & 1:
            node >>= 1
        node += 1
    while node < size:
        node *= 2
        if slack + min_sums[node] > 0:
            slack += int(sums[node])
            node += 1
    return node - size + 1


@kernel
def _remove_deadline(leaf: int, sums: AnyArray, min_sums: AnyArray) -> None:
    """Remove a unit with the deadline of a leaf from the tree."""
    node = sums.size // 2 + leaf
    sums[node] += 1
    min_sums[node] += 1
    node >>= 1
    while node:
        sums[node] += 1
        min_sums[node] = min(min_sums[2 * node], sums[2 * node] + min_sums[2 * node + 1])
        node >>= 1


@kernel
def _remove_member(
    source: int, members: AnyArray, sizes: Int64, class_of: Int64, index_of: Int64
) -> None:
    """Remove a source from its class, if it is in one."""
    class_index = int(class_of[source])
    if class_index >= 0:
        sizes[class_index] -= 1
        last = int(members[class_index, sizes[class_index]])
        members[class_index, index_of[source]] = last
        index_of[last] = index_of[source]
        class_of[source] = -1


@kernel
def _add_to_slot(
    source: int, slot: int, heads: Int64, next_source: Int64, previous_source: Int64, slot_of: Int64
) -> None:
    """Add a source to the list of a slot."""
    head = int(heads[slot])
    next_source[source] = head
    previous_source[source] = -1
    if head >= 0:
        previous_source[head] = source
    heads[slot] = source
    slot_of[source] = slot


@kernel
def _remove_from_slot(
    source: int, heads: Int64, next_source: Int64, previous_source: Int64, slot_of: Int64
) -> None:
    """Remove a source from its list."""
    if previous_source[source] >= 0:
        next_source[previous_source[source]] = next_source[source]
    else:
        heads[slot_of[source]] = next_source[source]
    if next_source[source] >= 0:
        previous_source[next_source[source]] = previous_source[source]
    slot_of[source] = -1
