"""The order in which files of the cache are evicted.

The modification time of a file says when it is needed:

- Usually it is the time of the last use.
- A reader that has finished with a file sets it back by `FINISHED_AGE`.
- An iteration knows when it uses a file next. It sets the time to a date between 1978 and 1987,
  whose seconds encode the position of the next use, and whose nanoseconds identify the iteration.
  All processes of an iteration compute the same date, so they agree without messages.

A change of the modification time also sets `st_ctime`, the time of the last change of the file's
status. So `st_ctime` is when the file was last used or marked.

The execute permission of a file says that it is pinned: it is never evicted.
"""

from __future__ import annotations

import os
import stat
import time
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

__all__ = [
    "FINISHED_AGE",
    "MAX_GROUPS",
    "Entry",
    "Priorities",
    "mark_next_use",
    "pin",
    "positions_apart",
    "sort_by_priority",
]

FINISHED_AGE = 1 << 30
"""The last use of a finished file is set back by this many seconds: it is evicted first."""

MAX_GROUPS = 10**9
"""The number of possible values of `group`, the number that identifies an iteration.

The nanoseconds of a modification time store it.
"""

RECENT = 60.0
"""Files used within this number of seconds are evicted last: a process may be writing them."""

GROUP_TIMEOUT = 600.0
"""An iteration that has marked no file for this number of seconds is regarded as ended."""

_BASE = 1 << 28
"""The first second of the dates that encode positions. They end before twice this number."""

_MIN_CHUNK = 1 << 16
"""Files of fewer bytes hold the headers of shards, not chunks."""

_EPOCH_STEPS = 1 << 18
"""Seconds that encode one epoch. After 1024 epochs, the dates begin anew."""


class Entry(NamedTuple):
    """A file of the cache.

    Attributes
    ----------
    last_use : float
        The modification time, in seconds since 1970.
    nbytes : int
        The bytes on the disk.
    path : str
    group : int
        The nanoseconds of the modification time.
    marked : float
        The time of the last use or mark, in seconds since 1970.
    is_pinned : bool
        Whether the file is never evicted.
    """

    last_use: float
    nbytes: int
    path: str
    group: int = 0
    marked: float = 0.0
    is_pinned: bool = False

    @classmethod
    def from_status(cls, status: os.stat_result, path: str) -> Entry:
        """Return the entry of a file with this status."""
        return cls(
            status.st_mtime_ns / 1e9, status.st_blocks * 512, path, status.st_mtime_ns % MAX_GROUPS,
            status.st_ctime, bool(status.st_mode & stat.S_IXUSR),
        )  # fmt: skip

    @property
    def is_ordered(self) -> bool:
        """True if the modification time encodes the position of the next use."""
        return _BASE <= self.last_use < 2 * _BASE


def mark_next_use(path: str, group: int, position: float) -> Entry | None:
    """Record when an iteration uses a file next. Ignore failures.

    The mark of another iteration stays while that iteration runs: it may be using the file.

    Parameters
    ----------
    path : str
    group : int
        Identifies the iteration, in all its processes; below `MAX_GROUPS`.
    position : float
        The position of the next use, in epochs.

    Returns
    -------
    Entry or None
        The file, if it was marked.
    """
    seconds = _BASE + int(position * _EPOCH_STEPS) % _BASE
    nanoseconds = seconds * MAX_GROUPS + group
    try:
        entry = Entry.from_status(os.lstat(path), path)
        is_foreign = entry.is_ordered and entry.group != group
        if is_foreign and entry.marked > time.time() - GROUP_TIMEOUT:
            return None
        os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)
    except OSError:
        return None
    return entry._replace(last_use=nanoseconds / 1e9, group=group)


def pin(path: str, is_pinned: bool) -> bool:
    """Record in the permissions of a file whether it is pinned; return False if that failed.

    The caller holds the lock of the cache's directory, so no process is about to evict the file.
    """
    try:
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        os.chmod(path, mode | stat.S_IXUSR if is_pinned else mode & ~stat.S_IXUSR)
    except OSError:
        return False
    return True


class Priorities(NamedTuple):
    """Files in the order of their eviction.

    Attributes
    ----------
    unused : list of Entry
        The files that no iteration uses, the least recently used first.
    ordered : list of Entry
        The files that iterations will use, the one with the latest next use first.
    recent : list of Entry
        The files that were used recently, and that no iteration has marked.
    groups : int
        The number of iterations that have files in `ordered`.
    """

    unused: list[Entry]
    ordered: list[Entry]
    recent: list[Entry]
    groups: int


def sort_by_priority(entries: Iterable[Entry]) -> Priorities:
    """Sort files in the order of their eviction.

    First come files that no iteration uses, the least recently used first. The files of an ended
    iteration belong to these. Then come the files that iterations will use, the one with the latest
    next use first. Files of different iterations are compared by the epochs between an iteration's
    present position and the next use. Recently used files that no iteration has marked are last.

    Examples
    --------
    >>> now = time.time()
    >>> old, new = Entry(now - 3600, 1, "old"), Entry(now, 1, "new")
    >>> far, near = Entry(_BASE + 9, 1, "far", 5, now), Entry(_BASE + 2, 1, "near", 5, now)
    >>> priorities = sort_by_priority([near, new, far, old])
    >>> [[entry.path for entry in files] for files in priorities[:3]]
    [['old'], ['far', 'near'], ['new']]
    """
    now = time.time()
    unused: list[tuple[float, Entry]] = []
    groups: defaultdict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.is_ordered:
            groups[entry.group].append(entry)
        else:
            unused.append((entry.last_use, entry))
    ranked: list[tuple[float, Entry]] = []
    for group in groups.values():
        if max(entry.marked for entry in group) < now - GROUP_TIMEOUT:
            unused += [(entry.marked, entry) for entry in group]
            continue
        farthest_first = _sort_by_next_use(group)
        # The nearest next use is about where the iteration is now. Headers of shards are skipped,
        # because they are marked with the beginning of the epoch.
        nearest = next(
            (file for file in reversed(farthest_first) if file.nbytes >= _MIN_CHUNK),
            farthest_first[-1],
        )
        ranked += [(-positions_apart(entry, nearest), entry) for entry in farthest_first]
    unused.sort()
    ranked.sort()
    return Priorities(
        [entry for last_use, entry in unused if last_use < now - RECENT],
        [entry for _, entry in ranked],
        [entry for last_use, entry in unused if last_use >= now - RECENT],
        len({entry.group for _, entry in ranked}),
    )


def _sort_by_next_use(group: list[Entry]) -> list[Entry]:
    """Return the files of an iteration, the one with the latest next use first.

    Positions are encoded modulo 1024 epochs, so the latest position need not have the largest date.
    The next uses of an iteration are close together. So the largest gap between neighboring dates
    separates the earliest use from the latest one.
    """
    files = sorted(group, reverse=True)
    gaps = [a.last_use - b.last_use for a, b in pairwise(files)]
    gaps.append(files[-1].last_use + _BASE - files[0].last_use)
    start = (max(range(len(gaps)), key=gaps.__getitem__) + 1) % len(files)
    return files[start:] + files[:start]


def positions_apart(file: Entry, other: Entry) -> float:
    """Return how much later an iteration uses `file` than `other`, in seconds of the dates.

    An epoch has `_EPOCH_STEPS` seconds. The result is negative if `file` is used earlier.
    """
    distance = (file.last_use - other.last_use) % _BASE
    return distance if distance < _BASE / 2 else distance - _BASE
