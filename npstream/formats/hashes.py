"""The hashes that an index may record of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Protocol, cast

from npstream._core.typing import Body

__all__ = ["HASHES", "Hasher", "digest", "fastest", "hasher"]

HASHES = (
    *("xxh3_64", "xxh3_128", "xxh128", "xxh64", "xxh32"),
    *("sha1", "sha256", "sha224", "md5", "sha512", "blake2b", "sha384", "blake2s"),
    *("sha3_224", "sha3_256", "sha3_384", "sha3_512"),
)
"""Names of the known hashes, the fastest first (measured on x86-64 with SHA instructions)."""


class Hasher(Protocol):
    """A hash of the bytes that were added so far."""

    def update(self, data: Body, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the hash as hexadecimal digits."""


def hasher(name: str) -> Hasher:
    """Return the hash of no bytes.

    Raises
    ------
    ValueError
        If `name` is none of `HASHES`.
    """
    if name not in HASHES:
        raise ValueError(f"unknown hash {name!r}; the hashes are {', '.join(sorted(HASHES))}")
    if name.startswith("xxh"):
        import xxhash

        return cast("Hasher", getattr(xxhash, name)())
    return hashlib.new(name, usedforsecurity=False)


def digest(name: str, data: Body) -> str:
    """Return a hash of bytes, as hexadecimal digits.

    Parameters
    ----------
    name : str
        One of `HASHES`.
    data : bytes or memoryview
        What to hash.

    Examples
    --------
    >>> digest("sha1", b"abc")
    'a9993e364706816aba3e25717850c26c9cd0d89d'
    """
    whole = hasher(name)
    whole.update(data)
    return whole.hexdigest()


def fastest(names: Iterable[str]) -> str | None:
    """Return the hash that is checked soonest, or None if none of the names is known.

    Examples
    --------
    >>> fastest(["md5", "sha1", "xxh64"])
    'xxh64'
    """
    return min((name for name in names if name in HASHES), key=HASHES.index, default=None)
