"""File hashes that an index may record."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast

from npstream._core.typing import Body

__all__ = ["HASHES", "Hasher", "digest", "fastest", "hasher"]

HASHES = (
    *("xxh3_64", "xxh3_128", "xxh128", "xxh64", "xxh32"),
    *("sha1", "sha256", "sha224", "md5", "sha512", "blake2b", "sha384", "blake2s"),
    *("sha3_224", "sha3_256", "sha3_384", "sha3_512"),
)
"""Names of the supported hashes, fastest first (measured on x86-64 with SHA instructions)."""


class Hasher(Protocol):
    """An incremental hash, as in `hashlib`."""

    def update(self, data: Body, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the hash of all bytes added, as hexadecimal digits."""


def hasher(name: str) -> Hasher:
    """Return a new incremental hash.

    Raises
    ------
    ValueError
        If `name` is not in `HASHES`.
    """
    if name not in HASHES:
        raise ValueError(f"unknown hash {name!r}; the hashes are {', '.join(sorted(HASHES))}")
    if name.startswith("xxh"):
        import xxhash

        return cast("Hasher", getattr(xxhash, name)())
    import hashlib  # takes 3 ms, as it loads OpenSSL

    return hashlib.new(name, usedforsecurity=False)


def digest(name: str, data: Body) -> str:
    """Return the hash of some bytes as hexadecimal digits.

    Parameters
    ----------
    name : str
        One of `HASHES`.
    data : bytes or memoryview
        The bytes to hash.

    Examples
    --------
    >>> digest("sha1", b"abc")
    'a9993e364706816aba3e25717850c26c9cd0d89d'
    """
    state = hasher(name)
    state.update(data)
    return state.hexdigest()


def fastest(names: Iterable[str]) -> str | None:
    """Return the name of the fastest hash, or None if no name is in `HASHES`.

    Examples
    --------
    >>> fastest(["md5", "sha1", "xxh64"])
    'xxh64'
    """
    return min((name for name in names if name in HASHES), key=HASHES.index, default=None)
