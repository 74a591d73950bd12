"""Patterns: random sequences of sources in which every prefix has its shares.

A pattern of L slots has n_s of source s, and among any first k of them n_s * k / L, rounded up or
down. That is so exactly if unit number i of s stands in its window, from slot i * L / n_s, rounded
down, up to slot (i + 1) * L / n_s, rounded up. Slots are filled one after the other, each by a unit
whose window is open, drawn by the chances with which each source, were it alone, would stand in
every slot equally often: one in the slots that its window has left. A unit may only be taken if
those left can all still be placed. They can if, for every D, the units left whose windows end by D
are no more than the slots left before D (there are never too many whose windows also begin later);
a tree over D finds the first at which there is no slack, and units with later ends must wait until
then.

Always taking the earliest end would do as well, but what it makes is all but periodic: who reads
every tenth slot of it might see one source only.
"""

from __future__ import annotations

import numpy as np

from npstream._core.jit import draw, kernel
from npstream._core.typing import AnyArray, Int64

PATTERN_VERSION = 1
"""Names the patterns that this module computes; they may not change without it."""

_CLASSES = 24
"""Windows have fewer than two to this many slots left."""

_TRIES = 16
"""Draws of a unit, after which the one is taken whose window ends first."""


@kernel
def interleave(counts: Int64, key: int, sources: AnyArray) -> None:
    """Fill in the sources of a pattern's slots."""
    length = sources.size
    placed = np.zeros(counts.size, np.int64)
    ends = np.zeros(counts.size, np.int64)  # of the windows of the next units
    sums, lows = _slack(counts, length)
    # Sources by their chances: more than 2**-(k+1), up to 2**-k, in class k.
    members = np.empty((_CLASSES, counts.size), np.int32)
    sizes = np.zeros(_CLASSES, np.int64)
    class_of = np.full(counts.size, -1)
    index_of = np.zeros(counts.size, np.int64)
    # Per slot, a list of the sources whose window opens, or that change their class.
    heads = np.full(length + 1, -1, np.int64)
    after = np.full(counts.size, -1)
    before = np.full(counts.size, -1)
    due = np.full(counts.size, -1)
    for source in range(counts.size):
        if counts[source] > 0:
            ends[source] = (length + counts[source] - 1) // counts[source]
            _enlist(source, 0, heads, after, before, due)
    counter = 0
    for slot in range(length):
        while heads[slot] >= 0:
            source = int(heads[slot])
            _delist(source, heads, after, before, due)
            _leave(source, members, sizes, class_of, index_of)
            count = int(counts[source])
            chance, whole = _chance(slot, count, int(placed[source]), length)
            number = 0
            while whole >= chance << (number + 1):
                number += 1
            class_of[source] = number
            index_of[source] = sizes[number]
            members[number, sizes[number]] = source
            sizes[number] += 1
            if slot * count < placed[source] * length:
                _enlist(source, slot + 1, heads, after, before, due)
            elif number:
                changes = ((int(placed[source]) + 1) * length - (count << number)) // count + 1
                _enlist(source, changes, heads, after, before, due)
        tight = _first_tight(slot, sums, lows)
        source, counter = _drawn(
            length, slot, tight, key, counter, counts, placed, ends, members, sizes
        )
        sources[slot] = source
        _leave(source, members, sizes, class_of, index_of)
        if due[source] >= 0:
            _delist(source, heads, after, before, due)
        _loosen(int(ends[source]) - 1, sums, lows)
        placed[source] += 1
        number = int(placed[source])
        count = int(counts[source])
        if number < count:
            ends[source] = ((number + 1) * length + count - 1) // count
            opens = max(slot + 1, number * length // count)
            _enlist(source, opens, heads, after, before, due)


@kernel
def _drawn(
    length: int,
    slot: int,
    tight: int,
    key: int,
    counter: int,
    counts: Int64,
    placed: Int64,
    ends: Int64,
    members: AnyArray,
    sizes: Int64,
) -> tuple[int, int]:
    """Draw a source whose window ends by `tight`; also return the counter of draws."""
    total = 0
    for number in range(_CLASSES):
        total += int(sizes[number]) << (_CLASSES - number)
    for _ in range(_TRIES):
        at = draw(key ^ counter, total)
        number = 0
        while at >= int(sizes[number]) << (_CLASSES - number):
            at -= int(sizes[number]) << (_CLASSES - number)
            number += 1
        source = int(members[number, at >> (_CLASSES - number)])
        chance, whole = _chance(slot, int(counts[source]), int(placed[source]), length)
        taken = draw(key ^ (counter + 1), whole) < chance << number
        counter += 2
        if taken and ends[source] <= tight:
            return source, counter
    number = 0
    while sizes[number] == 0:
        number += 1
    first = int(members[number, 0])
    for i in range(1, int(sizes[number])):
        source = int(members[number, i])
        if ends[source] < ends[first] or (ends[source] == ends[first] and source < first):
            first = source
    return first, counter


@kernel
def _chance(slot: int, count: int, number: int, length: int) -> tuple[int, int]:
    """Return the chance of unit `number` in a slot as one number of another.

    Windows are cut at slots. Of those that open within a slot, some are open before they should
    be: the chance there is what makes up for the slot's part in the window before.
    """
    reached = slot * count
    if reached >= number * length:
        whole = (number + 1) * length - reached
        return min(count, whole), whole
    return reached + count - number * length, reached - (number - 1) * length


@kernel
def _slack(counts: Int64, length: int) -> tuple[AnyArray, AnyArray]:
    """Return a tree over the ends of windows, in two arrays of nodes.

    A leaf is one less the units whose windows end there; a node has the sum of its leaves, and the
    least sum of its first ones. The slack before D is the sum of leaves from the next slot to D.
    """
    size = 1
    while size < length:
        size *= 2
    sums = np.ones(2 * size, np.int32)
    for source in range(counts.size):
        count = int(counts[source])
        for number in range(count):
            sums[size + ((number + 1) * length + count - 1) // count - 1] -= 1
    lows = sums.copy()
    for node in range(size - 1, 0, -1):
        sums[node] = sums[2 * node] + sums[2 * node + 1]
        lows[node] = min(lows[2 * node], sums[2 * node] + lows[2 * node + 1])
    return sums, lows


@kernel
def _first_tight(slot: int, sums: AnyArray, lows: AnyArray) -> int:
    """Return the first end before which there are no more slots left than units."""
    size = sums.size // 2
    node = size + slot
    slack = 0
    while slack + lows[node] > 0:  # at the pattern's end there is none
        slack += int(sums[node])
        while node & 1:
            node >>= 1
        node += 1
    while node < size:
        node *= 2
        if slack + lows[node] > 0:
            slack += int(sums[node])
            node += 1
    return node - size + 1


@kernel
def _loosen(leaf: int, sums: AnyArray, lows: AnyArray) -> None:
    """Take a unit out whose window ends at a leaf."""
    node = sums.size // 2 + leaf
    sums[node] += 1
    lows[node] += 1
    node >>= 1
    while node:
        sums[node] += 1
        lows[node] = min(lows[2 * node], sums[2 * node] + lows[2 * node + 1])
        node >>= 1


@kernel
def _leave(source: int, members: AnyArray, sizes: Int64, class_of: Int64, index_of: Int64) -> None:
    """Take a source out of its class, if it is in one."""
    number = int(class_of[source])
    if number >= 0:
        sizes[number] -= 1
        last = int(members[number, sizes[number]])
        members[number, index_of[source]] = last
        index_of[last] = index_of[source]
        class_of[source] = -1


@kernel
def _enlist(source: int, slot: int, heads: Int64, after: Int64, before: Int64, due: Int64) -> None:
    """Put a source into the list of a slot."""
    head = int(heads[slot])
    after[source] = head
    before[source] = -1
    if head >= 0:
        before[head] = source
    heads[slot] = source
    due[source] = slot


@kernel
def _delist(source: int, heads: Int64, after: Int64, before: Int64, due: Int64) -> None:
    """Take a source out of its list."""
    if before[source] >= 0:
        after[before[source]] = after[source]
    else:
        heads[due[source]] = after[source]
    if after[source] >= 0:
        before[after[source]] = before[source]
    due[source] = -1
