"""The hashes that an index may record of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from npstream._typing import Body

__all__ = ["HASHES", "digest", "fastest"]

HASHES = (
    *("xxh3_64", "xxh3_128", "xxh128", "xxh64", "xxh32"),
    *("sha1", "sha256", "sha224", "md5", "sha512", "blake2b", "sha384", "blake2s"),
    *("sha3_224", "sha3_256", "sha3_384", "sha3_512"),
)
"""Names of the known hashes, the fastest first (measured on x86-64 with SHA instructions)."""


def digest(name: str, data: Body) -> str:
    """Return a hash of bytes, as hexadecimal digits.

    Parameters
    ----------
    name : str
        One of `HASHES`.
    data : bytes or memoryview
        What to hash.

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> digest("sha1", b"abc")
    'a9993e364706816aba3e25717850c26c9cd0d89d'
    """
    if name not in HASHES:
        raise ValueError(f"unknown hash {name!r}; the hashes are {', '.join(sorted(HASHES))}")
    if name.startswith("xxh"):
        import xxhash

        return str(getattr(xxhash, name)(data).hexdigest())
    return hashlib.new(name, data, usedforsecurity=False).hexdigest()


def fastest(names: Iterable[str]) -> str | None:
    """Return the hash that is checked soonest, or None if none of the names is known.

    Examples
    --------
    >>> fastest(["md5", "sha1", "xxh64"])
    'xxh64'
    """
    return min((name for name in names if name in HASHES), key=HASHES.index, default=None)
