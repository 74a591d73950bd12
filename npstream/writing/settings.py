"""Checks of the arguments of `write` and `Writer`.

Tested in tests/writing/test_writer.py.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from npstream._core.arguments import parse_size, quantity
from npstream.formats.hashes import digest

__all__ = [
    "check_column_list",
    "check_mode",
    "check_shard_samples",
    "check_workers",
    "hash_names",
    "size_limit",
]


def check_column_list(columns: Any) -> tuple[str, ...] | None:
    """Return the names of a list of columns; None for a mapping, or without columns.

    Examples
    --------
    >>> check_column_list(["b", "a"]), check_column_list({"a": "int"})
    (('b', 'a'), None)
    """
    if columns is None or isinstance(columns, Mapping):
        return None
    if not isinstance(columns, list | tuple):
        raise TypeError(f"columns maps names to encodings, or lists names; got {columns!r}")
    if not columns:
        raise ValueError("a dataset has at least one column; columns is empty")
    for name in columns:
        if not isinstance(name, str):
            raise TypeError(
                f"columns lists names, or maps them to encodings; got {name!r} in {columns!r}"
            )
        if columns.count(name) > 1:
            raise ValueError(f"columns names {name!r} twice")
    return tuple(columns)


def size_limit(shard_size: int | str | None) -> int | None:
    """Return the maximum bytes of a shard; None for no limit."""
    limit = parse_size(shard_size)
    if limit and limit >= 2**32:
        raise ValueError(
            f"shard_size {shard_size!r} is {quantity(limit, 'byte')}: it must be less than 4 GiB "
            "(2**32), as the offsets in a shard are uint32"
        )
    return limit or None


def check_mode(mode: str, exclusive: bool) -> None:
    """Raise TypeError or ValueError unless these arguments of `write` are valid."""
    if mode not in ("x", "w", "a"):
        raise ValueError(
            f"mode={mode!r}: it is 'x' to write a new dataset, 'w' to replace one, or 'a' to append"
        )
    if not isinstance(exclusive, bool):
        raise TypeError(f"exclusive={exclusive!r}: expected True or False")


def check_workers(workers: int) -> int:
    """Return the number of worker processes, which is 0 or more."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers={workers!r}: it is a number of processes, or 0 for this one")
    return workers


def check_shard_samples(samples: int | None) -> int | None:
    """Return the maximum number of samples of a shard; None for no limit."""
    if samples is None:
        return None
    if isinstance(samples, bool) or not hasattr(samples, "__index__") or samples < 1:
        raise ValueError(f"shard_samples={samples!r}: it is None or a number of at least 1")
    return operator.index(samples)


def hash_names(hashes: Iterable[str]) -> list[str]:
    """Return the names of hashes; raise ValueError for an unknown one."""
    names = [hashes] if isinstance(hashes, str) else list(hashes)
    for name in names:
        digest(name, b"")  # raises for an unknown name
    return names
